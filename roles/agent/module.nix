# services.nixfleet-agent: the host keeps itself at the state that the fleet declares for it.
{
  config,
  lib,
  pkgs,
  ...
}:
let
  inherit (lib)
    mkIf
    mkOption
    optionalAttrs
    types
    ;
  cfg = config.services.nixfleet-agent;

  clientCert = cfg.flags.client-cert;
  certificateDirectory = dirOf clientCert;

  # The file system a path lies on is the one with the longest mount point above it.
  mountOf =
    path:
    lib.foldl' (
      best: point:
      if
        (point == "/" || path == point || lib.hasPrefix "${point}/" path)
        && lib.stringLength point > lib.stringLength best
      then
        point
      else
        best
    ) "" (lib.attrNames config.fileSystems);
  volatile =
    path:
    let
      point = mountOf path;
    in
    point != "" && lib.elem config.fileSystems.${point}.fsType [
      "tmpfs"
      "ramfs"
    ];

  inVarLib = lib.hasPrefix "/var/lib/" cfg.stateDir;

  guardFlags = {
    state-dir = cfg.stateDir;
    nix-bin-dir = "${config.nix.package}/bin";
  };

  nixfleet = lib.getExe cfg.package;
  execStart = import ../../nixops/execstart.nix lib;

  # The agent is root and activates systems through units of their own, which
  # inherit nothing of this; what is taken away here neither it, nor Nix, nor the
  # guard needs. Nix remounts the store writable in a mount namespace of its own.
  hardening = {
    LockPersonality = true;
    MemoryDenyWriteExecute = true;
    # A dump would hold keys and tokens.
    LimitCORE = 0;
    NoNewPrivileges = true;
    PrivateTmp = true;
    ProtectClock = true;
    ProtectControlGroups = true;
    ProtectHome = "read-only";
    ProtectHostname = true;
    ProtectKernelLogs = true;
    ProtectKernelModules = true;
    RestrictAddressFamilies = [
      "AF_INET"
      "AF_INET6"
      "AF_NETLINK"
      "AF_UNIX"
    ];
    RestrictNamespaces = "mnt";
    RestrictRealtime = true;
    RestrictSUIDSGID = true;
    SystemCallArchitectures = "native";
    UMask = "0077";
    # Of what a cache answered Nix keeps notes; root's home is read-only here.
    CacheDirectory = "nixfleet-agent";
    CacheDirectoryMode = "0700";
  };
  environment = {
    XDG_CACHE_HOME = "/var/cache/nixfleet-agent";
  }
  # As NixOS sets it for every session: root opens the store itself only where the daemon
  # is root. A unit gets nothing of a session.
  // optionalAttrs ((config.nix.daemonUser or "root") != "root") { NIX_REMOTE = "daemon"; };

  # What must be written, or be made on this machine, cannot lie in an /etc that is part of
  # the system.
  overlay = config.system.etc.overlay or { };
  etcIsFixed = overlay.enable or false && !(overlay.mutable or true);
  inEtc = lib.filter (path: path != null && lib.hasPrefix "/etc/" path);
  brought = path: config.environment.etc ? ${lib.removePrefix "/etc/" path};
  written = inEtc [
    cfg.stateDir
    clientCert
  ];
  keysInEtc = lib.filter (path: !(brought path)) (lib.unique (inEtc [
    cfg.sshHostKeyFile
    cfg.tls.clientKey
  ]));
