# A control plane with the sources of protocol v1, and every option besides.
{
  imports = [
    ../../../../roles/cp/module.nix
    ./trust.nix
  ];
  services.nixfleet-control-plane = {
    enable = true;
    listen = "[::1]:9443";
    pageListen = "[::1]:9444";
    agentCnSuffix = "fleet.example.com";
    agentCertValiditySecs = 86400;
    freshnessWindowMinutes = 1440;
    confirmDeadlineSecs = 120;
    strict = true;
    singleCa = true;
    acceptReleaseWithoutHeads = true;
    legacyHosts = [
      "old-01"
      "old-02"
    ];
    readAllAgents = true;
    pollIntervalSeconds = 10;
    checkinIntervalSeconds = 300;
    maxHeld = 2000;
    maxAnonymous = 64;
    maxHandshakes = 32;
    maxRate = 50;
    maxSourceRate = 200;
    notify = {
      webhook.url = "https://hooks.example.com/fleet";
      webhook.secretFile = "/run/secrets/notify-webhook";
      alertmanager.url = "http://[::1]:9093";
      alertmanager.tokenFile = "/run/secrets/notify-alertmanager";
      mail.server = "smtps://fleet@mail.example.com";
      mail.passwordFile = "/run/secrets/notify-mail";
      mail.from = "fleet@example.com";
      mail.to = [
        "oncall@example.com"
        "audit@example.com"
      ];
      on = [
        "rollout.halted"
        "host.silent"
      ];
      silentAfterMinutes = 30;
    };
    logLevel = "warn";
    logFormat = "pretty";
    tls.cert = "/run/secrets/server.cert.pem";
    tls.key = "/run/secrets/server.key.pem";
    tls.clientCa = "/run/secrets/client-ca.pem";
    fleetCaCert = "/run/secrets/issuing-ca.cert.pem";
    fleetCaKey = "/run/secrets/issuing-ca.key.pem";
    closureUpstream = "https://cache.example.com";
    rolloutsDir = "/var/lib/nixfleet-cp/fleet/releases/rollouts";
    channelRefsSource = {
      artifactUrl = "https://forge.example.com/fleet/raw/releases/fleet.resolved.json?ref=main%2Fa";
      signatureUrl = "https://forge.example.com/fleet/raw/releases/fleet.resolved.json.sig";
      tokenFile = "/run/secrets/forge-token";
    };
    revocationsSource = {
      artifactUrl = "https://forge.example.com/fleet/raw/releases/revocations.json";
      signatureUrl = "https://forge.example.com/fleet/raw/releases/revocations.json.sig";
    };
    bootstrapNoncesSource = {
      artifactUrl = "https://forge.example.com/fleet/raw/releases/bootstrap-nonces.json";
      signatureUrl = "https://forge.example.com/fleet/raw/releases/bootstrap-nonces.json.sig";
    };
    rolloutsSource = {
      artifactUrlTemplate = "https://forge.example.com/fleet/raw/releases/rollouts/{rolloutId}.json";
      signatureUrlTemplate = "https://forge.example.com/fleet/raw/releases/rollouts/{rolloutId}.json.sig";
      tokenFile = "/run/secrets/forge-token";
    };
  };
}
