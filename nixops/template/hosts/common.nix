{ ... }:
{
  services.openssh.enable = true;

  services.nixfleet-agent = {
    enable = true;
    controlPlaneUrl = "https://cp.example.com:8080";
    tls.caCert = "/etc/nixfleet/fleet-root.cert.pem";
    bootstrapTokenFile = "/etc/nixfleet/bootstrap-token";
  };

  system.stateVersion = "25.11";
}
