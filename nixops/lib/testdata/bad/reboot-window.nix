# expect: rebootPolicy.window is missing
{ mkFleet, mergeFleets, base, ... }:
mkFleet (base // { hosts.web-01 = base.hosts.web-01 // { rebootPolicy.mode = "window"; }; })
