# Hosts of two sites that have one name each.
{ mkFleet, ... }:
let
  host = pubkey: {
    system = "x86_64-linux";
    channel = "stable";
    inherit pubkey;
  };
in
mkFleet {
  hosts."web.ams.example" = host "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIEgHWll+choVbi4Hmd5cwMUyTcbn6vHN1GJQho7FMhXd";
  hosts."web.fra.example" = host "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIF4hLAmA5LOfwJchE0qgIQk3Tt/SYMDT0Dy1AcjWVFep";
  channels.stable.rolloutPolicy = "now";
  rolloutPolicies.now = { };
}
