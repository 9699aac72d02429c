# secretsOf :: lib -> config -> [ path or null ] -> { triggers, missing }
#
# Files at run time that agenix or sops-nix decrypt. Both renew a secret by switching the
# link of the directory that it lies in, which no path unit notices: the file that is
# watched stays as it was, in a directory that nobody looks at any more.
#
#   triggers   a fingerprint of the encrypted file behind each of them, for the
#              restartTriggers of a unit that reads the secret at its start. The switch
#              that brings another secret then restarts the unit, after it was decrypted.
#   missing    those that lie where secrets are decrypted to, and that no secret declares
#
# A fingerprint is of the content. The path of a file in a flake is another one at every
# commit, and would redeploy the fleet.
lib: config: files:
let
  age = config.age or { };
  sops = config.sops or { };
  ageDir = age.secretsDir or "/run/agenix";

  ofAge = lib.mapAttrsToList (name: secret: {
    path = secret.path or "${ageDir}/${name}";
    encrypted = secret.file or null;
  }) (age.secrets or { });
  ofSops = lib.mapAttrsToList (name: secret: {
    path = secret.path or "/run/secrets/${name}";
    encrypted = secret.sopsFile or null;
  }) (sops.secrets or { });
  secrets = ofAge ++ ofSops;

  named = lib.unique (lib.filter (file: file != null) files);

  # What a build makes is named by its store path. A file that only the machine has, as
  # sops-nix allows, says nothing here.
  fingerprint =
    file:
    let
      context = if builtins.isPath file then { } else builtins.getContext file;
    in
    if lib.any (c: c ? outputs || c ? allOutputs) (lib.attrValues context) then
      [ "${file}" ]
    else
      lib.optional (builtins.pathExists file) (builtins.hashFile "sha256" file);

  declared = lib.listToAttrs (map (s: lib.nameValuePair s.path null) secrets);
  below = dir: file: lib.hasPrefix "${dir}/" file;
in
{
  triggers = lib.concatMap (
    file:
    lib.concatMap (s: lib.optionals (s.path == file && s.encrypted != null) (fingerprint s.encrypted)) secrets
  ) named;

  missing = lib.filter (
    file:
    !(declared ? ${file})
    && (
      config ? age && below ageDir file
      || config ? sops && below "/run/secrets" file && !(below "/run/secrets/rendered" file)
    )
  ) named;
}
