# What a fleet repository calls: mkFleet declares, mergeFleets joins, matches asks,
# withSignature stamps.
# All of it is pure and needs builtins alone, so that a fleet can be checked
# without fetching a single input. (mkHost, which needs the modules, is the flake's.)
{
  mkFleet = import ./mkFleet.nix;
  mergeFleets = import ./mergeFleets.nix;

  # withSignature :: { signedAt, ciCommit, signatureAlgorithm ? null } -> document -> document
  # What v1's release scripts stamp a document with. It signs nothing, and
  # `nixfleet release` stamps by itself.
  withSignature =
    {
      signedAt,
      ciCommit,
      signatureAlgorithm ? null,
    }:
    resolved:
    resolved
    // {
      meta =
        resolved.meta
        // {
          inherit signedAt ciCommit;
        }
        // (if signatureAlgorithm == null then { } else { inherit signatureAlgorithm; });
    };

  # matches :: selector -> name -> { tags, channel, ... } -> bool
  inherit (import ./selector.nix) matches;
}
