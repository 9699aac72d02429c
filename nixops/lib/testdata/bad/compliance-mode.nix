# expect: compliance.mode 'enforced' is unknown
{ mkFleet, mergeFleets, base, ... }:
mkFleet (base // { channels.stable = { rolloutPolicy = "staged"; compliance.mode = "enforced"; }; })
