# What the agent's modules for NixOS and for nix-darwin have in common: the options, the
# files in /etc, and the flags that both command lines are made of.
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
  healthFile = "/etc/nixfleet/agent/health-checks.json";
  probeNames = map (p: p.name) (checks.http ++ checks.tcp ++ checks.exec ++ checks.units);
  sameNames = lib.unique (lib.filter (name: lib.count (n: n == name) probeNames > 1) probeNames);

  ownTrust = cfg.trustFile == "/etc/nixfleet/agent/trust.json";

  # The key that sshd itself uses, wherever that is kept.
  hostKeys = lib.filter (key: key.type or "" == "ed25519") (config.services.openssh.hostKeys or [ ]);
  hostKey = if hostKeys == [ ] then "/etc/ssh/ssh_host_ed25519_key" else (lib.head hostKeys).path;
  hostKeyText = lib.literalExpression ''"/etc/ssh/ssh_host_ed25519_key"'';

  secrets = import ../../nixops/secrets.nix lib config;
in
{
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
        default = hostKey;
        defaultText = hostKeyText;
        description = ''
          The host's ssh key, which is also the key of its certificate; null is
          {option}`services.nixfleet-agent.sshHostKeyFile`. It never leaves the host. The default is
          the ed25519 key of {option}`services.openssh.hostKeys`.
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
      default = hostKey;
      defaultText = hostKeyText;
      description = "Key that signs this host's reports. The default is the ed25519 key of {option}`services.openssh.hostKeys`.";
    };
    tags = mkOption {
      type = types.listOf types.str;
      default = [ ];
      description = "Tags of this host, given to exec probes as {env}`NIXFLEET_TAGS`.";
    };

    healthChecks = import ./probes.nix lib;

    settleTimeSeconds = seconds 15 "Seconds for which units are watched after a switch, before it counts as healthy; part of the confirm window.";

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
      type = types.nullOr (types.strMatching "([0-9]+(h|m|s))+");
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

    flags = mkOption {
      type = types.attrsOf types.raw;
      internal = true;
      description = "Flags of `nixfleet agent run`, as nixops/flags.nix reads them.";
    };
    triggers = mkOption {
      type = types.listOf types.str;
      internal = true;
      readOnly = true;
      description = "What is in the files of /etc that the agent reads at its start only.";
    };
  };

  config = mkIf cfg.enable {
    services.nixfleet-agent = {
      flags = {
        control-plane-url = cfg.controlPlaneUrl;
        machine-id = cfg.machineId;
        poll-interval = cfg.pollInterval;
        trust-file = cfg.trustFile;
        state-dir = cfg.stateDir;
        ca-cert = cfg.tls.caCert;
        client-cert = lib.defaultTo "/var/lib/nixfleet/agent-cert.pem" cfg.tls.clientCert;
        client-key = cfg.tls.clientKey;
        ssh-host-key-file = cfg.sshHostKeyFile;
        bootstrap-token-file = cfg.bootstrapTokenFile;
        compliance-gate-mode = cfg.complianceGate.mode;
        renewal-threshold-fraction = cfg.renewalThresholdFraction;
        health-checks-config = if hasChecks then healthFile else null;
        settle-time = "${toString cfg.settleTimeSeconds}s";
        prefetch-spread =
          if cfg.prefetchSpreadSeconds == null then null else "${toString cfg.prefetchSpreadSeconds}s";
        max-manifest-age = cfg.maxManifestAge;
        allow-v1-control-plane = cfg.allowV1ControlPlane;
        allow-remote-rollback = cfg.allowRemoteRollback;
        allow-volatile-state = cfg.allowVolatileState;
        metrics-file = cfg.metricsFile;
        log-level = if cfg.logLevel == "info" then null else cfg.logLevel;
      };
      triggers =
        import ../../nixops/etc.nix lib config [
          cfg.trustFile
          cfg.tls.caCert
          healthFile
        ]
        ++ (secrets [ cfg.tls.caCert ]).triggers;
    };

    assertions = [
      {
        assertion = config.nixfleet.trust.ciReleaseKey.current != null || !ownTrust;
        message = "services.nixfleet-agent trusts nobody: set nixfleet.trust.ciReleaseKey.current to the public half that 'nixfleet keygen' printed, or name a trustFile of your own.";
      }
      {
        assertion = lib.hasPrefix "https://" cfg.controlPlaneUrl;
        message = "services.nixfleet-agent.controlPlaneUrl (${cfg.controlPlaneUrl}) must begin with https://, for example \"https://cp.example.com:8080\".";
      }
      {
        # The agent would not start with them, and the host return from every new system.
        assertion = sameNames == [ ];
        message = "services.nixfleet-agent.healthChecks: two probes have the name ${lib.concatStringsSep ", " sameNames}; rename one, since the agent tells them apart by their names.";
      }
      {
        assertion = lib.all (file: file == null || !(lib.hasPrefix builtins.storeDir file)) [
          cfg.bootstrapTokenFile
          cfg.tls.clientKey
          cfg.sshHostKeyFile
        ];
        message = "services.nixfleet-agent: a key or token file lies in the Nix store, where every user reads it; give a path at run time, such as one of agenix or sops-nix.";
      }
    ];

    warnings =
      let
        inherit (secrets [ cfg.bootstrapTokenFile cfg.tls.caCert ]) missing;
      in
      lib.optional (missing != [ ])
        "services.nixfleet-agent reads ${lib.concatStringsSep ", " missing}, which no secret of this host declares, so that there is no such file.";

    environment.systemPackages = [ cfg.package ];

    # The agent refuses a system whose trust.json does not verify the release that brings
    # it, or that brings none where the running one did. A file outside of the store is
    # the operator's to keep.
    environment.etc =
      optionalAttrs ownTrust { "nixfleet/agent/trust.json".text = config.nixfleet.trust.json; }
      // optionalAttrs (!ownTrust && lib.hasPrefix builtins.storeDir (toString cfg.trustFile)) {
        "nixfleet/agent/trust.json".source = cfg.trustFile;
      }
      // optionalAttrs hasChecks {
        "nixfleet/agent/health-checks.json".text = builtins.toJSON {
          inherit (checks) mode http tcp exec units;
        };
      };
  };
}
