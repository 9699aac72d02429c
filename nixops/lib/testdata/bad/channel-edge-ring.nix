# expect: channels wait for each other in a ring
{ mkFleet, mergeFleets, base, ... }:
mkFleet (base // { channels = base.channels // { edge.rolloutPolicy = "staged"; }; channelEdges = [ { gates = "stable"; gated = "edge"; } { gates = "edge"; gated = "stable"; } ]; })
