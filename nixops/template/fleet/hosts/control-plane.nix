# The control plane, and the cache beside it. Neither holds a key that a host
# believes: a cache key that lay here would let whoever took this machine sign
# other contents for a released closure.
{
  imports = [ ./disk.nix ];
  disko.devices.disk.main.device = "/dev/sda"; # as lsblk on the machine calls it

  services.nixfleet-control-plane = {
    enable = true;
    openFirewall = true;
    agentCnSuffix = "fleet.example.com";

    # For git+ssh add source.sshKeyFile and source.knownHostsFile.
    source.url = "git+https://forge.example.com/fleet.git#main";

    # Brought by install.sh, or copied by hand as the README says, or by agenix or sops-nix.
    tls.cert = "/var/lib/nixfleet-keys/server.cert.pem";
    tls.key = "/var/lib/nixfleet-keys/server.key.pem";
    tls.clientCa = "/var/lib/nixfleet-keys/client-ca.pem";
    fleetCaCert = "/var/lib/nixfleet-keys/issuing-ca.cert.pem";
    fleetCaKey = "/var/lib/nixfleet-keys/issuing-ca.key.pem";
  };

  # Serves what `release --copy-to ssh-ng://root@…` put into the store of this
  # machine, with the signatures that release made.
  services.nix-serve = {
    enable = true;
    openFirewall = true;
  };
}
