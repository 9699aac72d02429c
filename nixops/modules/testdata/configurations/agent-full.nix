# Every option of the agent, and every probe.
let
  # A certificate of a hundred years, whose key was thrown away.
  certificate = ''
    -----BEGIN CERTIFICATE-----
    MIIBtTCCAVugAwIBAgIUNmZdujcbK7SjT9lLopgRMpsDMoAwCgYIKoZIzj0EAwIw
    JzElMCMGA1UEAwwcaXNzdWluZy1jYS5mbGVldC5leGFtcGxlLmNvbTAgFw0yNjEx
    MjgxOTQwNDlaGA8yMTI2MTEwNDE5NDA0OVowJzElMCMGA1UEAwwcaXNzdWluZy1j
    YS5mbGVldC5leGFtcGxlLmNvbTBZMBMGByqGSM49AgEGCCqGSM49AwEHA0IABANh
    i/wI6wzlOB9d7TBiNcfhPZrzT1Ul7ceUXDcS7GHTzMdTjWWSGb/w/8TikWA5L0vW
    fnAuH/+3zGquv48ZMHyjYzBhMB0GA1UdDgQWBBRIkA138pkolmNz7SbSyJFqnX6q
    ljAfBgNVHSMEGDAWgBRIkA138pkolmNz7SbSyJFqnX6qljAPBgNVHRMBAf8EBTAD
    AQH/MA4GA1UdDwEB/wQEAwIBBjAKBggqhkjOPQQDAgNIADBFAiEAi7xY3BFSEb8S
    gwji21Hk9zFlWJE26Eqf3gG2xh9GOXACIG05ql48xP+XlYL0rAeXhF2XLFyynPN/
    U9ioGr/bEf6a
    -----END CERTIFICATE-----
  '';
in
{
  imports = [
    ../../../../roles/agent/module.nix
    ../../../../nixops/cache.nix
    ./trust.nix
  ];
  networking.hostName = "db-01";
  fileSystems."/".fsType = "tmpfs";
  fileSystems."/var/lib".fsType = "ext4";
  fileSystems."/srv".fsType = "ext4";
  services.nixfleet-cache = {
    enable = true;
    cacheUrl = "https://cache.example.com";
    publicKey = "cache.example.com-2:AQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQE=";
  };
  nixfleet.trust = {
    ciReleaseKey = {
      current.algorithm = "ed25519";
      previous = {
        algorithm = "ecdsa-p256";
        public = "WzaJDay9fJqWu3Sh7iiz0tdbcuCaIO8lz45v2KnwNQ0OFL7Y1GgqNNg1OL3/W5bommZm7A21dF0C+hIQBy33Wg==";
      };
      successor.public = "oJql9HpnWYAv+VX43C0qFKXJnSO+l/hkEn/5ODRVpPA=";
      retireAt = "2027-01-01T00:00:00Z";
      rejectBefore = "2026-02-01T00:00:00Z";
    };
    rootCAPem = certificate;
    issuanceCAPems = [ certificate ];
    orgRootKey.previous = "0EqyMnQrtKs6E2i9RhXk5tAiSrcaAWuvhSCjMsl3hzc=";
    orgRootKey.rejectBefore = "2026-02-01T00:00:00Z";
  };
  services.nixfleet-agent = {
    enable = true;
    controlPlaneUrl = "https://cp.example.com:8080";
    machineId = "database one";
    pollInterval = 30;
    renewalThresholdFraction = 0.4;
    tls = {
      caCert = "/etc/nixfleet/root 100% $HOME.pem";
      clientCert = "/srv/nixfleet/agent-cert.pem";
    };
    bootstrapTokenFile = "/run/agenix/bootstrap-token";
    stateDir = "/srv/nixfleet-agent";
    tags = [
      "db"
      "eu"
    ];
    healthChecks = {
      mode = "permissive";
      http = [
        {
          name = "site";
          url = "http://127.0.0.1:80/health";
          expectStatus = 204;
          gracePeriodSeconds = 30;
        }
      ];
      tcp = [
        {
          name = "database";
          port = 5432;
        }
      ];
      exec = [
        {
          name = "ready";
          command = [
            "/run/current-system/sw/bin/pg_isready"
            "--quiet"
          ];
        }
      ];
      units = [
        {
          name = "postgresql";
          unit = "postgresql.service";
        }
      ];
    };
    complianceGate.mode = "enforce";
    deferOn = [
      "kernel"
      "initrd"
    ];
    rebootPolicy = {
      mode = "window";
      window = "Sun 03:00";
    };
    allowV1ControlPlane = true;
    allowRemoteRollback = true;
    maxManifestAge = "12h";
    prefetchSpreadSeconds = 60;
    settleTimeSeconds = 20;
    allowVolatileState = true;
    metricsFile = "/var/lib/node-exporter/nixfleet.prom";
    logLevel = "debug";
  };
}
