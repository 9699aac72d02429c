# expect: channel edge 0: channel 'stable' waits for itself
{ mkFleet, mergeFleets, base, ... }:
mkFleet (base // { channelEdges = [ { gates = "stable"; gated = "stable"; } ]; })
