# expect: hosts wait for each other in a ring: 'web-01' waits for 'web-02', 'web-02' waits for 'web-01'
{ mkFleet, mergeFleets, base, ... }:
mkFleet (base // { edges = [ { gated = "web-01"; gates = "web-02"; } { gated = "web-02"; gates = "web-01"; } ]; })
