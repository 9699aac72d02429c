# expect: channel 'stable': freshnessWindow (60 minutes) must be at least twice signingIntervalMinutes (60)
{ mkFleet, mergeFleets, base, ... }:
mkFleet (base // { channels.stable = { rolloutPolicy = "staged"; freshnessWindow = 60; }; })
