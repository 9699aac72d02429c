# expect: channel edge 0: channel 'beta' is not declared
{ mkFleet, mergeFleets, base, ... }:
mkFleet (base // { channelEdges = [ { gates = "beta"; gated = "stable"; } ]; })