in
{
  _class = "nixos";
  imports = [ ./common.nix ];

  options.services.nixfleet-agent = {
    deferOn = mkOption {
      type = types.listOf (
        types.enum [
          "kernel"
          "initrd"
          "kernel-params"
          "systemd"
          "dbus"
        ]
      );
      default = [ ];
      example = [ "kernel" ];
      description = "Components whose change is staged for the next boot rather than switched live.";
    };
    rebootPolicy = {
      mode = mkOption {
        type = types.enum [
          "never"
          "window"
          "immediate"
        ];
        default = "never";
        description = ''
          Whether the agent may reboot the host for a staged update: never, when its window opens, or at
          once while it holds its place in the disruption budgets. It reboots only where the boot loader
          can start an entry once and fall back by itself, as systemd-boot can. A kernel change is switched
          live and waits for the next boot, unless {option}`services.nixfleet-agent.deferOn` lists it.
        '';
      };
      window = mkOption {
        type = types.nullOr types.str;
        default = null;
        example = "Sun 03:00";
        description = "OnCalendar expression (systemd.time(7)); the window opens then and stays open for an hour.";
      };
    };
  };

  config = mkIf cfg.enable {
    services.nixfleet-agent.flags = {
      defer-on = cfg.deferOn;
      reboot-policy =
        {
          never = null;
          window = "window:${toString cfg.rebootPolicy.window}";
          immediate = "immediate";
        }
        .${cfg.rebootPolicy.mode};
      nix-bin-dir = "${config.nix.package}/bin";
    };

    assertions = [
      {
        assertion = config.system.switch.enable or true;
        message = "services.nixfleet-agent needs system.switch.enable = true: without switch-to-configuration nothing can be activated on this host.";
      }
      {
        assertion = !(config.system.autoUpgrade.enable or false);
        message = "services.nixfleet-agent and system.autoUpgrade would undo each other's work; set system.autoUpgrade.enable = false.";
      }
      {
        assertion = !(config.services.comin.enable or false);
        message = "services.nixfleet-agent and services.comin would undo each other's work; set services.comin.enable = false.";
      }
      {
        assertion = cfg.allowVolatileState || !(volatile cfg.stateDir);
        message = "services.nixfleet-agent.stateDir (${cfg.stateDir}) is on a tmpfs, so that a reboot would lose the journal and the mark; persist it, or set services.nixfleet-agent.allowVolatileState = true.";
      }
      {
        assertion = cfg.allowVolatileState || !(volatile certificateDirectory);
        message = "services.nixfleet-agent.tls.clientCert (${clientCert}) is on a tmpfs, so that a reboot would lose the certificate while its token is used up; persist ${certificateDirectory}, or set services.nixfleet-agent.allowVolatileState = true.";
      }
      {
        assertion = !etcIsFixed || written == [ ];
        message = "services.nixfleet-agent: ${lib.concatStringsSep ", " written} must be writable, and with system.etc.overlay.mutable = false nothing in /etc is; give paths below /var/lib.";
      }
      {
        assertion = !etcIsFixed || keysInEtc == [ ];
        message = "services.nixfleet-agent: ${lib.concatStringsSep ", " keysInEtc} is the key of this host, and with system.etc.overlay.mutable = false no key can be made in /etc; keep it below /var/lib and name it in services.openssh.hostKeys, from where the agent takes its path.";
      }
      {
        assertion = (cfg.rebootPolicy.mode == "window") == (cfg.rebootPolicy.window != null);
        message = "services.nixfleet-agent.rebootPolicy: window belongs to mode = \"window\", for example \"Sun 03:00\".";
      }
    ];

    # A directory that is there already keeps its mode: the certificate is not a secret,
    # and the directory may be one that others use.
    systemd.tmpfiles.rules = [
      "d ${certificateDirectory} :0700 :root :root -"
    ]
    ++ lib.optional (!inVarLib) "d ${cfg.stateDir} 0700 root root -";

    systemd.services.nixfleet-agent = {
      description = "nixfleet agent";
      wantedBy = [ "multi-user.target" ];
      wants = [ "network-online.target" ];
      after = [
        "network-online.target"
        "nixfleet-guard.service"
      ];
      unitConfig.RequiresMountsFor = [
        cfg.stateDir
        certificateDirectory
      ];

      # The switch that brings a new agent restarts it at the end, in one step; the
      # journal carries the activation over. A configuration file is part of what a
      # running agent has read, so its change restarts as well.
      restartIfChanged = true;
      stopIfChanged = false;
      restartTriggers = cfg.triggers;

      path = [
        config.nix.package
        config.systemd.package
        pkgs.openssh
      ];
      environment =
        environment // optionalAttrs (cfg.tags != [ ]) { NIXFLEET_TAGS = lib.concatStringsSep "," cfg.tags; };

      # No RuntimeDirectory: stopping the agent would delete /run/nixfleet with the
      # scripts of switches and deadlines that run on without it.
      serviceConfig =
        hardening
        // {
          Type = "notify";
          NotifyAccess = "main";
          ExecStart = execStart [ nixfleet "agent" "run" ] cfg.flags;
          Restart = "always";
          RestartSec = 30;
          WatchdogSec = 120;
          TimeoutStopSec = 30;
        }
        // optionalAttrs inVarLib {
          StateDirectory = lib.removePrefix "/var/lib/" cfg.stateDir;
          StateDirectoryMode = "0700";
        };
    };

    # Undoes at boot what a power cut left unconfirmed, before and without the agent.
    systemd.services.nixfleet-guard = {
      description = "nixfleet boot-time guard";
      wantedBy = [ "multi-user.target" ];
      before = [ "nixfleet-agent.service" ];
      unitConfig = {
        ConditionPathExists = "${cfg.stateDir}/journal.json";
        RequiresMountsFor = [ cfg.stateDir ];
      };
      restartIfChanged = false;
      path = [
        config.nix.package
        config.systemd.package
      ];
      inherit environment;
      serviceConfig = hardening // {
        Type = "oneshot";
        RemainAfterExit = true;
        # First by the generation before a staged one, which this generation's own
        # executable may have to be guarded against.
        ExecStartPre = execStart [ "-${cfg.stateDir}/previous-nixfleet" "agent" "guard" ] guardFlags;
        ExecStart = execStart [ nixfleet "agent" "guard" ] guardFlags;
        TimeoutStartSec = 600;
      };
    };

    # Where the boot loader counts boots, systemd-bless-boot takes the counter away after boot-complete.target. This
    # holds that back for a generation that is not proven; on other machines nothing starts it.
    systemd.services.nixfleet-boot-complete = {
      description = "nixfleet: health of the generation that was booted";
      requiredBy = [ "boot-complete.target" ];
      before = [ "boot-complete.target" ];
      after = [ "nixfleet-guard.service" ];
      unitConfig = {
        ConditionPathExists = "${cfg.stateDir}/journal.json";
        RequiresMountsFor = [ cfg.stateDir ];
      };
      restartIfChanged = false;
      path = [
        config.nix.package
        config.systemd.package
      ];
      inherit environment;
      serviceConfig = hardening // {
        Type = "oneshot";
        RemainAfterExit = true;
        ExecStart = execStart [ nixfleet "agent" "guard" "--boot-complete" ] guardFlags;
        # The activation's own deadline ends it.
        TimeoutStartSec = "infinity";
      };
    };
  };
}
