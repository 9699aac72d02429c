# Evaluates the VM tests as far as that goes without NixOS: the test's own module, its
# machines and every system that they may switch to, with nixpkgs' own module
# system, and the text of the script that would drive them.
{ lib, root }:
let
  inherit
    (import (root + "/nixops/modules/stub.nix") {
      inherit lib;
      modules = [ ];
    })
    parts
    ;
  anything = lib.mkOption {
    type = lib.types.anything;
    default = { };
  };

  # The closure of a machine has the name of its contents.
  machine =
    name:
    { config, ... }:
    {
      options = {
        virtualisation = anything;
        system.build = lib.mkOption { type = lib.types.lazyAttrsOf lib.types.raw; };
      };
      config = {
        networking.hostName = name;
        system.build.toplevel = parts.package "nixos-system-${name}-${
          builtins.substring 0 8 (
            builtins.hashString "sha256" (
              builtins.toJSON [
                (lib.mapAttrs (_: e: e.text) config.environment.etc)
                config.boot.kernelParams
                (lib.mapAttrs (_: s: [
                  s.script
                  s.serviceConfig
                ]) config.systemd.services)
              ]
            )
          )
        }";
        _module.args.pkgs = pkgs;
      };
    };

  evaluated =
    test:
    let
      inherit
        (lib.evalModules {
          modules = [
            {
              options = {
                name = lib.mkOption { type = lib.types.str; };
                nodes = lib.mkOption { type = lib.types.lazyAttrsOf lib.types.deferredModule; };
                testScript = lib.mkOption { type = lib.types.functionTo lib.types.str; };
              };
            }
            test
          ];
        })
        config
        ;
      nodes = lib.mapAttrs (
        name: module:
        (lib.evalModules {
          specialArgs = { inherit nodes; };
          modules = [
            parts.nixos
            (machine name)
            module
          ];
        }).config
      ) config.nodes;
    in
    {
      inherit (config) name;
      script = config.testScript { inherit nodes; };
      failed = lib.concatMap (
        node: map (a: a.message) (lib.filter (a: !a.assertion) node.assertions)
      ) (lib.attrValues nodes);
      systems = map (system: system.name) (
        [ nodes.web.system.build.toplevel ] ++ lib.attrValues nodes.web.test.systems
      );
    };

  pkgs = parts.pkgs // {
    path = root + "/nixops/modules/testdata/nixpkgs";
    testers.runNixOSTest = evaluated;
    stdenv.hostPlatform.system = "x86_64-linux";
    jq = parts.package "jq";
  };
in
import (root + "/nixops/checks") {
  inherit pkgs;
  nixosModule.imports = [
    (root + "/roles/agent/module.nix")
    (root + "/roles/cp/module.nix")
    (root + "/roles/operator/module.nix")
  ];
  inherit (import (root + "/nixops/lib")) mkFleet;
}
