# expect: mkFleet has no member 'disruptionBudget'
{ mkFleet, mergeFleets, base, ... }:
mkFleet (base // { disruptionBudget = [ ]; })
