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
    elem
    filter
    isAttrs
    isBool
    isList
    isString
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

  matches =
    s: name: host:
    if s ? not then
      !(matches s.not name host)
    else if s ? and then
      all (part: matches part name host) s.and
    else
      (s.all or false)
      || (s.channel or null) != null && s.channel == host.channel
      || elem name (s.hosts or [ ])
      || (s.tags or [ ]) != [ ] && all (tag: elem tag host.tags) s.tags
      || any (tag: elem tag host.tags) (s.tagsAny or [ ]);

  # `and` and `not` exist only here: the signed document knows the five plain rules,
  # and a reader that drops the two keys would empty the selector.
  isPlain = s: !(s ? not) && !(s ? and);

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
      {
        tags = [ ];
        tagsAny = [ ];
        hosts = filter (name: matches s name hosts.${name}) (attrNames hosts);
        channel = null;
        all = false;
      };

  # All that a selector names, for the check that it exists.
  named =
    member: s:
    if s ? not then
      named member s.not
    else if s ? and then
      builtins.concatMap (named member) s.and
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

  # Mistakes of shape, as a list of sentences.
  shape =
    s:
    if !isAttrs s then
      [ "is not an attribute set; write for example { tags = [ \"web\" ]; }" ]
    else
      map (key: "has an unknown member '${key}'; known are ${builtins.concatStringsSep ", " members}") (
        filter (key: !elem key members) (attrNames s)
      )
      ++ builtins.concatMap (
        key:
        if s ? ${key} && !isStrings s.${key} then [ "'${key}' must be a list of strings" ] else [ ]
      ) [ "tags" "tagsAny" "hosts" ]
      ++ (
        if (s.channel or null) == null || isString s.channel then [ ] else [ "'channel' must be a string" ]
      )
      ++ (if isBool (s.all or false) then [ ] else [ "'all' must be true or false" ])
      ++ (if s ? not then shape s.not else [ ])
      ++ (
        if !(s ? and) then
          [ ]
        else if isList s.and then
          builtins.concatMap shape s.and
        else
          [ "'and' must be a list of selectors" ]
      );
in
{
  inherit
    matches
    lower
    named
    shape
    ;
}
