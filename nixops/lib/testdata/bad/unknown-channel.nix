# expect: host 'web-01' is on channel 'stabel', which is not declared; declared are 'stable'
{ mkFleet, mergeFleets, base, ... }:
mkFleet (base // { hosts.web-01 = base.hosts.web-01 // { channel = "stabel"; }; })
