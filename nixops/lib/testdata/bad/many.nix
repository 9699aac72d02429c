# expect: the fleet has 2 problems
{ mkFleet, mergeFleets, base, ... }:
mkFleet (base // { hosts.web-01 = base.hosts.web-01 // { channel = "x"; pubkey = "y"; }; })
