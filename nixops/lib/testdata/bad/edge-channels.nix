# expect: are on different channels; use a channel edge
{ mkFleet, mergeFleets, base, ... }:
mkFleet (base // { hosts = base.hosts // { x = { system = "x86_64-linux"; channel = "edge"; }; }; channels = base.channels // { edge.rolloutPolicy = "staged"; }; edges = [ { gated = "x"; gates = "web-01"; } ]; })
