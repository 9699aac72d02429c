# Stands in for sops-nix: the options of its module that configurations set and read.
{ config, lib, ... }:
{
  options.sops = {
    defaultSopsFile = lib.mkOption { type = lib.types.path; };
    age.sshKeyPaths = lib.mkOption {
      type = lib.types.listOf lib.types.path;
      default = [ ];
    };
    secrets = lib.mkOption {
      type = lib.types.attrsOf (
        lib.types.submodule (
          { name, ... }:
          {
            options = {
              sopsFile = lib.mkOption {
                type = lib.types.path;
                default = config.sops.defaultSopsFile;
              };
              path = lib.mkOption {
                type = lib.types.str;
                default = "/run/secrets/${name}";
              };
              restartUnits = lib.mkOption {
                type = lib.types.listOf lib.types.str;
                default = [ ];
              };
              mode = lib.mkOption {
                type = lib.types.str;
                default = "0400";
              };
            };
          }
        )
      );
      default = { };
    };
  };
}
