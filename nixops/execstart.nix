# execStart :: lib -> [ word ] -> flags -> string
#
# The command line of a unit, as systemd reads it (systemd.service(5), COMMAND
# LINES): `%`, `$`, quotes and backslashes of a value are the operator's own and
# never a specifier, a variable or a second word. Flags are those of flags.nix, and
#
#   { credential = "tls-key"; }   is --name=%d/tls-key, where LoadCredential put it
lib: words: flags:
let
  escape =
    text:
    let
      plain = lib.replaceStrings [ "%" "$" ] [ "%%" "$$" ] text;
    in
    if builtins.match "[A-Za-z0-9_./:@=,+%{}#-]+" text != null then plain else builtins.toJSON plain;

  word =
    name: value:
    if value ? credential then
      "--${name}=%d/${value.credential}"
    else
      escape "--${name}=${toString value}";
in
lib.concatStringsSep " " (
  map (word: escape "${word}") words ++ import ./flags.nix lib word flags
)
