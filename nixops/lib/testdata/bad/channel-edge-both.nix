# expect: channel edge 0 says both 'gates' and 'before'; keep 'gates'
{ mkFleet, mergeFleets, base, ... }:
mkFleet (base // { channelEdges = [ { gates = "stable"; before = "stable"; gated = "stable"; } ]; })
