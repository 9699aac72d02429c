# expect: hosts 'web-01', 'web-09' have the same pubkey
{ mkFleet, mergeFleets, base, ... }:
mkFleet (base // { hosts = base.hosts // { web-09 = base.hosts.web-01; }; })
