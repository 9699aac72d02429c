# expect: edge 0: host 'web-01' waits for itself
{ mkFleet, mergeFleets, base, ... }:
mkFleet (base // { edges = [ { gated = "web-01"; gates = "web-01"; } ]; })
