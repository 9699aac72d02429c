# `and` and `not` are lowered to hosts; waves hold hosts of their channel, once.
{ mkFleet, ... }:
let
  host = n: tags: channel: {
    system = "x86_64-linux";
    inherit tags channel;
    pubkey = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIA${builtins.substring 0 42 (builtins.hashString "sha256" n)}";
  };
in
mkFleet {
  hosts = {
    a1 = host "a1" [ "web" "eu" ] "stable";
    a2 = host "a2" [ "web" "us" ] "stable";
    b1 = host "b1" [ "db" "eu" ] "stable";
    b2 = host "b2" [ "db" ] "edge";
  };
  channels = {
    stable.rolloutPolicy = "waves";
    edge.rolloutPolicy = "waves";
  };
  rolloutPolicies.waves = {
    strategy = "canary";
    failureThreshold = { minHosts = 2; minPercent = 10; };
    waves = [
      {
        selector.and = [
          { tags = [ "web" ]; }
          { not.tags = [ "us" ]; }
        ];
        soakSeconds = 90;
        mayBeEmpty = true;
      }
      {
        selector.tagsAny = [ "web" "eu" ];
        soakMinutes = 5;
        mayBeEmpty = false;
      }
      { selector.all = true; }
    ];
  };
  disruptionBudgets = [
    {
      selector.not.channel = "edge";
      maxInFlightPct = 50;
    }
    {
      selector.channel = "stable";
      maxInFlight = 2;
      slotUntil = "confirmed";
    }
  ];
}
