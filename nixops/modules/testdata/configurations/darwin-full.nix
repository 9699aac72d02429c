# Every option of an agent under launchd, and every probe.
{
  imports = [
    ../../../../roles/agent/darwin.nix
    ./trust.nix
  ];
  networking.hostName = "mac-02";
  services.nixfleet-agent = {
    enable = true;
    controlPlaneUrl = "https://cp.example.com:8080";
    machineId = "build farm 100%";
    pollInterval = 30;
    settleTimeSeconds = 20;
    renewalThresholdFraction = 0.4;
    tls = {
      caCert = "/etc/nixfleet/fleet-root.cert.pem";
      clientCert = "/var/db/nixfleet/agent-cert.pem";
    };
    bootstrapTokenFile = "/var/root/bootstrap-token";
    stateDir = "/var/db/nixfleet-agent";
    tags = [
      "mac"
      "eu"
    ];
    healthChecks = {
      mode = "permissive";
      http = [
        {
          name = "site";
          url = "http://127.0.0.1:8000/health";
          gracePeriodSeconds = 30;
        }
      ];
      tcp = [
        {
          name = "ssh";
          port = 22;
        }
      ];
      exec = [
        {
          name = "nix";
          command = [
            "/run/current-system/sw/bin/nix"
            "store"
            "info"
          ];
        }
      ];
      units = [
        {
          name = "daemon";
          unit = "org.nixos.nix-daemon";
        }
      ];
    };
    complianceGate.mode = "permissive";
    prefetchSpreadSeconds = 60;
    allowV1ControlPlane = true;
    allowRemoteRollback = true;
    allowVolatileState = true;
    maxManifestAge = "12h";
    metricsFile = "/var/db/nixfleet-agent/nixfleet.prom";
    logLevel = "debug";
  };
}
