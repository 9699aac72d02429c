# What the fleet is: hosts, channels, and who is updated when.
{
  hosts = {
    web-01 = {
      system = "x86_64-linux";
      channel = "stable";
      tags = [
        "canary"
        "web"
      ];
      # pubkey = "ssh-ed25519 …";  # printed by `nixfleet host prepare web-01`
    };
    web-02 = {
      system = "x86_64-linux";
      channel = "stable";
      tags = [ "web" ];
      # pubkey = "ssh-ed25519 …";
    };
  };

  channels.stable = {
    rolloutPolicy = "canary";
    freshnessWindow = 1440; # minutes for which a signature is believed
    signingIntervalMinutes = 60; # how often CI signs anew
  };

  rolloutPolicies.canary = {
    strategy = "canary";
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

  # Never more than one web server at a time.
  disruptionBudgets = [
    {
      selector.tags = [ "web" ];
      maxInFlight = 1;
    }
  ];

  # Tokens that may be used once, as `nixfleet host prepare` prints them.
  bootstrapNonces = [ ];

  # { hostname = "web-02"; notBefore = "2026-03-01T12:00:00Z"; reason = "stolen"; }
  revocations = [ ];
}
