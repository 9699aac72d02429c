# execStart :: lib -> [ word ] -> flags -> string
#
# The command line of a unit, as systemd reads it (systemd.service(5), COMMAND
# LINES): `%`, `$`, quotes and backslashes of a value are the operator's own and
# never a specifier, a variable or a second word. The value of a flag is
#
#   null or false                 left out
#   true                          --name
#   a list                        --name=… for each
#   { credential = "tls-key"; }   --name=%d/tls-key, where LoadCredential put it
#   anything else                 --name=value
lib: words: flags:
let
  escape =
    text:
    let
      plain = lib.replaceStrings [ "%" "$" ] [ "%%" "$$" ] text;
    in
    if builtins.match "[A-Za-z0-9_./:@=,+%{}#-]+" text != null then plain else builtins.toJSON plain;

  flag =
    name: value:
    if value == null || value == false then
      [ ]
    else if value == true then
      [ "--${name}" ]
    else if builtins.isList value then
      lib.concatMap (flag name) value
    else if value ? credential then
      [ "--${name}=%d/${value.credential}" ]
    else
      [ (escape "--${name}=${toString value}") ];
in
lib.concatStringsSep " " (
  map (word: escape "${word}") words ++ lib.concatLists (lib.mapAttrsToList flag flags)
)
