# A control plane whose issuing CA lives in a TPM, with releases over https.
{ lib, ... }:
{
  imports = [ ./control-plane.nix ];
  users.groups.tss = { }; # as security.tpm2.enable makes it
  services.nixfleet-control-plane = {
    source.url = lib.mkForce "git+https://forge.example.com/fleet.git#main";
    source.sshKeyFile = lib.mkForce null;
    source.tokenFile = "/run/agenix/forge-token";
    fleetCaKey = lib.mkForce null;
    tpmCaPubkeyRaw = "/etc/nixfleet/issuing-ca.pub.raw";
    tpmCaSignWrapper = "/run/current-system/sw/bin/sign-with-tpm";
  };
}
