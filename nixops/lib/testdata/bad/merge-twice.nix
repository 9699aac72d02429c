# expect: mergeFleets: hosts 'web-01' is declared in more than one part
{ mkFleet, mergeFleets, base, ... }:
(mkFleet (mergeFleets [ base { hosts.web-01 = base.hosts.web-01; } ]))
