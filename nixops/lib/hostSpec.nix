# hostSpec, as v1's configurations write and read it. A fleet's own modules may declare
# more of its members, with types and defaults.
{
  host,
  isDarwin,
  hostSpec,
}:
{ lib, ... }:
{
  options.hostSpec = lib.mkOption {
    type = lib.types.submodule {
      freeformType = lib.types.attrsOf lib.types.anything;
      options = {
        hostName = lib.mkOption {
          type = lib.types.str;
          description = "Name of this host in the fleet's declaration.";
        };
        isDarwin = lib.mkOption {
          type = lib.types.bool;
          default = isDarwin;
          description = "Whether this host runs nix-darwin.";
        };
      };
    };
    default = { };
    description = "Facts of this host that v1's modules read.";
  };

  config.hostSpec = lib.mapAttrs (_: lib.mkDefault) hostSpec // {
    hostName = host;
  };
}
