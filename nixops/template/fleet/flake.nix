{
  description = "A fleet of NixOS machines";

  inputs = {
    nixpkgs.url = "github:NixOS/nixpkgs/nixos-unstable";
    # Where you keep nixfleet itself.
    nixfleet.url = "git+https://forge.example.com/nixfleet.git";
    nixfleet.inputs.nixpkgs.follows = "nixpkgs";
  };

  outputs =
    {
      self,
      nixpkgs,
      nixfleet,
    }:
    let
      declaration = import ./fleet.nix;

      # A machine with nixfleet's modules in; nothing runs until its own say so.
      system =
        name: system: modules:
        nixfleet.lib.mkHost {
          inherit nixpkgs name system;
          modules = [ ./trust.nix ] ++ modules;
        };

      fleet = nixfleet.lib.mkFleet (
        declaration
        // {
          # Every host of fleet.nix is built from hosts/<name>.nix.
          hosts = builtins.mapAttrs (
            name: host:
            host
            // {
              configuration = system name host.system [
                ./hosts/common.nix
                (./hosts + "/${name}.nix")
              ];
            }
          ) declaration.hosts;
        }
      );
    in
    {
      inherit fleet;

      nixosConfigurations = fleet.nixosConfigurations // {
        # Not a host of the fleet: whoever routes releases does not install them on himself.
        control-plane = system "control-plane" "x86_64-linux" [ ./control-plane.nix ];
      };

      # `nix run .#nixfleet -- …` and CI use the version that flake.lock pins.
      inherit (nixfleet) apps packages;
    };
}
