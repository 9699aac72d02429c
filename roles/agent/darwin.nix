# services.nixfleet-agent for nix-darwin: the same agent under launchd.
{ config, lib, ... }:
let
  cfg = config.services.nixfleet-agent;
  flagWords = import ../../nixops/flags.nix lib (name: value: "--${name}=${toString value}");
in
{
  _class = "darwin";
  imports = [ ./common.nix ];

  config = lib.mkIf cfg.enable {
    warnings = lib.optional (cfg.complianceGate.mode == "enforce")
      "services.nixfleet-agent.complianceGate.mode = \"enforce\": there is no collector of evidence under launchd, so that every new system will be sent back.";

    launchd.daemons.nixfleet-agent.serviceConfig = {
      # The volume of the store is mounted while daemons are started already, and of one
      # whose program is not there launchd tires.
      ProgramArguments = [
        "/bin/sh"
        "-c"
        "/bin/wait4path /nix/store && exec \"$@\""
        "nixfleet-agent"
        (lib.getExe cfg.package)
        "agent"
        "run"
      ]
      ++ flagWords cfg.flags;
      EnvironmentVariables = {
        # Nix is nix-darwin's, or that of an installer which nix-darwin leaves alone.
        PATH = "/run/current-system/sw/bin:/nix/var/nix/profiles/default/bin:/usr/bin:/bin:/usr/sbin:/sbin";
        # launchd restarts what has another plist; nothing reads this.
        NIXFLEET_CONFIGURATION = builtins.hashString "sha256" (toString cfg.triggers);
      }
      // lib.optionalAttrs (cfg.tags != [ ]) { NIXFLEET_TAGS = lib.concatStringsSep "," cfg.tags; };
      KeepAlive = true;
      RunAtLoad = true;
      ThrottleInterval = 30;
      Umask = 63; # 0077
      StandardOutPath = "/var/log/nixfleet-agent.log";
      StandardErrorPath = "/var/log/nixfleet-agent.log";
    };
  };
}
