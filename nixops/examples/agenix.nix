# Secrets by agenix: files that are encrypted in the repository and decrypted at
# activation to /run/agenix, outside the store.
#
# The control plane's secrets.nix names its host key as a recipient of these four and
# of nothing else; the organisation's root key has operators as recipients only.
#
#   "server.key.age".publicKeys = operators ++ [ control-plane ];
#   "issuing-ca.key.age".publicKeys = operators ++ [ control-plane ];
#   "deploy-key.age".publicKeys = operators ++ [ control-plane ];
#   "webhook-token.age".publicKeys = operators ++ [ control-plane ];
#   "org-root.key.age".publicKeys = operators;
{
  control-plane =
    { config, ... }:
    {
      # Root's and 0400, as agenix makes them: the unit takes them as credentials. Another
      # secret comes with a release that holds another encrypted file: the module counts
      # that file among the unit's restartTriggers, so that the switch restarts the unit.
      age.secrets = {
        nixfleet-server-key.file = ./secrets/server.key.age;
        nixfleet-issuing-ca-key.file = ./secrets/issuing-ca.key.age;
        nixfleet-deploy-key.file = ./secrets/deploy-key.age;
        nixfleet-webhook-token.file = ./secrets/webhook-token.age;
      };

      services.nixfleet-control-plane = {
        enable = true;
        agentCnSuffix = "fleet.example.com";
        source.url = "git+ssh://git@forge.example.com/fleet.git#main";
        source.sshKeyFile = config.age.secrets.nixfleet-deploy-key.path;
        source.knownHostsFile = "/etc/ssh/ssh_known_hosts";
        webhookTokenFile = config.age.secrets.nixfleet-webhook-token.path;

        # Certificates are public and may lie in the store.
        tls.cert = "/etc/nixfleet/server.cert.pem";
        tls.key = config.age.secrets.nixfleet-server-key.path;
        tls.clientCa = "/etc/nixfleet/client-ca.pem";
        fleetCaCert = "/etc/nixfleet/issuing-ca.cert.pem";
        fleetCaKey = config.age.secrets.nixfleet-issuing-ca-key.path;
      };
    };

  # A host that exists already and therefore has a key that its token can be
  # encrypted to: nixfleet mint-token --recipients-file host.pub.
  host =
    { config, ... }:
    {
      age.secrets.nixfleet-bootstrap-token.file = ./secrets/web-01-token.age;
      services.nixfleet-agent = {
        enable = true;
        controlPlaneUrl = "https://cp.example.com:8080";
        bootstrapTokenFile = config.age.secrets.nixfleet-bootstrap-token.path;
      };
    };
}
