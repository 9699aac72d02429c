# expect: asks for compliance framework 'nis3', which is not declared; declared are 'nis2'
{ mkFleet, mergeFleets, base, ... }:
mkFleet (base // { frameworks = [ "nis2" ]; channels.stable = { rolloutPolicy = "staged"; compliance.frameworks = [ "nis3" ]; }; })
