# nixfleet.operator: the command line for the people who run the fleet.
{
  config,
  lib,
  pkgs,
  ...
}:
let
  cfg = config.nixfleet.operator;
  path =
    description:
    lib.mkOption {
      type = lib.types.nullOr lib.types.str;
      default = null;
      inherit description;
    };
in
{
  _class = "nixos";

  options.nixfleet.operator = {
    enable = lib.mkEnableOption "the nixfleet command line for operators";
    package = lib.mkPackageOption pkgs "nixfleet" { };
    orgRootKeyFile = path "Path at run time of the organisation's root key, for `nixfleet mint-token`.";
    fleetRootCertFile = path "Certificate of the fleet root, for `nixfleet mint-operator-cert`.";
    fleetRootKeyFile = path "Path at run time of the fleet root's key.";
  };

  config = lib.mkIf cfg.enable {
    environment.systemPackages = [ cfg.package ];
    environment.variables = lib.filterAttrs (_: v: v != null) {
      NIXFLEET_OPERATOR_ORG_ROOT_KEY = cfg.orgRootKeyFile;
      NIXFLEET_OPERATOR_FLEET_ROOT_CERT_FILE = cfg.fleetRootCertFile;
      NIXFLEET_OPERATOR_FLEET_ROOT_KEY_FILE = cfg.fleetRootKeyFile;
    };
    assertions = [
      {
        assertion = lib.all (file: file == null || !(lib.hasPrefix builtins.storeDir file)) [
          cfg.orgRootKeyFile
          cfg.fleetRootKeyFile
        ];
        message = "nixfleet.operator: a private key lies in the Nix store, where every user reads it; give a path at run time.";
      }
    ];
  };
}
