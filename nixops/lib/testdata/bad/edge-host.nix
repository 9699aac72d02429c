# expect: edge 0: host 'db-77' is not declared
{ mkFleet, mergeFleets, base, ... }:
mkFleet (base // { edges = [ { gated = "db-77"; gates = "web-01"; } ]; })
