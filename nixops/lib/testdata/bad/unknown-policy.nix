# expect: channel 'stable' uses rollout policy 'canari', which is not declared
{ mkFleet, mergeFleets, base, ... }:
mkFleet (base // { channels.stable.rolloutPolicy = "canari"; })
