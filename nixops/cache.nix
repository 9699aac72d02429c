# services.nixfleet-cache: the binary cache that the fleet's closures come from. It
# may be written as nixfleet.cache as well, beside nixfleet.trust and nixfleet.operator.
{ config, lib, ... }:
let
  cfg = config.services.nixfleet-cache;
in
{
  imports =
    map
      (
        name:
        lib.doRename {
          from = [ "nixfleet" "cache" name ];
          to = [ "services" "nixfleet-cache" name ];
          visible = false;
          warn = false;
          use = value: value;
        }
      )
      [
        "enable"
        "cacheUrl"
        "publicKey"
      ];

  options.services.nixfleet-cache = {
    enable = lib.mkEnableOption "the fleet's binary cache as a substituter of this host";
    cacheUrl = lib.mkOption {
      type = lib.types.str;
      example = "https://cache.example.com";
      description = "URL of the cache.";
    };
    publicKey = lib.mkOption {
      type = lib.types.str;
      example = "cache.example.com-1:0EqyMnQrtKs6E2i9RhXk5tAiSrcaAWuvhSCjMsl3hzc=";
      description = "The cache's public key, as `nixfleet keygen` or `nix-store --generate-binary-cache-key` printed it.";
    };
  };

  config = lib.mkIf cfg.enable {
    nix.settings.substituters = [ cfg.cacheUrl ];
    nix.settings.trusted-public-keys = [ cfg.publicKey ];

    assertions = [
      {
        assertion = builtins.match "[^: ]+:[A-Za-z0-9+/]{43}=" cfg.publicKey != null;
        message = "services.nixfleet-cache.publicKey is not a public key of a cache, NAME:BASE64, and Nix would stop working; take the line that 'nixfleet keygen' printed.";
      }
    ];
  };
}
