# expect: onHealthFailure 'rollback' is unknown; use halt or rollback-and-halt
{ mkFleet, mergeFleets, base, ... }:
mkFleet (base // { rolloutPolicies.staged.onHealthFailure = "rollback"; })
