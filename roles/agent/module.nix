# services.nixfleet-agent: the host keeps itself at the state that the fleet declares for it.
{
  config,
  lib,
  pkgs,
  ...
}:
let
  inherit (lib)
    mkEnableOption
    mkIf
    mkOption
    optionalAttrs
    types
    ;
  cfg = config.services.nixfleet-agent;

  # These also become words of unit files and of tmpfiles.d, which have their own
  # ideas about spaces and percent signs.
  plainPath = types.strMatching "/[A-Za-z0-9_./-]+";

  seconds =
    default: description:
    mkOption {
      type = types.ints.positive;
      inherit default description;
    };

  checks = cfg.healthChecks;
  hasChecks = checks.http != [ ] || checks.tcp != [ ] || checks.exec != [ ] || checks.units != [ ];

  healthJSON = builtins.toJSON { inherit (checks) mode http tcp exec units; };

  clientCert = lib.defaultTo "/var/lib/nixfleet/agent-cert.pem" cfg.tls.clientCert;
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

  ownTrust = cfg.trustFile == "/etc/nixfleet/agent/trust.json";

  inVarLib = lib.hasPrefix "/var/lib/" cfg.stateDir;

  flags = {
    control-plane-url = cfg.controlPlaneUrl;
    machine-id = cfg.machineId;
    poll-interval = cfg.pollInterval;
    trust-file = cfg.trustFile;
    state-dir = cfg.stateDir;
    ca-cert = cfg.tls.caCert;
    client-cert = clientCert;
    client-key = cfg.tls.clientKey;
    ssh-host-key-file = cfg.sshHostKeyFile;
    bootstrap-token-file = cfg.bootstrapTokenFile;
    compliance-gate-mode = cfg.complianceGate.mode;
    renewal-threshold-fraction = cfg.renewalThresholdFraction;
    health-checks-config = if hasChecks then "/etc/nixfleet/agent/health-checks.json" else null;
    defer-on = cfg.deferOn;
    reboot-policy =
      {
        never = null;
        window = "window:${toString cfg.rebootPolicy.window}";
        immediate = "immediate";
      }
      .${cfg.rebootPolicy.mode};
    prefetch-spread =
      if cfg.prefetchSpreadSeconds == null then null else "${toString cfg.prefetchSpreadSeconds}s";
    max-manifest-age = cfg.maxManifestAge;
    allow-v1-control-plane = cfg.allowV1ControlPlane;
    allow-remote-rollback = cfg.allowRemoteRollback;
    allow-volatile-state = cfg.allowVolatileState;
    metrics-file = cfg.metricsFile;
    log-level = if cfg.logLevel == "info" then null else cfg.logLevel;
    nix-bin-dir = "${config.nix.package}/bin";
  };

  guardFlags = {
    state-dir = cfg.stateDir;
    nix-bin-dir = "${config.nix.package}/bin";
  };

  nixfleet = lib.getExe cfg.package;
  execStart = import ../../nixops/execstart.nix lib;
  etcTriggers = import ../../nixops/etc.nix lib config;

  # The agent is root and activates systems through units of their own, which
  # inherit nothing of this; what is taken away here neither it, nor Nix, nor the
  # guard needs. Nix remounts the store writable in a mount namespace of its own.
  hardening = {
    LockPersonality = true;
    MemoryDenyWriteExecute = true;
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
  cache.XDG_CACHE_HOME = "/var/cache/nixfleet-agent";
in
{
  _class = "nixos";
  imports = [ ../../pki/module.nix ];

  options.services.nixfleet-agent = {
    enable = mkEnableOption "the nixfleet agent, which keeps this host at the state the fleet declares for it";

    package = lib.mkPackageOption pkgs "nixfleet" { };

    controlPlaneUrl = mkOption {
      type = types.str;
      example = "https://cp.example.com:8080";
      description = "Base URL of the control plane.";
    };
    machineId = mkOption {
      type = types.str;
      default = config.hostSpec.hostName or config.networking.hostName;
      defaultText = lib.literalExpression "config.networking.hostName";
      description = "Name of this host in the fleet's declaration.";
    };
    pollInterval = seconds 60 "Seconds between two check-ins when the control plane does not hold them open.";
    renewalThresholdFraction = mkOption {
      type = types.nullOr (types.addCheck types.float (f: f > 0.0 && f < 1.0));
      default = null;
      example = 0.5;
      description = "The certificate is renewed when less than this fraction of its life is left.";
    };
    trustFile = mkOption {
      type = types.path;
      default = "/etc/nixfleet/agent/trust.json";
      description = "Trust roots. The default is generated from {option}`nixfleet.trust`.";
    };

    tls = {
      caCert = mkOption {
        type = types.nullOr types.str;
        default = null;
        example = "/etc/nixfleet/fleet-root.cert.pem";
        description = "CA bundle that the control plane's certificate must chain to; the only one believed once it is set.";
      };
      clientCert = mkOption {
        type = types.nullOr plainPath;
        default = "/var/lib/nixfleet/agent-cert.pem";
        description = "Where the agent keeps its certificate; null is the default. The directory is created.";
      };
      clientKey = mkOption {
        type = types.nullOr types.str;
        default = "/etc/ssh/ssh_host_ed25519_key";
        description = ''
          The host's ssh key, which is also the key of its certificate; null is
          {option}`services.nixfleet-agent.sshHostKeyFile`. It never leaves the host.
        '';
      };
    };

    bootstrapTokenFile = mkOption {
      type = types.nullOr types.str;
      default = null;
      example = "/run/agenix/bootstrap-token";
      description = ''
        Path at run time of the token of `nixfleet mint-token`, as it was printed or encrypted to
        this host's ssh key. It is used while there is no valid certificate.
      '';
    };
    stateDir = mkOption {
      type = plainPath;
      default = "/var/lib/nixfleet-agent";
      description = "Journal, mark and quarantine. Must survive a reboot.";
    };
    sshHostKeyFile = mkOption {
      type = types.str;
      default = "/etc/ssh/ssh_host_ed25519_key";
      description = "Key that signs this host's reports.";
    };
    tags = mkOption {
      type = types.listOf types.str;
      default = [ ];
      description = "Tags of this host, given to exec probes as {env}`NIXFLEET_TAGS`.";
    };

    healthChecks = import ./probes.nix lib;

    complianceGate.mode = mkOption {
      type = types.enum [
        "auto"
        "disabled"
        "permissive"
        "enforce"
      ];
      default = "auto";
      description = "Local compliance mode. The stricter of this and the signed one applies.";
    };

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

    prefetchSpreadSeconds = mkOption {
      type = types.nullOr (types.ints.between 1 86400);
      default = null;
      example = 1800;
      description = "Fetch closures before their wave starts, each host at its own time within that many seconds; null fetches at activation.";
    };

    allowV1ControlPlane = mkOption {
      type = types.bool;
      default = false;
      description = "Accept answers without signed heads, as a v1 control plane gives them.";
    };
    allowRemoteRollback = mkOption {
      type = types.bool;
      default = false;
      description = "Honour a rollback that a v1 control plane asks for without a signed head.";
    };
    maxManifestAge = mkOption {
      type = types.nullOr types.str;
      default = null;
      example = "24h";
      description = "Oldest manifest that is accepted under a v1 control plane; 24 hours when unset.";
    };
    allowVolatileState = mkOption {
      type = types.bool;
      default = false;
      description = "Accept a state directory that a reboot empties.";
    };
    metricsFile = mkOption {
      type = types.nullOr plainPath;
      default = null;
      example = "/var/lib/node-exporter/nixfleet.prom";
      description = "Metrics for the textfile collector of Prometheus's node_exporter; its directory must exist.";
    };
    logLevel = mkOption {
      type = types.enum [
        "debug"
        "info"
        "warn"
        "error"
      ];
      default = "info";
      description = "Least level of what is logged.";
    };
  };

  config = mkIf cfg.enable {
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
        assertion = config.nixfleet.trust.ciReleaseKey.current != null || !ownTrust;
        message = "services.nixfleet-agent trusts nobody: set nixfleet.trust.ciReleaseKey.current to the public half that 'nixfleet keygen' printed, or name a trustFile of your own.";
      }
      {
        assertion = lib.hasPrefix "https://" cfg.controlPlaneUrl;
        message = "services.nixfleet-agent.controlPlaneUrl (${cfg.controlPlaneUrl}) must begin with https://, for example \"https://cp.example.com:8080\".";
      }
      {
        assertion = lib.all (file: file == null || !(lib.hasPrefix builtins.storeDir file)) [
          cfg.bootstrapTokenFile
          cfg.tls.clientKey
          cfg.sshHostKeyFile
        ];
        message = "services.nixfleet-agent: a key or token file lies in the Nix store, where every user reads it; give a path at run time, such as one of agenix or sops-nix.";
      }
      {
        assertion = (cfg.rebootPolicy.mode == "window") == (cfg.rebootPolicy.window != null);
        message = "services.nixfleet-agent.rebootPolicy: window belongs to mode = \"window\", for example \"Sun 03:00\".";
      }
    ];

    environment.systemPackages = [ cfg.package ];

    # The agent refuses a system whose trust.json does not verify the release that brings
    # it, or that brings none where the running one did. A file outside of the store is
    # the operator's to keep.
    environment.etc =
      optionalAttrs ownTrust { "nixfleet/agent/trust.json".text = config.nixfleet.trust.json; }
      // optionalAttrs (!ownTrust && lib.hasPrefix builtins.storeDir (toString cfg.trustFile)) {
        "nixfleet/agent/trust.json".source = cfg.trustFile;
      }
      // optionalAttrs hasChecks { "nixfleet/agent/health-checks.json".text = healthJSON; };

    # A directory that is there already keeps its mode: the certificate is no secret,
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
      restartTriggers = etcTriggers [
        cfg.trustFile
        cfg.tls.caCert
        "/etc/nixfleet/agent/health-checks.json"
      ];

      path = [
        config.nix.package
        config.systemd.package
        pkgs.openssh
      ];
      environment =
        cache // optionalAttrs (cfg.tags != [ ]) { NIXFLEET_TAGS = lib.concatStringsSep "," cfg.tags; };

      # No RuntimeDirectory: stopping the agent would delete /run/nixfleet with the
      # scripts of switches and deadlines that run on without it.
      serviceConfig =
        hardening
        // {
          Type = "notify";
          NotifyAccess = "main";
          ExecStart = execStart [ nixfleet "agent" "run" ] flags;
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
      environment = cache;
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
  };
}
