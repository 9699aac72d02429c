# What every host of the fleet has in common.
{ config, lib, ... }:
let
  operators = import ../operators.nix;
in
{
  services.openssh.enable = true;
  users.users.root.openssh.authorizedKeys.keys = operators;
  assertions = [
    {
      assertion = operators != [ ];
      message = "operators.nix names no ssh key, so that nobody could log in; put the line of your .pub file there.";
    }
  ];

  services.nixfleet-agent = {
    enable = true;
    controlPlaneUrl = "https://cp.example.com:8080";
    tls.caCert = "/etc/nixfleet/fleet-root.cert.pem";
    # Where install.sh puts it.
    bootstrapTokenFile = "/var/lib/nixfleet/bootstrap-token.age";
  };

  environment.etc."nixfleet/fleet-root.cert.pem" = lib.mkIf (config.nixfleet.trust.rootCAPem != null) {
    text = config.nixfleet.trust.rootCAPem;
  };

  # Whatever it serves must bear a signature of nixfleet.trust.cacheKeys.
  nix.settings.substituters = [ "http://cp.example.com:5000" ];

  system.stateVersion = "25.11";
}
