# What the fleet is: hosts, channels, and who is updated when.
#
# A host's public key and its token are not here: flake.nix reads them from what
# `nixfleet host prepare NAME --dir secrets/NAME` wrote. A host that has a key already is
# declared with it: pubkey = "ssh-ed25519 …"; (its /etc/ssh/ssh_host_ed25519_key.pub).
{
  hosts = {
    web-01 = {
      system = "x86_64-linux";
      channel = "stable";
      tags = [
        "canary"
        "web"
      ];
    };
    web-02 = {
      system = "x86_64-linux";
      channel = "stable";
      tags = [ "web" ];
    };

    # The machine that routes releases takes them like every other.
    control-plane = {
      system = "x86_64-linux";
      channel = "control-plane";
    };
  };

  channels = {
    stable = {
      rolloutPolicy = "canary";
      freshnessWindow = 1440; # minutes for which a signature is believed
      signingIntervalMinutes = 60; # how often CI signs anew
      # With frameworks the mode is "enforce", unless it is written: every host then needs a
      # collector of evidence.
      compliance = {
        frameworks = [ ];
        mode = "disabled";
      };
    };
    control-plane = {
      rolloutPolicy = "single";
      freshnessWindow = 1440;
      signingIntervalMinutes = 60;
      compliance = {
        frameworks = [ ];
        mode = "disabled";
      };
    };
  };

  rolloutPolicies = {
    canary = {
      strategy = "canary";
      # What a host that fails does to the others: "halt" leaves those on the new release
      # that have proven it, "rollback-and-halt" sends them back as well.
      onHealthFailure = "rollback-and-halt";
      healthGate.systemdFailedUnits.max = 0;
      waves = [
        {
          selector.tags = [ "canary" ];
          soakMinutes = 30;
        }
        {
          selector.all = true;
          soakMinutes = 0;
        }
      ];
    };
    single = {
      strategy = "all-at-once";
      onHealthFailure = "rollback-and-halt";
      healthGate.systemdFailedUnits.max = 0;
    };
  };

  # The web servers prove a release before the control plane takes it.
  channelEdges = [
    {
      gates = "stable";
      gated = "control-plane";
      reason = "the control plane goes last";
    }
  ];

  # Never more than one web server at a time.
  disruptionBudgets = [
    {
      selector.tags = [ "web" ];
      maxInFlight = 1;
    }
  ];

  # Tokens of hosts that were not prepared in secrets/, as `nixfleet mint-token` prints them.
  bootstrapNonces = [ ];

  # { hostname = "web-02"; notBefore = "2026-03-01T12:00:00Z"; reason = "stolen"; }
  revocations = [ ];
}
