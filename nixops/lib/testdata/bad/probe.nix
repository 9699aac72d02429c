# expect: healthChecks.http[0] has no url
{ mkFleet, mergeFleets, base, ... }:
mkFleet (base // { hosts.web-01 = base.hosts.web-01 // { healthChecks.http = [ { name = "site"; } ]; }; })
