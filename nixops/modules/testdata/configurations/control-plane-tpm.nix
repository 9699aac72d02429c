# A control plane whose issuing CA lives in a TPM.
{ lib, ... }:
{
  imports = [ ./control-plane.nix ];
  users.groups.tss = { }; # as security.tpm2.enable makes it
  services.nixfleet-control-plane = {
    fleetCaKey = lib.mkForce null;
    tpmCaPubkeyRaw = "/etc/nixfleet/issuing-ca.pub.raw";
    tpmCaSignWrapper = "/run/current-system/sw/bin/sign-with-tpm";
  };
}
