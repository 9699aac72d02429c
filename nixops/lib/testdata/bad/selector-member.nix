# expect: selector has an unknown member 'tag'
{ mkFleet, mergeFleets, base, ... }:
mkFleet (base // { disruptionBudgets = [ { selector.tag = [ "web" ]; maxInFlight = 1; } ]; })
