# expect: strategy 'blue-green' is unknown
{ mkFleet, mergeFleets, base, ... }:
mkFleet (base // { rolloutPolicies.staged.strategy = "blue-green"; })
