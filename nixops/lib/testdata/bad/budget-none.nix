# expect: disruption budget 0 limits nothing
{ mkFleet, mergeFleets, base, ... }:
mkFleet (base // { disruptionBudgets = [ { selector.all = true; } ]; })
