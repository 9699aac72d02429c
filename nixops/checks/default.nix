# NixOS VM tests, for machines with KVM and nixpkgs:
#
#   nix build .#checks.x86_64-linux.vm-deploy -L
#
# `driverInteractive` of each opens a shell with its machines.
{
  pkgs,
  nixosModule, # all of nixfleet's modules
  mkFleet,
}:
let
  fleet = import ./fleet.nix { inherit pkgs nixosModule mkFleet; };

  test =
    name: file:
    pkgs.testers.runNixOSTest {
      name = "nixfleet-${name}";
      imports = [ (import file fleet) ];
    };
in
{
  vm-enrol = test "enrol" ./enrol.nix;
  vm-deploy = test "deploy" ./deploy.nix;
  vm-rollback = test "rollback" ./rollback.nix;
  vm-unbootable = test "unbootable" ./unbootable.nix;
  vm-revoke = test "revoke" ./revoke.nix;
  vm-wipe = test "wipe" ./wipe.nix;
}
