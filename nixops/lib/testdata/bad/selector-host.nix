# expect: selector names host 'web-99', which is not declared
{ mkFleet, mergeFleets, base, ... }:
mkFleet (base // { disruptionBudgets = [ { selector.not.hosts = [ "web-99" ]; maxInFlight = 1; } ]; })
