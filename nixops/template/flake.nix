{
  description = "A fleet of NixOS machines";

  inputs = {
    nixpkgs.url = "github:NixOS/nixpkgs/nixos-unstable";
    # Where you keep nixfleet itself; a path: or your own mirror is fine.
    nixfleet.url = "git+https://forge.example.com/nixfleet.git";
    nixfleet.inputs.nixpkgs.follows = "nixpkgs";
  };

  outputs =
    { self, nixpkgs, nixfleet }:
    let
      declaration = import ./fleet.nix;

      # Every host of fleet.nix becomes a system from hosts/<name>.nix.
      system =
        name: host:
        nixfleet.lib.mkHost {
          inherit nixpkgs name;
          inherit (host) system;
          modules = [
            ./trust.nix
            ./hosts/common.nix
            (./hosts + "/${name}.nix")
          ];
        };

      fleet = nixfleet.lib.mkFleet (
        declaration
        // {
          hosts = builtins.mapAttrs (
            name: host: host // { configuration = system name host; }
          ) declaration.hosts;
        }
      );
    in
    {
      inherit fleet;
      inherit (fleet) nixosConfigurations;
    };
}
