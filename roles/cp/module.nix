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
    tokenFile = path "Path at run time of the bearer token for both URLs; falls back to that of {option}`channelRefsSource`.";
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
  };
  credential = name: "%d/${name}";
  ifCredential = flag: name: optionalAttrs (credentials ? ${name}) { ${flag} = credential name; };

  pairFlags =
    prefix: name: s:
    optionalAttrs (s.artifactUrl != null && s.signatureUrl != null) (
      {
        "${prefix}-artifact-url" = s.artifactUrl;
        "${prefix}-signature-url" = s.signatureUrl;
      }
      // ifCredential "${prefix}-token-file" "${name}-token"
    );

  flags =
    {
      listen = cfg.listen;
      tls-cert = credential "tls-cert";
      tls-key = credential "tls-key";
      trust-file = cfg.trustFile;
      freshness-window-secs = cfg.freshnessWindowMinutes * 60;
      confirm-deadline-secs = cfg.confirmDeadlineSecs;
      agent-cn-suffix = cfg.agentCnSuffix;
      audit-log = cfg.auditLogPath;
      state-dir = "/var/lib/nixfleet-cp";
    }
    // ifCredential "client-ca" "client-ca"
    // ifCredential "fleet-ca-cert" "fleet-ca-cert"
    // ifCredential "fleet-ca-key" "fleet-ca-key"
    // ifCredential "webhook-token-file" "webhook-token"
    // optionalAttrs (cfg.dbPath != null) { db-path = cfg.dbPath; }
    // optionalAttrs (cfg.source.url != null) (
      {
        source = cfg.source.url;
        release-dir = cfg.source.releaseDir;
      }
      // ifCredential "source-token-file" "source-token"
      // ifCredential "source-ssh-key-file" "source-ssh-key"
      // optionalAttrs (cfg.source.knownHostsFile != null) {
        source-known-hosts-file = cfg.source.knownHostsFile;
      }
    )
    // optionalAttrs (cfg.source.url == null) {
      artifact = cfg.artifactPath;
      signature = cfg.signaturePath;
      observed = cfg.observedPath;
    }
    // pairFlags "channel-refs" "channel-refs" cfg.channelRefsSource
    // pairFlags "revocations" "revocations" cfg.revocationsSource
    // pairFlags "bootstrap-nonces" "bootstrap-nonces" cfg.bootstrapNoncesSource
    //
      optionalAttrs
        (cfg.rolloutsSource.artifactUrlTemplate != null && cfg.rolloutsSource.signatureUrlTemplate != null)
        (
          {
            rollouts-source-artifact-url-template = cfg.rolloutsSource.artifactUrlTemplate;
            rollouts-source-signature-url-template = cfg.rolloutsSource.signatureUrlTemplate;
          }
          // ifCredential "rollouts-source-token-file" "rollouts-source-token"
        )
    // optionalAttrs (cfg.rolloutsDir != null) { rollouts-dir = cfg.rolloutsDir; }
    // optionalAttrs (cfg.closureUpstream != null) { closure-upstream = cfg.closureUpstream; }
    // optionalAttrs (cfg.agentCertValiditySecs != null) {
      agent-cert-validity-secs = cfg.agentCertValiditySecs;
    }
    // optionalAttrs (cfg.tpmCaPubkeyRaw != null) { tpm-ca-pubkey-raw = cfg.tpmCaPubkeyRaw; }
    // optionalAttrs (cfg.tpmCaSignWrapper != null) { tpm-ca-sign-wrapper = cfg.tpmCaSignWrapper; }
    // optionalAttrs cfg.strict { strict = true; }
    // optionalAttrs cfg.singleCa { single-ca = true; };

  # systemd expands %d; every other percent sign is the operator's own.
  argument =
    name: value:
    let
      text = if builtins.isBool value then "" else "=${toString value}";
      escaped =
        if lib.hasPrefix "=%d/" text then text else lib.replaceStrings [ "%" "$" ] [ "%%" "$$" ] text;
    in
    lib.escapeShellArg "--${name}${escaped}";

  port = lib.toInt (lib.last (lib.splitString ":" cfg.listen));
  secretsOnThisHost = lib.attrNames (
    (config.age or { }).secrets or { } // (config.sops or { }).secrets or { }
  );
