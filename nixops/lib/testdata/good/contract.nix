# The worked example of the artifact contract, before CI stamped it.
{ mkFleet, ... }:
mkFleet {
  frameworks = [ "nis2" ];
  hosts = {
    web-01 = {
      system = "x86_64-linux";
      tags = [ "web" ];
      channel = "edge";
      pubkey = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIEgHWll+choVbi4Hmd5cwMUyTcbn6vHN1GJQho7FMhXd";
    };
    web-02 = {
      system = "x86_64-linux";
      tags = [ "web" ];
      channel = "stable";
      pubkey = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIF4hLAmA5LOfwJchE0qgIQk3Tt/SYMDT0Dy1AcjWVFep";
    };
    db-01 = {
      system = "x86_64-linux";
      tags = [ "db" ];
      channel = "stable";
      pubkey = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIBfLefsrQSDysexl5BmNbgiyjoE/6wHkpACDm4XhgIDO";
      pin = {
        commit = "9d3e7b5a1c0f2846e7d9b1350a6c8f2e4b7d9013";
        reason = "schema freeze";
        expiresAt = "2026-06-01T00:00:00Z";
      };
    };
  };
  channels = {
    edge = {
      rolloutPolicy = "fast";
      freshnessWindow = 180;
    };
    stable = {
      rolloutPolicy = "staged";
      compliance = {
        frameworks = [ "nis2" ];
        mode = "enforce";
      };
    };
  };
  rolloutPolicies = {
    fast.onHealthFailure = "halt";
    staged = {
      healthGate.systemdFailedUnits.max = 0;
      onHealthFailure = "rollback-and-halt";
      waves = [
        {
          selector.tags = [ "web" ];
          soakMinutes = 10;
        }
        {
          selector.tags = [ "db" ];
          soakMinutes = 30;
        }
      ];
    };
  };
  edges = [
    {
      gated = "db-01";
      gates = "web-02";
      reason = "web first";
    }
  ];
  channelEdges = [
    {
      gates = "edge";
      gated = "stable";
      reason = "canary";
    }
  ];
  disruptionBudgets = [
    {
      selector.tags = [ "web" ];
      maxInFlight = 1;
    }
  ];
}
