# mergeFleets :: [ fleet arguments ] -> fleet arguments
#
# Joins declarations that teams keep in files of their own into the one set that
# mkFleet takes. A name may be declared once: two owners of one host, channel or
# policy are a mistake that is better heard here than found out in a rollout.
parts:
let
  inherit (builtins)
    attrNames
    concatMap
    concatStringsSep
    filter
    foldl'
    isAttrs
    isList
    ;

  maps = [
    "hosts"
    "tags"
    "channels"
    "rolloutPolicies"
  ];
  lists = [
    "edges"
    "channelEdges"
    "disruptionBudgets"
    "revocations"
    "bootstrapNonces"
    "frameworks"
  ];

  unknown = concatMap (p: filter (key: !builtins.elem key (maps ++ lists)) (attrNames p)) parts;

  wrong =
    concatMap (p: filter (key: p ? ${key} && !isAttrs p.${key}) maps) parts
    ++ concatMap (p: filter (key: p ? ${key} && !isList p.${key}) lists) parts;

  merge =
    kind: left: right:
    let
      twice = attrNames (builtins.intersectAttrs left right);
    in
    if twice == [ ] then
      left // right
    else
      throw "nixfleet: mergeFleets: ${kind} '${concatStringsSep "', '" twice}' is declared in more than one part; keep one of the declarations";

  mapOf = kind: foldl' (merge kind) { } (map (p: p.${kind} or { }) parts);
  listOf = kind: concatMap (p: p.${kind} or [ ]) parts;

  named =
    keys: value:
    builtins.listToAttrs (
      map (name: {
        inherit name;
        value = value name;
      }) keys
    );
in
if !isList parts || !builtins.all isAttrs parts then
  throw "nixfleet: mergeFleets takes a list of attribute sets, as mkFleet takes one"
else if unknown != [ ] then
  throw "nixfleet: mergeFleets: unknown member '${builtins.head unknown}'; known are ${concatStringsSep ", " (maps ++ lists)}"
else if wrong != [ ] then
  throw "nixfleet: mergeFleets: ${builtins.head wrong} must be ${
    if builtins.elem (builtins.head wrong) maps then "an attribute set" else "a list"
  } in every part"
else
  named maps mapOf // named lists listOf
