# expect: bootstrap nonce 0: nonce must be 32 lower-case hexadecimal digits
{ mkFleet, mergeFleets, base, ... }:
mkFleet (base // { bootstrapNonces = [ { nonce = "xyz"; hostname = "web-01"; expiresAt = "2026-03-02T12:00:00Z"; } ]; })
