# An agent under launchd.
{
  imports = [
    ../../../../roles/agent/darwin.nix
    ./trust.nix
  ];
  networking.hostName = "mac-01";
  services.nixfleet-agent = {
    enable = true;
    controlPlaneUrl = "https://cp.example.com:8080";
    tls.caCert = "/etc/nixfleet/fleet-root.cert.pem";
    bootstrapTokenFile = "/var/root/bootstrap-token";
  };
}
