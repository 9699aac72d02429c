# expect: revocation 0: notBefore must be a time
{ mkFleet, mergeFleets, base, ... }:
mkFleet (base // { revocations = [ { hostname = "web-01"; notBefore = "yesterday"; } ]; })
