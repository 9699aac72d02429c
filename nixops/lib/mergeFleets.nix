# mergeFleets :: [ fleet arguments ] -> fleet arguments, and the fleet
#
# Joins declarations that teams keep in files of their own into the one set that
# mkFleet takes. A name may be declared once: two owners of one host, channel or
# policy are a mistake that is better heard here than found out in a rollout. (In v1
# the last of two policies of one name counts.)
#
# The result has the members of a fleet as well (`resolved`, `nixosConfigurations`, ...):
# v1's mergeFleets gives the fleet.
fleets:
let
  # What was merged before may be merged with more.
  parts = if builtins.isList fleets then map plain fleets else fleets;
  plain = part: if builtins.isAttrs part then (import ./merged.nix).plain part else part;

  inherit (builtins)
    all
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
    "operatorScopes"
  ];
  lists = [
    "edges"
    "channelEdges"
    "disruptionBudgets"
    "revocations"
    "bootstrapNonces"
  ];
  names = [ "complianceFrameworks" ];
  known = maps ++ lists ++ names ++ [ "frameworks" ];

  unknown = concatMap (p: filter (key: !builtins.elem key known) (attrNames p)) parts;

  wrong =
    concatMap (p: filter (key: p ? ${key} && !isAttrs p.${key}) maps) parts
    ++ concatMap (p: filter (key: p ? ${key} && !isList p.${key}) (lists ++ names)) parts
    ++ concatMap (p: filter (_: !(isList (p.frameworks or [ ]) || isAttrs p.frameworks)) [ "frameworks" ]) parts;

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

  # A member that no part has keeps its default.
  declaring = key: filter (p: p ? ${key}) parts;
  where = key: value: if declaring key == [ ] then { } else { ${key} = value; };

  # Names alone, or with controls: where one part has controls the names of the
  # others have none.
  frameworks =
    let
      declared = map (p: p.frameworks) (declaring "frameworks");
    in
    if all isList declared then
      concatMap (f: f) declared
    else
      named (concatMap (f: f) (filter isList declared)) (_: { }) // foldl' (merge "frameworks") { } (filter isAttrs declared);

  arguments =
    named maps mapOf
    // named lists listOf
    // where "frameworks" frameworks
    // where "complianceFrameworks" (listOf "complianceFrameworks");

  named =
    keys: value:
    builtins.listToAttrs (
      map (name: {
        inherit name;
        value = value name;
      }) keys
    );
in
if !isList parts || !all isAttrs parts then
  throw "nixfleet: mergeFleets takes a list of attribute sets, as mkFleet takes one"
else if unknown != [ ] then
  throw "nixfleet: mergeFleets: unknown member '${builtins.head unknown}'; known are ${concatStringsSep ", " known}"
else if wrong != [ ] then
  throw "nixfleet: mergeFleets: ${builtins.head wrong} must be ${
    if builtins.elem (builtins.head wrong) maps then "an attribute set" else "a list"
  } in every part"
else
  (import ./merged.nix).marked arguments (import ./mkFleet.nix arguments)
