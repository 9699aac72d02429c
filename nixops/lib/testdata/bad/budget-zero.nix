# expect: disruption budget 0: maxInFlight must be 1 or more
{ mkFleet, mergeFleets, base, ... }:
mkFleet (base // { disruptionBudgets = [ { selector.all = true; maxInFlight = 0; } ]; })
