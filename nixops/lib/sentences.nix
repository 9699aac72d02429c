# What the checks of a declaration are written with. Nothing here throws, whatever
# value it is handed: all problems of a fleet are to be seen at once.
let
  inherit (builtins)
    all
    attrNames
    attrValues
    concatLists
    concatMap
    concatStringsSep
    elem
    elemAt
    filter
    genList
    groupBy
    isAttrs
    isInt
    isList
    isString
    length
    mapAttrs
    match
    typeOf
    ;

  when = cond: sentence: if cond then [ sentence ] else [ ];
  quoted = names: "'${concatStringsSep "', '" names}'";

  # A value as a sentence names it.
  said = v: if isString v then "'${v}'" else "of type ${typeOf v}";

  # A value as the set that it may turn out not to be; its own check says so.
  setOr = v: if isAttrs v then v else { };
  strings = v: isList v && all isString v;

  # A day that there is, in the Gregorian calendar.
  date = concatStringsSep "|" [
    "[0-9]{4}-(0[1-9]|1[0-2])-(0[1-9]|1[0-9]|2[0-8])"
    "[0-9]{4}-(0[13-9]|1[0-2])-(29|30)"
    "[0-9]{4}-(0[13578]|1[02])-31"
    "([0-9]{2}(0[48]|[2468][048]|[13579][26])|([02468][048]|[13579][26])00)-02-29"
  ];

  # systemOf :: host -> { known, system }: whether its configuration can be looked at, and
  # whether that is what mkHost and nixosSystem give. Nothing of the system itself is
  # evaluated. One that throws is heard when it is built, by its own words.
  systemOf =
    host:
    let
      c = host.configuration or null;
      known = builtins.tryEval (c != null);
      system = builtins.tryEval (isAttrs c && c ? config);
    in
    {
      known = known.success && known.value;
      system = system.success && system.value;
    };

  unknown =
    subject: allowed: set:
    concatMap (
      key: when (!elem key allowed) "${subject} has an unknown member '${key}'; known are ${quoted allowed}"
    ) (attrNames set);
in
{
  inherit
    quoted
    said
    setOr
    strings
    systemOf
    unknown
    when
    ;

  oneOf = names: if names == [ ] then "none is declared" else "declared are ${quoted names}";
  each = f: set: concatLists (attrValues (mapAttrs f set));
  indexed = f: list: concatLists (genList (i: f i (elemAt list i)) (length list));

  # The problems of a set with these members. They may take it for one.
  record =
    subject: allowed: set: problems:
    if isAttrs set then unknown subject allowed set ++ problems else [ "${subject} must be an attribute set" ];

  # Numbers of v1's documents, and how a sentence asks for one.
  uint = v: isInt v && v >= 0 && v <= 4294967295;
  whole = unit: "must be a whole number of ${unit}, from 0 to 4294967295";
  hex = v: isString v && match "[0-9a-f]+" v != null;
  text = v: v == null || isString v;

  # The one form that is written: v1 readers format times anew before they hash them.
  time =
    v:
    isString v
    && match "(${date})T([01][0-9]|2[0-3]):[0-5][0-9]:[0-5][0-9]([.][0-9]{3}([0-9]{3}){0,2})?Z" v != null
    && match ".*(000Z)" v == null;

  # A line without the newline that builtins.readFile leaves at its end.
  line =
    v:
    let
      m = if isString v then match "([^\n]*)\n" v else null;
    in
    if m == null then v else elemAt m 0;

  # What is listed more than once.
  repeated =
    names:
    let
      entries = groupBy (n: n) names;
    in
    filter (n: length entries.${n} > 1) (attrNames entries);

  # Members of the set that are there and no strings.
  notText = set: filter (key: set.${key} or null != null && !isString set.${key});
}
