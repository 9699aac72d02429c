# The least that is a fleet.
{ mkFleet, ... }:
mkFleet {
  hosts.solo = {
    system = "x86_64-linux";
    channel = "stable";
    pubkey = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIEgHWll+choVbi4Hmd5cwMUyTcbn6vHN1GJQho7FMhXd";
  };
  channels.stable.rolloutPolicy = "now";
  rolloutPolicies.now = { };
}
