# What a fleet repository calls: mkFleet declares, mergeFleets joins, matches asks.
# All of it is pure and needs builtins alone, so that a fleet can be checked
# without fetching a single input. (mkHost, which needs the modules, is the flake's.)
{
  mkFleet = import ./mkFleet.nix;
  mergeFleets = import ./mergeFleets.nix;

  # matches :: selector -> name -> { tags, channel, ... } -> bool
  inherit (import ./selector.nix) matches;
}
