# ring :: [ { gated, gates, ... } ] -> the edges that are part of a ring, or lie
# between two of them
#
# Kahn's algorithm from both ends. One fold, since a chain of edges may be longer
# than Nix lets functions nest, and no copy of what is settled already.
let
  inherit (builtins)
    attrNames
    concatMap
    filter
    foldl'
    genList
    groupBy
    hasAttr
    length
    mapAttrs
    seq
    ;

  # The edges that remain when those are taken away, again and again, at whose
  # source no other edge ends.
  peel =
    source: sink: edges:
    let
      out = groupBy (e: e.${source}) edges;
      ends = mapAttrs (_: length) (groupBy (e: e.${sink}) edges);
      step =
        state: _:
        if state.free == [ ] then
          state
        else
          let
            reached = groupBy (e: e.${sink}) (concatMap (n: out.${n} or [ ]) state.free);
            fewer = mapAttrs (n: es: state.ends.${n} - length es) reached;
            left = state.ends // fewer;
          in
          seq left {
            free = filter (n: fewer.${n} == 0) (attrNames fewer);
            ends = left;
          };
      last = foldl' step {
        free = filter (n: !hasAttr n ends) (attrNames out);
        inherit ends;
      } (genList (i: i) (length (attrNames out)));
    in
    filter (e: last.ends.${e.${source}} or 0 > 0) edges;
in
edges: peel "gated" "gates" (peel "gates" "gated" edges)
