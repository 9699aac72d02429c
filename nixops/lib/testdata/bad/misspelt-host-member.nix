# expect: host 'web-01' has an unknown member 'chanel'
{ mkFleet, mergeFleets, base, ... }:
mkFleet (base // { hosts.web-01 = base.hosts.web-01 // { chanel = "stable"; }; })
