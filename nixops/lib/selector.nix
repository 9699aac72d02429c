# The selector algebra: who a wave, a budget or an operator means.
#
#   { tags = [ "web" "eu" ]; }        hosts that hold ALL of these tags
#   { tagsAny = [ "web" "db" ]; }     hosts that hold ANY of them
#   { hosts = [ "db-01" ]; }          hosts by name
#   { channel = "stable"; }           hosts of a channel
#   { all = true; }                   every host
#   { and = [ s1 s2 ]; }              hosts that every one of the list matches
#   { not = s; }                      hosts that s does not match
#
# The first five may stand together; one that fires is enough. `and` wins over the
# five, `not` wins over everything. The empty selector matches nothing.
let
  inherit (builtins)
    all
    any
    attrNames
    concatLists
    concatMap
    concatStringsSep
    elem
    elemAt
    filter
    genList
    hasAttr
    isAttrs
    isBool
    isList
    isString
    length
    listToAttrs
    ;

  members = [
    "all"
    "and"
    "channel"
    "hosts"
    "not"
    "tags"
    "tagsAny"
  ];

  isStrings = v: isList v && all isString v;

  has = member: s: s.${member} or null != null;

  # A selector that is asked of many hosts is best applied to them one by one as
  # `matches s`: the names in it are then sorted once.
  matches =
    s:
    if has "not" s then
      let
        other = matches s.not;
      in
      name: host: !(other name host)
    else if has "and" s then
      let
        parts = map matches s.and;
      in
      name: host: all (part: part name host) parts
    else
      let
        named = listToAttrs (
          map (name: {
            inherit name;
            value = null;
          }) (s.hosts or [ ])
        );
      in
      name: host:
      (s.all or false)
      || has "channel" s && s.channel == host.channel
      || hasAttr name named
      || (s.tags or [ ]) != [ ] && all (tag: elem tag host.tags) s.tags
      || any (tag: elem tag host.tags) (s.tagsAny or [ ]);

  # `and` and `not` exist only here: the signed document knows the five plain rules,
  # and a reader that drops the two keys would empty the selector.
  isPlain = s: !(has "not" s) && !(has "and" s);

  lower =
    hosts: s:
    if isPlain s then
      {
        tags = s.tags or [ ];
        tagsAny = s.tagsAny or [ ];
        hosts = s.hosts or [ ];
        channel = s.channel or null;
        all = s.all or false;
      }
    else
      let
        means = matches s;
      in
      {
        tags = [ ];
        tagsAny = [ ];
        hosts = filter (name: means name hosts.${name}) (attrNames hosts);
        channel = null;
        all = false;
      };

  # All that a selector names, for the check that it exists.
  named =
    member: s:
    if has "not" s then
      named member s.not
    else if has "and" s then
      concatMap (named member) s.and
    else
      let
        v = s.${member} or [ ];
      in
      if v == null then
        [ ]
      else if isList v then
        v
      else
        [ v ];

  # No fleet needs as many levels; Nix would end a deeper one with an error of its own.
  maxDepth = 100;

  # Mistakes of shape, as a list of sentences about the selector or the part of it that
  # they begin with.
  shape = shapeOf 0 "selector";

  shapeOf =
    depth: path: s:
    if !isAttrs s then
      [ "${path} is not an attribute set; write for example { tags = [ \"web\" ]; }" ]
    else if depth > maxDepth then
      [ "selector is nested more than ${toString maxDepth} levels deep; does it contain itself?" ]
    else
      map (key: "${path} has an unknown member '${key}'; known are ${concatStringsSep ", " members}") (
        filter (key: !elem key members) (attrNames s)
      )
      ++ concatMap (
        key:
        if s ? ${key} && !isStrings s.${key} then [ "${path} '${key}' must be a list of strings" ] else [ ]
      ) [ "tags" "tagsAny" "hosts" ]
      ++ (
        if (s.channel or null) == null || isString s.channel then
          [ ]
        else
          [ "${path} 'channel' must be a string" ]
      )
      ++ (if isBool (s.all or false) then [ ] else [ "${path} 'all' must be true or false" ])
      ++ (if has "not" s then shapeOf (depth + 1) "${path}.not" s.not else [ ])
      ++ (
        if !(has "and" s) then
          [ ]
        else if isList s.and && s.and != [ ] then
          concatLists (
            genList (i: shapeOf (depth + 1) "${path}.and[${toString i}]" (elemAt s.and i)) (length s.and)
          )
        else
          [ "${path} 'and' must be a list of one selector or more; for every host write all = true" ]
      );

  # Rules that stand beside one that wins over them, as a list of sentences.
  shadowed =
    s:
    let
      beside = winner: others: filter (key: (s.${key} or null) != null && s.${key} != [ ] && s.${key} != false) (
        filter (key: key != winner) others
      );
      sentence =
        winner: others:
        if others == [ ] then
          [ ]
        else
          [
            "has '${winner}', which wins over '${concatStringsSep "', '" others}' beside it; put both into and = [ … ]"
          ];
    in
    if has "not" s then
      sentence "not" (beside "not" members) ++ shadowed s.not
    else if has "and" s then
      sentence "and" (beside "and" members) ++ concatMap shadowed s.and
    else
      [ ];
in
{
  inherit
    matches
    lower
    named
    shadowed
    shape
    ;
}
