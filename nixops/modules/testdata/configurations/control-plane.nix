# A control plane as the documentation sets it up: releases from git.
{
  imports = [
    ../../../../roles/cp/module.nix
    ./trust.nix
  ];
  services.nixfleet-control-plane = {
    enable = true;
    openFirewall = true;
    agentCnSuffix = "fleet.example.com";
    source.url = "git+ssh://git@forge.example.com/fleet.git#main";
    source.sshKeyFile = "/run/agenix/deploy-key";
    source.knownHostsFile = "/etc/nixfleet/known_hosts";
    webhookTokenFile = "/run/agenix/webhook-token";
    tls.cert = "/run/agenix/server.cert.pem";
    tls.key = "/run/agenix/server.key.pem";
    tls.clientCa = "/run/agenix/client-ca.pem";
    fleetCaCert = "/run/agenix/issuing-ca.cert.pem";
    fleetCaKey = "/run/agenix/issuing-ca.key.pem";
  };
}
