# Secrets by sops-nix: values of an encrypted file, decrypted at activation to
# /run/secrets, outside the store. .sops.yaml gives the control plane's key access to
# control-plane.yaml only; the organisation's root key is in no file that a machine
# can open.
{
  control-plane =
    { config, ... }:
    {
      sops = {
        defaultSopsFile = ./secrets/control-plane.yaml;
        age.sshKeyPaths = [ "/etc/ssh/ssh_host_ed25519_key" ];
        # Root's and 0400, as sops-nix makes them: the unit takes them as credentials.
        # Another secret comes with a release that holds another encrypted file: the
        # module counts that file among the unit's restartTriggers. restartUnits is for a
        # file that only the machine has (validateSopsFiles = false).
        secrets = {
          "nixfleet/server-key".restartUnits = [ "nixfleet-control-plane.service" ];
          "nixfleet/issuing-ca-key".restartUnits = [ "nixfleet-control-plane.service" ];
          "nixfleet/forge-token".restartUnits = [ "nixfleet-control-plane.service" ];
        };
      };

      services.nixfleet-control-plane = {
        enable = true;
        agentCnSuffix = "fleet.example.com";
        source.url = "git+https://forge.example.com/fleet.git#main";
        source.tokenFile = config.sops.secrets."nixfleet/forge-token".path;

        # Certificates are public and may lie in the store.
        tls.cert = "/etc/nixfleet/server.cert.pem";
        tls.key = config.sops.secrets."nixfleet/server-key".path;
        tls.clientCa = "/etc/nixfleet/client-ca.pem";
        fleetCaCert = "/etc/nixfleet/issuing-ca.cert.pem";
        fleetCaKey = config.sops.secrets."nixfleet/issuing-ca-key".path;
      };
    };

  host =
    { config, ... }:
    {
      sops = {
        defaultSopsFile = ./secrets/web-01.yaml;
        age.sshKeyPaths = [ "/etc/ssh/ssh_host_ed25519_key" ];
        secrets."nixfleet/bootstrap-token" = { };
      };
      services.nixfleet-agent = {
        enable = true;
        controlPlaneUrl = "https://cp.example.com:8080";
        bootstrapTokenFile = config.sops.secrets."nixfleet/bootstrap-token".path;
      };
    };
}
