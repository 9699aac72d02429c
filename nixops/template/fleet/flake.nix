{
  description = "A fleet of NixOS machines";

  inputs = {
    nixpkgs.url = "github:NixOS/nixpkgs/nixos-unstable";
    # Partitions a new machine's disk as hosts/disk.nix says.
    disko.url = "github:nix-community/disko";
    disko.inputs.nixpkgs.follows = "nixpkgs";
    # Where you keep nixfleet itself.
    nixfleet.url = "git+https://forge.example.com/nixfleet.git";
    nixfleet.inputs.nixpkgs.follows = "nixpkgs";
  };

  outputs =
    {
      self,
      nixpkgs,
      disko,
      nixfleet,
    }:
    let
      declaration = import ./fleet.nix;

      # What `nixfleet host prepare NAME --dir secrets/NAME` wrote of a host, all of it public.
      prepared = name: file: ./secrets + "/${name}/${file}";
      pubkey =
        name:
        let
          file = prepared name "ssh_host_ed25519_key.pub";
        in
        if builtins.pathExists file then { pubkey = builtins.readFile file; } else { };
      nonces =
        name:
        let
          file = prepared name "bootstrap-nonce.json";
        in
        if builtins.pathExists file then [ (builtins.fromJSON (builtins.readFile file)) ] else [ ];

      fleet = nixfleet.lib.mkFleet (
        declaration
        // {
          # Every host of fleet.nix is built from hosts/<name>.nix.
          hosts = builtins.mapAttrs (
            name: host:
            pubkey name
            // host
            // {
              configuration = nixfleet.lib.mkHost {
                inherit nixpkgs name;
                inherit (host) system;
                modules = [
                  disko.nixosModules.disko
                  ./trust.nix
                  ./hosts/common.nix
                  (./hosts + "/${name}.nix")
                ];
              };
            }
          ) declaration.hosts;

          # A token that has expired counts for nothing any more, and release leaves it out.
          bootstrapNonces =
            declaration.bootstrapNonces ++ builtins.concatMap nonces (builtins.attrNames declaration.hosts);
        }
      );
    in
    {
      inherit fleet;
      inherit (fleet) nixosConfigurations;

      # `nix run .#nixfleet -- …` and CI use the version that flake.lock pins.
      inherit (nixfleet) apps packages;
    };
}
