# expect: pin.commit must be a full commit of 40 hexadecimal digits
{ mkFleet, mergeFleets, base, ... }:
mkFleet (base // { hosts.web-01 = base.hosts.web-01 // { pin = { commit = "4f1c0a9"; reason = "r"; }; }; })
