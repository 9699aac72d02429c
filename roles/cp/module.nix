# services.nixfleet-control-plane: routes signed intent to the agents of a fleet.
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
  cfg = config.services.nixfleet-control-plane;

  path =
    description:
    mkOption {
      type = types.nullOr types.str;
      default = null;
      inherit description;
    };

  pair = what: {
    artifactUrl = path "URL of ${what}.";
    signatureUrl = path "URL of the detached signature of ${what}.";
    tokenFile = path "Path at run time of the bearer token for both URLs; falls back to {option}`services.nixfleet-control-plane.channelRefsSource.tokenFile`.";
  };

  # Files that belong to other users reach the service as credentials: it runs under
  # a user that does not exist until it starts.
  credentials = lib.filterAttrs (_: file: file != null) {
    tls-cert = cfg.tls.cert;
    tls-key = cfg.tls.key;
    client-ca = cfg.tls.clientCa;
    fleet-ca-cert = cfg.fleetCaCert;
    fleet-ca-key = cfg.fleetCaKey;
    source-token = cfg.source.tokenFile;
    source-ssh-key = cfg.source.sshKeyFile;
    webhook-token = cfg.webhookTokenFile;
    channel-refs-token = cfg.channelRefsSource.tokenFile;
    revocations-token = cfg.revocationsSource.tokenFile;
    bootstrap-nonces-token = cfg.bootstrapNoncesSource.tokenFile;
    rollouts-source-token = cfg.rolloutsSource.tokenFile;
    notify-webhook-secret = cfg.notify.webhook.secretFile;
    notify-alertmanager-token = cfg.notify.alertmanager.tokenFile;
    notify-mail-password = cfg.notify.mail.passwordFile;
  };
  credential = name: if credentials ? ${name} then { credential = name; } else null;

  # One token may be for all sources, also where the fleet document comes from elsewhere.
  tokenOf = name: lib.findFirst (c: c != null) null (map credential [ "${name}-token" "channel-refs-token" ]);

  pairFlags =
    name: s:
    optionalAttrs (s.artifactUrl != null && s.signatureUrl != null) {
      "${name}-artifact-url" = s.artifactUrl;
      "${name}-signature-url" = s.signatureUrl;
      "${name}-token-file" = tokenOf name;
    };

  flags = {
    inherit (cfg) listen strict;
    page-listen = cfg.pageListen;
    tls-cert = credential "tls-cert";
    tls-key = credential "tls-key";
    client-ca = credential "client-ca";
    fleet-ca-cert = credential "fleet-ca-cert";
    fleet-ca-key = credential "fleet-ca-key";
    webhook-token-file = credential "webhook-token";
    trust-file = cfg.trustFile;
    freshness-window-secs = cfg.freshnessWindowMinutes * 60;
    confirm-deadline-secs = cfg.confirmDeadlineSecs;
    agent-cn-suffix = cfg.agentCnSuffix;
    agent-cert-validity-secs = cfg.agentCertValiditySecs;
    audit-log = cfg.auditLogPath;
    state-dir = "/var/lib/nixfleet-cp";
    db-path = cfg.dbPath;
    rollouts-dir = cfg.rolloutsDir;
    closure-upstream = cfg.closureUpstream;
    tpm-ca-pubkey-raw = cfg.tpmCaPubkeyRaw;
    tpm-ca-sign-wrapper = cfg.tpmCaSignWrapper;
    single-ca = cfg.singleCa;
    accept-release-without-heads = cfg.acceptReleaseWithoutHeads;
    legacy-hosts = cfg.legacyHosts;
    read-all-agents = cfg.readAllAgents;
    poll-interval = "${toString cfg.pollIntervalSeconds}s";
    checkin-interval = "${toString cfg.checkinIntervalSeconds}s";
    notify-webhook-url = cfg.notify.webhook.url;
    notify-webhook-secret-file = credential "notify-webhook-secret";
    notify-alertmanager-url = cfg.notify.alertmanager.url;
    notify-alertmanager-token-file = credential "notify-alertmanager-token";
    notify-mail-server = cfg.notify.mail.server;
    notify-mail-password-file = credential "notify-mail-password";
    notify-mail-from = cfg.notify.mail.from;
    notify-mail-to = cfg.notify.mail.to;
    notify-on = cfg.notify.on;
    notify-silent-after = "${toString cfg.notify.silentAfterMinutes}m";
    max-held = cfg.maxHeld;
    max-anonymous = cfg.maxAnonymous;
    max-handshakes = cfg.maxHandshakes;
    max-rate = cfg.maxRate;
    max-source-rate = cfg.maxSourceRate;
    log-level = if cfg.logLevel == "info" then null else cfg.logLevel;
    log-format = if cfg.logFormat == "json" then null else cfg.logFormat;
  }
  // (
    if cfg.source.url != null then
      {
        source = cfg.source.url;
        release-dir = cfg.source.releaseDir;
        source-token-file = credential "source-token";
        source-ssh-key-file = credential "source-ssh-key";
        source-known-hosts-file = cfg.source.knownHostsFile;
      }
    else
      {
        artifact = cfg.artifactPath;
        signature = cfg.signaturePath;
        observed = cfg.observedPath;
      }
  )
  // pairFlags "channel-refs" cfg.channelRefsSource
  // pairFlags "revocations" cfg.revocationsSource
  // pairFlags "bootstrap-nonces" cfg.bootstrapNoncesSource
  //
    optionalAttrs
      (cfg.rolloutsSource.artifactUrlTemplate != null && cfg.rolloutsSource.signatureUrlTemplate != null)
      {
        rollouts-source-artifact-url-template = cfg.rolloutsSource.artifactUrlTemplate;
        rollouts-source-signature-url-template = cfg.rolloutsSource.signatureUrlTemplate;
        rollouts-source-token-file = tokenOf "rollouts-source";
      };

  execStart = import ../../nixops/execstart.nix lib;
  etcTriggers = import ../../nixops/etc.nix lib config;
  secrets = import ../../nixops/secrets.nix lib config (lib.attrValues credentials);
  tpm = cfg.tpmCaSignWrapper != null;

  count =
    description:
    mkOption {
      type = types.nullOr types.ints.positive;
      default = null;
      inherit description;
    };

  kinds = [
    "rollout.halted"
    "rollout.recalled"
    "rollout.converged"
    "host.silent"
    "certificate.ending"
    "release.stale"
    "source.failing"
  ];

  ownTrust = cfg.trustFile == "/etc/nixfleet/cp/trust.json";
  port = lib.toInt (lib.last (lib.splitString ":" cfg.listen));
