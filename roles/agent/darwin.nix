# services.nixfleet-agent for nix-darwin: the same agent under launchd.
{
  config,
  lib,
  pkgs,
  ...
}:
let
  inherit (lib) mkEnableOption mkIf mkOption types;
  cfg = config.services.nixfleet-agent;
  etcTriggers = import ../../nixops/etc.nix lib config;

  arguments =
    [
      (lib.getExe cfg.package)
      "agent"
      "run"
    ]
    ++ lib.mapAttrsToList (name: value: "--${name}=${toString value}") (
      lib.filterAttrs (_: value: value != null) {
        control-plane-url = cfg.controlPlaneUrl;
        machine-id = cfg.machineId;
        poll-interval = cfg.pollInterval;
        trust-file = "/etc/nixfleet/agent/trust.json";
        state-dir = cfg.stateDir;
        client-cert = "${cfg.stateDir}/agent-cert.pem";
        client-key = cfg.sshHostKeyFile;
        ssh-host-key-file = cfg.sshHostKeyFile;
        ca-cert = cfg.caCert;
        bootstrap-token-file = cfg.bootstrapTokenFile;
      }
    );
in
{
  _class = "darwin";
  imports = [ ../../pki/module.nix ];

  options.services.nixfleet-agent = {
    enable = mkEnableOption "the nixfleet agent";
    package = lib.mkPackageOption pkgs "nixfleet" { };
    controlPlaneUrl = mkOption {
      type = types.str;
      example = "https://cp.example.com:8080";
      description = "Base URL of the control plane.";
    };
    machineId = mkOption {
      type = types.str;
      default = config.networking.hostName;
      defaultText = lib.literalExpression "config.networking.hostName";
      description = "Name of this host in the fleet's declaration.";
    };
    pollInterval = mkOption {
      type = types.ints.positive;
      default = 60;
      description = "Seconds between two check-ins when the control plane does not hold them open.";
    };
    caCert = mkOption {
      type = types.nullOr types.str;
      default = null;
      description = "CA bundle that the control plane's certificate must chain to.";
    };
    bootstrapTokenFile = mkOption {
      type = types.nullOr types.str;
      default = null;
      description = "Path at run time of the bootstrap token.";
    };
    stateDir = mkOption {
      type = types.str;
      default = "/var/lib/nixfleet-agent";
      description = "Journal, mark, certificate and quarantine.";
    };
    sshHostKeyFile = mkOption {
      type = types.str;
      default = "/etc/ssh/ssh_host_ed25519_key";
      description = "The host's ssh key: the key of its certificate and of its reports.";
    };
  };

  config = mkIf cfg.enable {
    assertions = [
      {
        assertion = config.nixfleet.trust.ciReleaseKey.current != null;
        message = "services.nixfleet-agent trusts nobody: set nixfleet.trust.ciReleaseKey.current to the public half that 'nixfleet keygen' printed.";
      }
      {
        assertion = lib.hasPrefix "https://" cfg.controlPlaneUrl;
        message = "services.nixfleet-agent.controlPlaneUrl (${cfg.controlPlaneUrl}) must begin with https://, for example \"https://cp.example.com:8080\".";
      }
      {
        assertion = lib.all (file: file == null || !(lib.hasPrefix builtins.storeDir file)) [
          cfg.bootstrapTokenFile
          cfg.sshHostKeyFile
        ];
        message = "services.nixfleet-agent: a key or token file lies in the Nix store, where every user reads it; give a path at run time.";
      }
    ];

    environment.systemPackages = [ cfg.package ];
    environment.etc."nixfleet/agent/trust.json".text = config.nixfleet.trust.json;
    launchd.daemons.nixfleet-agent.serviceConfig = {
      ProgramArguments = arguments;
      EnvironmentVariables = {
        # Nix is nix-darwin's, or that of an installer which nix-darwin leaves alone.
        PATH = "/run/current-system/sw/bin:/nix/var/nix/profiles/default/bin:/usr/bin:/bin:/usr/sbin:/sbin";
        # launchd restarts what has another plist; nothing reads this.
        NIXFLEET_CONFIGURATION = builtins.hashString "sha256" (
          toString (etcTriggers [ "/etc/nixfleet/agent/trust.json" cfg.caCert ])
        );
      };
      KeepAlive = true;
      RunAtLoad = true;
      ThrottleInterval = 30;
      Umask = 63; # 0077
      StandardOutPath = "/var/log/nixfleet-agent.log";
      StandardErrorPath = "/var/log/nixfleet-agent.log";
    };
  };
}
