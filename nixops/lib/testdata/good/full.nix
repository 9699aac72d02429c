# Pins by tag and channel, lists, checks, and two teams merged.
{ mkFleet, mergeFleets, ... }:
mkFleet (mergeFleets [
  {
    hosts.web-01 = {
      system = "aarch64-linux";
      tags = [ "web" ];
      channel = "stable";
      pubkey = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIEgHWll+choVbi4Hmd5cwMUyTcbn6vHN1GJQho7FMhXd root@web-01";
      healthChecks = {
        mode = "enforce";
        http = [
          {
            name = "site";
            url = "http://127.0.0.1/";
          }
        ];
        units = [
          {
            name = "nginx";
            unit = "nginx.service";
          }
        ];
      };
      rebootPolicy = {
        mode = "window";
        window = "Sun 03:00";
      };
    };
    tags.web = {
      description = "serves people";
      pin = {
        commit = "4f1c0a9be27d5538c6a1f09d3b7e2460d8a5c913";
        reason = "season freeze";
      };
    };
    channels.stable = {
      rolloutPolicy = "staged";
      emergency = "CVE-2026-0001";
      maintenance = {
        timeZone = "Europe/Berlin";
        windows = [
          {
            opens = "Sat,Sun 02:00";
            minutes = 240;
          }
        ];
      };
    };
    rolloutPolicies.staged.waves = [ { selector.all = true; } ];
  }
  {
    hosts.mac-01 = {
      system = "aarch64-darwin";
      channel = "desk";
      pubkey = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIF4hLAmA5LOfwJchE0qgIQk3Tt/SYMDT0Dy1AcjWVFep";
    };
    channels.desk = {
      rolloutPolicy = "desk";
      pin = {
        commit = "9d3e7b5a1c0f2846e7d9b1350a6c8f2e4b7d9013";
        reason = "exam weeks";
        expiresAt = "2027-02-01T00:00:00Z";
      };
    };
    rolloutPolicies.desk = { };
    channelEdges = [
      {
        before = "stable";
        after = "desk";
      }
    ];
    revocations = [
      {
        hostname = "web-01";
        notBefore = "2026-02-20T00:00:00Z";
        reason = "key exposed";
      }
    ];
    bootstrapNonces = [
      {
        nonce = "5f0c1e7a9b3d42868e6fa1c7d2b09e34";
        hostname = "mac-01";
        expiresAt = "2026-03-02T12:00:00Z";
      }
    ];
  }
])