in
{
  _class = "nixos";
  imports = [ ../../pki/module.nix ];

  options.services.nixfleet-control-plane = {
    enable = mkEnableOption "the nixfleet control plane";
    package = lib.mkPackageOption pkgs "nixfleet" { };

    listen = mkOption {
      type = types.str;
      default = "0.0.0.0:8080";
      description = "Address and port to listen on.";
    };
    pageListen = path "Address and port of the page for operators' browsers; without one there is no page.";
    openFirewall = mkOption {
      type = types.bool;
      default = false;
      description = "Open the port of {option}`services.nixfleet-control-plane.listen` in the firewall.";
    };

    tls = {
      cert = path "Path at run time of the server certificate, PEM.";
      key = path "Path at run time of its key, PEM. Never a path in the Nix store.";
      clientCa = path "CA bundle of client certificates: the issuing CA, and the fleet root for operators.";
    };

    source = {
      url = mkOption {
        type = types.nullOr types.str;
        default = null;
        example = "git+ssh://git@forge.example.com/fleet.git#main";
        description = ''
          Where releases come from: `git+https://`, `git+ssh://` or `git+file://` with the
          branch after `#`. Every file of a release is then read from one commit. A directory
          that something else fills works as well.
        '';
      };
      releaseDir = mkOption {
        type = types.str;
        default = "releases";
        description = "Directory of the releases in the repository.";
      };
      tokenFile = path "Path at run time of the token for `git+https`.";
      sshKeyFile = path "Path at run time of the deploy key for `git+ssh`.";
      knownHostsFile = path "known_hosts file for `git+ssh`.";
    };
    webhookTokenFile = path "Path at run time of the token that a forge's webhook presents to announce a commit.";

    # Who is told what happens; docs/notifications.md.
    notify = {
      webhook = {
        url = path "URL that is told what happens, as standardwebhooks.com describes.";
        secretFile = path "Path at run time of the secret that signs what is sent to it: base64, or `whsec_` and base64.";
      };
      alertmanager = {
        url = path "Base URL of an Alertmanager that is told what holds.";
        tokenFile = path "Path at run time of the bearer token for it.";
      };
      mail = {
        server = path "Mail server: `smtps://user@host:465`, or `smtp://user@host:587` with STARTTLS.";
        passwordFile = path "Path at run time of the password of the mail server's user.";
        from = path "Address that mails are from.";
        to = mkOption {
          type = types.listOf types.str;
          default = [ ];
          example = [ "oncall@example.com" ];
          description = "Addresses that mails go to.";
        };
      };
      on = mkOption {
        type = types.listOf (types.enum kinds);
        default = [ ];
        example = [ "rollout.halted" ];
        description = "What is told. All of it when the list is empty.";
      };
      silentAfterMinutes = mkOption {
        type = types.ints.positive;
        default = 15;
        description = "Minutes without a word of a host after which people are told.";
      };
    };

    artifactPath = mkOption {
      type = types.str;
      default = "/var/lib/nixfleet-cp/fleet/releases/fleet.resolved.json";
      description = "Local release, used when no {option}`services.nixfleet-control-plane.source.url` is set.";
    };
    signaturePath = mkOption {
      type = types.str;
      default = cfg.artifactPath + ".sig";
      defaultText = lib.literalExpression ''config.services.nixfleet-control-plane.artifactPath + ".sig"'';
      description = "Signature of the local release.";
    };
    observedPath = mkOption {
      type = types.str;
      default = "/var/lib/nixfleet-cp/observed.json";
      description = "Fallback state for a v1 set-up. An empty one is made.";
    };
    trustFile = mkOption {
      type = types.path;
      default = "/etc/nixfleet/cp/trust.json";
      description = "Trust roots. The default is generated from {option}`nixfleet.trust`.";
    };
    freshnessWindowMinutes = mkOption {
      type = types.ints.positive;
      default = 43200;
      description = "Oldest release that is accepted at all, in minutes. Each channel's own window applies besides.";
    };
    strict = mkOption {
      type = types.bool;
      default = false;
      description = "Require client CA, revocation and nonce lists, and the protocol header.";
    };
    acceptReleaseWithoutHeads = mkOption {
      type = types.bool;
      default = false;
      description = ''
        Accept one release without heads after one with heads, as when a release tool of v1 takes over. It works once:
        its use is recorded in the state directory.
      '';
    };
    singleCa = mkOption {
      type = types.bool;
      default = false;
      description = "Agents' and operators' certificates come from one CA, as in a fleet without an issuing CA of its own.";
    };
    confirmDeadlineSecs = mkOption {
      type = types.ints.positive;
      default = 360;
      description = "Seconds a host has to confirm after its activation began.";
    };
    pollIntervalSeconds = mkOption {
      type = types.ints.between 1 60;
      default = 60;
      example = 10;
      description = "Seconds between two looks at the source. A webhook or `nixfleet cp poke` has it looked at at once.";
    };
    checkinIntervalSeconds = mkOption {
      type = types.ints.between 1 900;
      default = 60;
      example = 300;
      description = "Seconds to the next check-in that agents are told whose check-in is not held open; a host unheard of for three of these counts as offline.";
    };

    fleetCaCert = path "Path at run time of the issuing CA's certificate.";
    fleetCaKey = path "Path at run time of the issuing CA's key. Without it no agent can enrol or renew its certificate.";
    tpmCaPubkeyRaw = path "Raw P-256 public key (64 bytes) of an issuing CA that lives in the TPM.";
    tpmCaSignWrapper = path "Program that signs a file with the TPM's key and prints 64 raw bytes.";
    agentCnSuffix = mkOption {
      type = types.str;
      example = "fleet.example.com";
      description = "Suffix of the agents' certificate names, `agent-<host>.<suffix>`.";
    };
    agentCertValiditySecs = mkOption {
      type = types.nullOr types.ints.positive;
      default = null;
      example = 2592000;
      description = "Validity of agents' certificates in seconds; 30 days when unset.";
    };
    auditLogPath = mkOption {
      type = types.str;
      default = "/var/lib/nixfleet-cp/issuance.log";
      description = "Log of issued certificates, JSON lines.";
    };
    legacyHosts = mkOption {
      type = types.listOf types.str;
      default = [ ];
      example = [ "old-01" ];
      description = "Hosts whose certificate may still bear their bare name, without prefix and suffix.";
    };
    readAllAgents = mkOption {
      type = types.bool;
      default = false;
      description = "Let agents read the fleet-wide views, as a v1 control plane does. Operators always may.";
    };
    fleetSize = mkOption {
      type = types.ints.positive;
      default = 1000;
      example = 20000;
      description = "Hosts that this control plane is to serve, about. {option}`services.nixfleet-control-plane.memoryMax` follows from it.";
    };
    memoryMax = mkOption {
      type = types.nullOr types.ints.positive;
      default = 1024 + cfg.fleetSize / 8;
      defaultText = lib.literalExpression "1024 + config.services.nixfleet-control-plane.fleetSize / 8";
      description = ''
        Memory that the service may use, in MiB: a GiB, and 128 KiB for each host, which is about
        twice what a held check-in and the host's state take. What a source sends cannot take
        more than that from the machine: the service is killed and starts again. Its own
        collector of garbage works harder from nine tenths on. null sets no bound.
      '';
    };
    maxHeld = count "Check-ins held open at once; the control plane answers the rest at once. 100000 when unset.";
    maxAnonymous = count "Connections without a client certificate at once; 256 when unset.";
    maxHandshakes = count "TLS handshakes at once; 256 when unset.";
    maxRate = count "Requests a second of one host in the long run, a minute's worth at once; 20 when unset.";
    maxSourceRate = count "Requests a second without a certificate from one address, five seconds' worth at once; 50 when unset. Raise it where thousands of hosts enrol from behind one address.";
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
    logFormat = mkOption {
      type = types.enum [
        "json"
        "pretty"
      ];
      default = "json";
      description = "Form of the log: objects for machines, or lines for people.";
    };
    dbPath = mkOption {
      type = types.nullOr types.str;
      default = "/var/lib/nixfleet-cp/state.db";
      description = "State database. Its loss costs one check-in cycle of view.";
    };
    closureUpstream = path "Base URL of the binary cache that `/v1/agent/closure` asks.";
    rolloutsDir = path "Directory of manifests, tried before any source.";

    channelRefsSource = pair "the fleet document";
    revocationsSource = pair "the revocation list";
    bootstrapNoncesSource = pair "the list of bootstrap nonces";
    rolloutsSource = {
      artifactUrlTemplate = path "URL of a manifest, with `{rolloutId}` in it.";
      signatureUrlTemplate = path "URL of its signature, with `{rolloutId}` in it.";
      tokenFile = path "Path at run time of the bearer token for both.";
    };
  };

  config = mkIf cfg.enable {
    assertions = import ./assertions.nix {
      inherit
        config
        lib
        cfg
        credentials
        ownTrust
        tpm
        ;
    };

    warnings =
      lib.optional (ownTrust && config.nixfleet.trust.orgRootKey.current == null)
        "services.nixfleet-control-plane: no host can enrol until nixfleet.trust.orgRootKey.current is set to the public half that 'nixfleet keygen' printed."
      ++
        lib.optional (cfg.fleetCaKey == null && !tpm)
          "services.nixfleet-control-plane: no host can enrol or renew without an issuing CA; set fleetCaCert and fleetCaKey to those of 'nixfleet keygen'."
      ++
        lib.optional (secrets.missing != [ ])
          "services.nixfleet-control-plane reads ${lib.concatStringsSep ", " secrets.missing}, which no secret of this host declares: without the file the unit ends with status=243/CREDENTIALS before it starts.";

    # sqlite3 is what the recipes that look into state.db by hand call.
    environment.systemPackages = [
      cfg.package
      pkgs.sqlite
    ];
    environment.etc = mkIf ownTrust { "nixfleet/cp/trust.json".text = config.nixfleet.trust.json; };
    networking.firewall.allowedTCPPorts = mkIf cfg.openFirewall [ port ];

    systemd.services.nixfleet-control-plane = {
      description = "nixfleet control plane";
      wantedBy = [ "multi-user.target" ];
      wants = [ "network-online.target" ];
      after = [ "network-online.target" ];
      restartTriggers =
        etcTriggers ([ cfg.trustFile cfg.source.knownHostsFile ] ++ lib.attrValues credentials)
        ++ secrets.triggers;
      path = [
        pkgs.gitMinimal
        pkgs.openssh
      ];
      environment = optionalAttrs (cfg.memoryMax != null) {
        GOMEMLIMIT = "${toString (cfg.memoryMax * 9 / 10)}MiB";
      };
      preStart = mkIf (cfg.source.url == null) ''
        if [ ! -e ${lib.escapeShellArg cfg.observedPath} ]; then
          printf '%s\n' '{"channelRefs":{},"lastRolledRefs":{},"hostState":{},"activeRollouts":[]}' > ${lib.escapeShellArg cfg.observedPath}
        fi
      '';

      serviceConfig = {
        Type = "notify";
        NotifyAccess = "main";
        ExecStart = execStart [ (lib.getExe cfg.package) "cp" "serve" ] flags;
        Restart = "always";
        RestartSec = 10;
        WatchdogSec = 60;
        TimeoutStopSec = 30;

        DynamicUser = true;
        StateDirectory = "nixfleet-cp";
        StateDirectoryMode = "0750";
        UMask = "0027";
        # Each held check-in is a connection; the filter below keeps the process from
        # raising its own limit.
        LimitNOFILE = 524288;
        # A dump would hold keys and tokens.
        LimitCORE = 0;
        LoadCredential = lib.mapAttrsToList (name: file: "${name}:${file}") credentials;

        CapabilityBoundingSet = "";
        DevicePolicy = "closed";
        DeviceAllow = lib.optional tpm "/dev/tpmrm0 rw";
        LockPersonality = true;
        MemoryDenyWriteExecute = true;
        NoNewPrivileges = true;
        PrivateDevices = !tpm;
        PrivateTmp = true;
        PrivateUsers = !tpm;
        # Not ProcSubset = "pid": Go reads in /proc/sys how many connections may wait to
        # be accepted, and without it takes 128, too few for a fleet that comes back.
        ProtectClock = true;
        ProtectControlGroups = true;
        ProtectHome = true;
        ProtectHostname = true;
        ProtectKernelLogs = true;
        ProtectKernelModules = true;
        ProtectKernelTunables = true;
        ProtectProc = "invisible";
        ProtectSystem = "strict";
        RemoveIPC = true;
        RestrictAddressFamilies = [
          "AF_INET"
          "AF_INET6"
          "AF_UNIX"
        ];
        RestrictNamespaces = true;
        RestrictRealtime = true;
        RestrictSUIDSGID = true;
        SupplementaryGroups = lib.optional tpm "tss";
        SystemCallArchitectures = "native";
        SystemCallErrorNumber = "EPERM";
        SystemCallFilter = [
          "@system-service"
          "~@privileged"
          "~@resources"
        ];
      }
      // optionalAttrs (cfg.memoryMax != null) { MemoryMax = "${toString cfg.memoryMax}M"; };
    };

    # A credential is a copy made at start, so a renewed file must start the service
    # anew. Files are renewed several at once: that may not exhaust a start limit. It
    # sees files that are written or replaced where they lie; secrets of agenix and
    # sops-nix, which switch a link above the file, restart by the triggers of the unit.
    systemd.paths.nixfleet-control-plane-credentials = {
      description = "credentials of the nixfleet control plane";
      wantedBy = [ "multi-user.target" ];
      pathConfig.PathChanged = lib.unique (lib.attrValues credentials);
    };
    systemd.services.nixfleet-control-plane-credentials = {
      description = "restart of the nixfleet control plane after a change of its credentials";
      startLimitIntervalSec = 0;
      serviceConfig = {
        Type = "oneshot";
        ExecStart = "${config.systemd.package}/bin/systemctl try-restart nixfleet-control-plane.service";
        CapabilityBoundingSet = "";
        IPAddressDeny = "any";
        LockPersonality = true;
        MemoryDenyWriteExecute = true;
        NoNewPrivileges = true;
        PrivateDevices = true;
        PrivateNetwork = true;
        PrivateTmp = true;
        ProcSubset = "pid";
        ProtectClock = true;
        ProtectControlGroups = true;
        ProtectHome = true;
        ProtectHostname = true;
        ProtectKernelLogs = true;
        ProtectKernelModules = true;
        ProtectKernelTunables = true;
        ProtectProc = "invisible";
        ProtectSystem = "strict";
        RestrictAddressFamilies = "AF_UNIX";
        RestrictNamespaces = true;
        RestrictRealtime = true;
        RestrictSUIDSGID = true;
        SystemCallArchitectures = "native";
        SystemCallFilter = [
          "@system-service"
          "~@privileged"
          "~@resources"
        ];
        UMask = "0077";
      };
    };
  };
}
