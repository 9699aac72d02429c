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
      eachSystem = f: lib.genAttrs systems (system: f nixpkgs.legacyPackages.${system});

      # Shown by --version. It changes the executable, not the systems of a fleet that
      # pins this flake.
      commit = self.rev or self.dirtyRev or "unknown";
      package = pkgs: pkgs.callPackage ./nixops/package.nix { inherit commit; };

      # A module whose package is built with the nixpkgs of whoever imports it; no overlay
      # is imposed. The key lets it be imported twice.
      withPackage = name: path: module: {
        key = "nixfleet-${name}";
        imports = [
          module
          (
            { lib, pkgs, ... }:
            lib.setAttrByPath (path ++ [ "package" ]) (lib.mkDefault (package pkgs))
          )
        ];
      };

      agent = withPackage "agent" [ "services" "nixfleet-agent" ] ./roles/agent/module.nix;
      control-plane = withPackage "control-plane" [ "services" "nixfleet-control-plane" ] ./roles/cp/module.nix;
      operator = withPackage "operator" [ "nixfleet" "operator" ] ./roles/operator/module.nix;
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

      apps = eachSystem (
        pkgs:
        let
          nixfleet = {
            type = "app";
            program = lib.getExe (package pkgs);
            meta.description = "The operator's command line";
          };
        in
        {
          inherit nixfleet;
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
        }
      );

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

      darwinModules.agent = withPackage "agent" [ "services" "nixfleet-agent" ] ./roles/agent/darwin.nix;

      lib = import ./nixops/lib // {
        mkHost = import ./nixops/lib/mkHost.nix {
          nixosModules = [ self.nixosModules.default ];
          darwinModules = [ self.darwinModules.agent ];
          inherit nixpkgs self;
        };
      };

      templates.fleet = {
        path = ./nixops/template/fleet;
        description = "A fleet repository with two hosts, ready for keys";
        welcomeText = "`nixfleet init DIR` writes this tree with keys; README.md says how to make them here.";
      };
      templates.default = self.templates.fleet;

      # VM tests need KVM; `nix flake check` runs them all.
      checks = lib.genAttrs systems (
        system:
        {
          inherit (self.packages.${system}) nixfleet;
        }
        // lib.optionalAttrs (lib.elem system linux) (
          {
            inherit (self.packages.${system}) nixfleet-static;
          }
          // import ./nixops/checks {
            # The machines of a test cannot set overlays themselves.
            pkgs = nixpkgs.legacyPackages.${system}.extend self.overlays.default;
            nixosModule.imports = [
              ./roles/agent/module.nix
              ./roles/cp/module.nix
              ./roles/operator/module.nix
            ];
            inherit (self.lib) mkFleet;
          }
        )
      );

      devShells = eachSystem (pkgs: {
        default = pkgs.mkShell {
          packages = [
            pkgs.age
            pkgs.git
            pkgs.go
            pkgs.go-tools
            pkgs.nixfmt
            pkgs.sqlite
          ];
        };
      });

      formatter = eachSystem (pkgs: pkgs.nixfmt-tree);
    };
}
