# Evaluates a NixOS configuration without NixOS: nixpkgs' own `lib` and module
# system, and stand-ins for the few options of NixOS that our modules set or read.
#
#   import ./stub.nix { lib, modules } -> { units, etc, failed, warnings, ... }
#
# `parts` of the result are the options, the packages, and the rendering of a
# configuration that something else has evaluated.
#
# Units are rendered as nixos/lib/systemd-lib.nix renders them, without what NixOS
# adds to every unit (its default PATH, LOCALE_ARCHIVE, TZDIR). Packages are store
# paths that nobody has built.
{ lib, modules }:
let
  inherit (lib) mkOption types;

  package =
    name:
    let
      outPath = "/nix/store/00000000000000000000000000000000-${name}";
    in
    {
      type = "derivation";
      inherit name outPath;
      drvPath = "${outPath}.drv";
      outputName = "out";
      meta.mainProgram = name;
      __toString = _: outPath;
    };

  pkgs = lib.genAttrs [ "age" "git" "gitMinimal" "nixfleet" "openssh" "sqlite" ] package // {
    inherit lib;
    writeText = name: _: "/nix/store/00000000000000000000000000000000-${name}";
    system = "x86_64-linux";
  };

  anything =
    default:
    mkOption {
      type = types.anything;
      inherit default;
    };
  listOf =
    type:
    mkOption {
      type = types.listOf type;
      default = [ ];
    };
  bool =
    default:
    mkOption {
      type = types.bool;
      inherit default;
    };

  section = mkOption {
    type = types.attrsOf types.anything;
    default = { };
  };

  unitOptions = {
    enable = bool true;
    description = mkOption {
      type = types.str;
      default = "";
    };
    after = listOf types.str;
    before = listOf types.str;
    requires = listOf types.str;
    wants = listOf types.str;
    requiredBy = listOf types.str;
    wantedBy = listOf types.str;
    restartTriggers = listOf types.unspecified;
    startLimitIntervalSec = mkOption {
      type = types.nullOr types.int;
      default = null;
    };
    unitConfig = section;
  };

  serviceOptions = unitOptions // {
    environment = mkOption {
      type = types.attrsOf types.str;
      default = { };
    };
    path = listOf types.unspecified;
    preStart = mkOption {
      type = types.lines;
      default = "";
    };
    script = mkOption {
      type = types.lines;
      default = "";
    };
    restartIfChanged = bool true;
    stopIfChanged = bool true;
    serviceConfig = section;
  };

  submodules =
    options:
    mkOption {
      type = types.attrsOf (types.submodule { inherit options; });
      default = { };
    };

  nixos = {
    options = {
      assertions = listOf types.unspecified;
      warnings = listOf types.str;
      environment = {
        etc = submodules {
          text = mkOption {
            type = types.nullOr types.lines;
            default = null;
          };
          source = anything null;
          mode = mkOption {
            type = types.str;
            default = "symlink";
          };
        };
        systemPackages = listOf types.unspecified;
        variables = mkOption {
          type = types.attrsOf types.str;
          default = { };
        };
      };
      fileSystems = submodules {
        device = anything null;
        fsType = mkOption {
          type = types.str;
          default = "auto";
        };
        options = listOf types.str;
        neededForBoot = bool false;
      };
      boot = {
        initrd.availableKernelModules = listOf types.str;
        kernelParams = listOf types.str;
        loader = anything { };
      };
      hardware.enableRedistributableFirmware = bool false;
      launchd.daemons = submodules { serviceConfig = section; };
      networking = {
        hostName = mkOption {
          type = types.str;
          default = "nixos";
        };
        firewall.allowedTCPPorts = listOf types.port;
      };
      nix = {
        package = anything (package "nix");
        settings = mkOption {
          type = types.submodule { freeformType = types.attrsOf (types.listOf types.str); };
          default = { };
        };
      };
      nixpkgs = anything { };
      services = {
        comin.enable = bool false;
        nginx.enable = bool false;
        nginx.virtualHosts = anything { };
        nix-serve = anything { };
        openssh.enable = bool false;
        openssh.hostKeys = listOf types.attrs;
      };
      system = {
        autoUpgrade.enable = bool false;
        etc.overlay.enable = bool false;
        etc.overlay.mutable = bool true;
        stateVersion = anything null;
        switch.enable = bool true;
      };
      systemd = {
        package = anything (package "systemd");
        paths = submodules (unitOptions // { pathConfig = section; });
        services = submodules serviceOptions;
        tmpfiles.rules = listOf types.str;
      };
      users = {
        groups = anything { };
        users = submodules { openssh.authorizedKeys.keys = listOf types.str; };
      };
    };
  };

  inherit
    (lib.evalModules {
      modules = [
        nixos
        { _module.args = { inherit pkgs; }; }
      ]
      ++ modules;
    })
    config
    options
    ;

  # As in nixos/lib/utils.nix: a list repeats its key, booleans are words.
  ini =
    name: attrs:
    let
      value =
        v:
        if v == true then
          "true"
        else if v == false then
          "false"
        else
          toString v;
      line =
        key: v:
        if v == null then
          ""
        else if builtins.isList v then
          lib.concatMapStrings (x: "${key}=${value x}\n") v
        else
          "${key}=${value v}\n";
      text = lib.concatStrings (lib.mapAttrsToList line attrs);
    in
    lib.optionalString (text != "") "[${name}]\n${text}\n";

  words = key: list: lib.optionalAttrs (list != [ ]) { ${key} = lib.concatStringsSep " " list; };

  unitSection =
    u:
    {
      Description = u.description;
    }
    // words "After" u.after
    // words "Before" u.before
    // words "Requires" u.requires
    // words "Wants" u.wants
    // lib.optionalAttrs (u.startLimitIntervalSec != null) {
      StartLimitIntervalSec = u.startLimitIntervalSec;
    }
    // lib.optionalAttrs (u.restartTriggers != [ ]) {
      X-Restart-Triggers = builtins.hashString "sha256" (toString (lib.flatten u.restartTriggers));
    }
    // u.unitConfig;

  # NixOS makes links of wantedBy; here it is a section, so that nothing is lost.
  install = u: ini "Install" (words "RequiredBy" u.requiredBy // words "WantedBy" u.wantedBy);

  service =
    s:
    ini "Unit" (unitSection s)
    + ini "Service" (
      lib.optionalAttrs (s.environment != { } || s.path != [ ]) {
        Environment =
          lib.mapAttrsToList (k: v: builtins.toJSON "${k}=${v}") s.environment
          ++ lib.optional (s.path != [ ]) (
            builtins.toJSON "PATH=${lib.concatMapStringsSep ":" (p: "${p}/bin") s.path}"
          );
      }
      // lib.optionalAttrs (s.preStart != "") {
        ExecStartPre = "/nix/store/00000000000000000000000000000000-unit-script-pre-start";
      }
      // lib.optionalAttrs (s.script != "") {
        ExecStart = "/nix/store/00000000000000000000000000000000-unit-script-start";
      }
      // lib.optionalAttrs (!s.restartIfChanged) { X-RestartIfChanged = false; }
      // lib.optionalAttrs (!s.stopIfChanged) { X-StopIfChanged = false; }
      // s.serviceConfig
    )
    + install s;

  path = p: ini "Unit" (unitSection p) + ini "Path" p.pathConfig + install p;
  render = config: {
    units =
      lib.mapAttrs' (name: s: lib.nameValuePair "${name}.service" (service s)) config.systemd.services
      // lib.mapAttrs' (name: p: lib.nameValuePair "${name}.path" (path p)) config.systemd.paths;
    preStart = lib.filterAttrs (_: script: script != "") (
      lib.mapAttrs (_: s: s.preStart) config.systemd.services
    );
    etc = lib.mapAttrs (_: e: e.text) (lib.filterAttrs (_: e: e.text != null) config.environment.etc);
    failed = map (a: a.message) (lib.filter (a: !a.assertion) config.assertions);
    inherit (config) warnings;
    inherit (config.systemd.tmpfiles) rules;
    inherit (config.environment) variables;
    ports = config.networking.firewall.allowedTCPPorts;
    nix = config.nix.settings;
    packages = map (p: p.name) config.environment.systemPackages;
    daemons = lib.mapAttrs (_: d: d.serviceConfig) config.launchd.daemons;
  };
in
render config
// {
  inherit options;
  parts = {
    inherit
      nixos
      package
      pkgs
      render
      ;
  };
}
