# Stands in for agenix: the options of its module that configurations set and read.
{ lib, ... }:
{
  options.age.secrets = lib.mkOption {
    type = lib.types.attrsOf (
      lib.types.submodule (
        { name, ... }:
        {
          options = {
            file = lib.mkOption { type = lib.types.path; };
            path = lib.mkOption {
              type = lib.types.str;
              default = "/run/agenix/${name}";
            };
            mode = lib.mkOption {
              type = lib.types.str;
              default = "0400";
            };
            owner = lib.mkOption {
              type = lib.types.str;
              default = "0";
            };
            group = lib.mkOption {
              type = lib.types.str;
              default = "0";
            };
          };
        }
      )
    );
    default = { };
  };
}
