# etcTriggers :: lib -> config -> [ path or null ] -> [ string ]
#
# What is in those of the files that this configuration itself writes to /etc. A unit
# that reads one only at its start names it among its restartTriggers: the link in
# /etc changes and the unit does not.
lib: config: files:
let
  inherit (config.environment) etc;
  # A file without a text of its own has null there on NixOS, and "" on nix-darwin.
  content = entry: if entry.text != null && entry.text != "" then entry.text else "${entry.source}";
in
lib.concatMap (
  file:
  let
    name = lib.removePrefix "/etc/" file;
  in
  lib.optional (lib.hasPrefix "/etc/" file && etc ? ${name}) (content etc.${name})
) (lib.filter (file: file != null) files)
