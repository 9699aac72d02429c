{
  description = "Keeps a fleet of NixOS machines at the state declared in one git repository";

  inputs.nixpkgs.url = "github:NixOS/nixpkgs/nixos-unstable";

  outputs =
    { self, nixpkgs }:
    let
      inherit (nixpkgs) lib;

      systems = [
        "x86_64-linux"
        "aarch64-linux"
        "x86_64-darwin"
        "aarch64-darwin"
      ];
      linux = lib.filter (lib.hasSuffix "-linux") systems;
      each = systems: f: lib.genAttrs systems (system: f nixpkgs.legacyPackages.${system});
      eachSystem = each systems;

      # Shown by --version. It changes the executable, not the systems of a fleet that
      # pins this flake.
      commit = self.rev or self.dirtyRev or "unknown";
      package = pkgs: pkgs.callPackage ./nixops/package.nix { inherit commit; };

      withOverlay = module: {
        imports = [ module ];
        nixpkgs.overlays = [ self.overlays.default ];
      };

      agent = withOverlay ./roles/agent/module.nix;
      control-plane = withOverlay ./roles/cp/module.nix;
      operator = withOverlay ./roles/operator/module.nix;
      cache = ./nixops/cache.nix;
      trust = ./pki/module.nix;
    in
    {
      # By the name of the system: to know what there is, nixpkgs need not be evaluated.
      packages = lib.genAttrs systems (
        system:
        let
          pkgs = nixpkgs.legacyPackages.${system};
        in
        {
          default = package pkgs;
          nixfleet = package pkgs;
        }
        // lib.optionalAttrs (lib.elem system linux) {
          nixfleet-static = pkgs.pkgsStatic.callPackage ./nixops/package.nix {
            inherit commit;
            static = true;
          };
        }
      );

      apps = eachSystem (pkgs: rec {
        nixfleet = {
          type = "app";
          program = lib.getExe (package pkgs);
          meta.description = "The operator's command line";
        };
        default = nixfleet;
        demo = {
          type = "app";
          program = lib.getExe (
            pkgs.writeShellScriptBin "nixfleet-demo" ''
              exec ${lib.getExe (package pkgs)} demo "$@"
            ''
          );
          meta.description = "A fleet in one process, from enrolment to recovery";
        };
      });

      overlays.default = final: _: { nixfleet = package final; };

      nixosModules = {
        inherit
          agent
          control-plane
          operator
          cache
          trust
          ;
        default.imports = [
          agent
          control-plane
          operator
          cache
          trust
        ];
      };

      darwinModules.agent = withOverlay ./roles/agent/darwin.nix;

      lib = import ./nixops/lib // {
        mkHost = import ./nixops/lib/mkHost.nix {
          nixosModules = [ self.nixosModules.default ];
          darwinModules = [ self.darwinModules.agent ];
        };
      };

      templates.fleet = {
        path = ./nixops/template/fleet;
        description = "A fleet repository with two hosts, ready for keys";
      };
      templates.default = self.templates.fleet;

      devShells = eachSystem (pkgs: {
        default = pkgs.mkShell {
          packages = [
            pkgs.age
            pkgs.git
            pkgs.go
            pkgs.go-tools
            pkgs.nixfmt-rfc-style
            pkgs.sqlite
          ];
        };
      });

      formatter = eachSystem (pkgs: pkgs.nixfmt-rfc-style);
    };
}
