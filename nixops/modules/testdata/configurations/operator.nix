# An operator's workstation.
{
  imports = [ ../../../../roles/operator/module.nix ];
  nixfleet.operator = {
    enable = true;
    orgRootKeyFile = "/run/agenix/org-root";
    fleetRootCertFile = "/etc/nixfleet/fleet-root.cert.pem";
    fleetRootKeyFile = "/run/agenix/fleet-root.key";
  };
}
