# flagWords :: (name -> value -> word) -> { name = value; } -> [ word ]
#
# The flags of a command line, in the order of their names; `word` writes one. A value
# that is null or false is left out, true is the name alone, and a list repeats the flag.
lib: word: flags:
let
  flag =
    name: value:
    if value == null || value == false then
      [ ]
    else if value == true then
      [ "--${name}" ]
    else if builtins.isList value then
      lib.concatMap (flag name) value
    else
      [ (word name value) ];
in
lib.concatLists (lib.mapAttrsToList flag flags)