in
{
  imports = [ ../../pki/module.nix ];

  options.services.nixfleet-control-plane = {
    enable = mkEnableOption "the nixfleet control plane";
    package = lib.mkPackageOption pkgs "nixfleet" { };

    listen = mkOption {
      type = types.str;
      default = "0.0.0.0:8080";
      description = "Address and port to listen on.";
    };
    openFirewall = mkOption {
      type = types.bool;
      default = false;
      description = "Open the port of {option}`listen` in the firewall.";
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
          branch after `#`. Every file of a release is then read from one commit.
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

    artifactPath = mkOption {
      type = types.str;
      default = "/var/lib/nixfleet-cp/fleet/releases/fleet.resolved.json";
      description = "Local release, used when no {option}`source.url` is set.";
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

    fleetCaCert = path "Path at run time of the issuing CA's certificate.";
    fleetCaKey = path "Path at run time of the issuing CA's key. Without it nobody can enrol or renew.";
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
    assertions = [
      {
        assertion = cfg.tls.cert != null && cfg.tls.key != null;
        message = "services.nixfleet-control-plane.tls.cert and .key are needed; 'nixfleet keygen' makes both.";
      }
      {
        assertion = !(lib.any (lib.hasInfix "org-root") secretsOnThisHost);
        message = "The private half of the organisation's root key is among the secrets of the control-plane host. Take this host out of its recipients: whoever holds the control plane could admit hosts of his own.";
      }
      {
        assertion = lib.all (file: !(lib.hasPrefix builtins.storeDir (toString file))) (lib.attrValues credentials);
        message = "services.nixfleet-control-plane: a key or token file lies in the Nix store, where every user reads it; give a path at run time, such as one of agenix or sops-nix.";
      }
      {
        assertion = config.nixfleet.trust.ciReleaseKey.current != null || cfg.trustFile != "/etc/nixfleet/cp/trust.json";
        message = "services.nixfleet-control-plane trusts nobody: set nixfleet.trust.ciReleaseKey.current to the public half that 'nixfleet keygen' printed, or name a trustFile of your own.";
      }
      {
        assertion = (cfg.tpmCaPubkeyRaw == null) == (cfg.tpmCaSignWrapper == null);
        message = "services.nixfleet-control-plane: tpmCaPubkeyRaw and tpmCaSignWrapper stand together; set both or neither.";
      }
    ];

    environment.systemPackages = [ cfg.package ];
    environment.etc."nixfleet/cp/trust.json".text = config.nixfleet.trust.json;
    networking.firewall.allowedTCPPorts = mkIf cfg.openFirewall [ port ];

    systemd.services.nixfleet-control-plane = {
      description = "nixfleet control plane";
      wantedBy = [ "multi-user.target" ];
      wants = [ "network-online.target" ];
      after = [ "network-online.target" ];
      restartTriggers = [ config.nixfleet.trust.json ];
      path = [
        pkgs.gitMinimal
        pkgs.openssh
      ];
      preStart = mkIf (cfg.source.url == null) ''
        if [ ! -e ${lib.escapeShellArg cfg.observedPath} ]; then
          printf '%s\n' '{"channelRefs":{},"lastRolledRefs":{},"hostState":{},"activeRollouts":[]}' > ${lib.escapeShellArg cfg.observedPath}
        fi
      '';

      serviceConfig = {
        Type = "notify";
        NotifyAccess = "main";
        ExecStart = lib.concatStringsSep " " (
          [ "${lib.getExe cfg.package} cp serve" ] ++ lib.mapAttrsToList argument flags
        );
        Restart = "always";
        RestartSec = 10;
        WatchdogSec = 60;
        TimeoutStopSec = 30;

        DynamicUser = true;
        StateDirectory = "nixfleet-cp";
        StateDirectoryMode = "0750";
        UMask = "0027";
        LoadCredential = lib.mapAttrsToList (name: file: "${name}:${file}") credentials;

        CapabilityBoundingSet = "";
        DevicePolicy = "closed";
        DeviceAllow = lib.optional (cfg.tpmCaSignWrapper != null) "/dev/tpmrm0 rw";
        LockPersonality = true;
        MemoryDenyWriteExecute = true;
        NoNewPrivileges = true;
        PrivateDevices = cfg.tpmCaSignWrapper == null;
        PrivateTmp = true;
        PrivateUsers = true;
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
        RemoveIPC = true;
        RestrictAddressFamilies = [
          "AF_INET"
          "AF_INET6"
          "AF_UNIX"
        ];
        RestrictNamespaces = true;
        RestrictRealtime = true;
        RestrictSUIDSGID = true;
        SystemCallArchitectures = "native";
        SystemCallErrorNumber = "EPERM";
        SystemCallFilter = [
          "@system-service"
          "~@privileged"
          "~@resources"
        ];
      };
    };

    # A credential is a copy made at start, so a renewed file must start the service anew.
    systemd.paths.nixfleet-control-plane-credentials = {
      wantedBy = [ "multi-user.target" ];
      pathConfig.PathChanged = lib.attrValues credentials;
    };
    systemd.services.nixfleet-control-plane-credentials = {
      description = "restart of the nixfleet control plane after a change of its credentials";
      serviceConfig = {
        Type = "oneshot";
        ExecStart = "${config.systemd.package}/bin/systemctl try-restart nixfleet-control-plane.service";
      };
    };

    # What `ssh root@cp sqlite3 …` of the operator's recipes needs.
    environment.defaultPackages = [ pkgs.sqlite ];
  };
}
