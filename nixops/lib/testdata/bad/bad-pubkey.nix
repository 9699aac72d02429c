# expect: host 'web-01': pubkey must be an OpenSSH ed25519 line
{ mkFleet, mergeFleets, base, ... }:
mkFleet (base // { hosts.web-01 = base.hosts.web-01 // { pubkey = "ssh-rsa AAAA"; }; })
