# Compliance that can be seen in a host's configuration, before anything is built.
#
#   frameworks.nis2.controls.disk-encryption = {
#     description = "disks are encrypted at rest";
#     check = config: config.boot.initrd.luks.devices != { };
#   };
#
# A channel that lists the framework has each of its hosts that carries a
# `configuration` looked at: under `enforce` a failing control is a problem, under
# `permissive` a warning. `frameworks = [ "nis2" ]` declares names alone; what they
# ask for is then found out on the hosts, by their evidence collectors.
{ declared, facts }:
let
  inherit (builtins)
    addErrorContext
    attrNames
    concatMap
    filter
    isAttrs
    isFunction
    isList
    isString
    ;
  inherit (import ./sentences.nix)
    each
    record
    setOr
    strings
    text
    when
    ;

  inherit (declared) frameworks;

  controlProblems =
    framework: name: c:
    let
      subject = "framework '${framework}': control '${name}'";
    in
    record subject [ "check" "description" ] c (
      when (!isFunction (c.check or null)) "${subject}: check must be a function, config: true or false"
      ++ when (!text (c.description or null)) "${subject}: description must be a string"
    );

  frameworkProblems =
    name: f:
    let
      subject = "framework '${name}'";
    in
    record subject [ "controls" "description" ] f (
      when (!text (f.description or null)) "${subject}: description must be a string"
      ++ (
        if isAttrs (f.controls or { }) then
          each (controlProblems name) (f.controls or { })
        else
          [ "${subject}: controls must be an attribute set, { NAME.check = config: …; }" ]
      )
    );

  controlsOf = framework: if isAttrs frameworks then frameworks.${framework}.controls or { } else { };

  # A channel may list no more than names that are declared; that is checked before.
  channelOf = name: setOr declared.channels.${facts.${name}.channel};

  # A check that cannot be evaluated ends the evaluation; then the place is named.
  fulfils =
    host: framework: control: check: config:
    addErrorContext "while control '${control}' of framework '${framework}' looks at host '${host}' (nixfleet)" (
      check config == true
    );

  # The sentences about all controls that fail on the channels of a mode. Of other
  # hosts the configuration is not even asked for.
  failing =
    mode: verb:
    concatMap (
      host:
      let
        compliance = (channelOf host).compliance or { };
        asked =
          if (compliance.mode or "disabled") == mode then
            filter (framework: controlsOf framework != { }) (compliance.frameworks or [ ])
          else
            [ ];
        configuration = declared.hosts.${host}.configuration or null;
      in
      if asked == [ ] || configuration == null then
        [ ]
      else if configuration.config or null == null then
        [ "host '${host}': its configuration is no system, and has no config that compliance could look at; give what mkHost gives" ]
      else
        concatMap (
          framework:
          let
            controls = controlsOf framework;
          in
          map (
            control:
            "host '${host}' fails control '${control}'${
              if isString (controls.${control}.description or null) then " (${controls.${control}.description})" else ""
            } of framework '${framework}', which channel '${facts.${host}.channel}' ${verb}"
          ) (filter (control: !(fulfils host framework control controls.${control}.check configuration.config)) (attrNames controls))
        ) asked
    ) (attrNames facts);
in
{
  names = if isAttrs frameworks then attrNames frameworks else filter isString frameworks;

  problems =
    if isAttrs frameworks then
      each frameworkProblems frameworks
    else
      when (!(isList frameworks && strings frameworks)) "frameworks must be a list of names, or an attribute set, { NAME.controls = { … }; }";

  # To be asked for only when nothing else is wrong: both evaluate configurations.
  failures = failing "enforce" "enforces; mend its configuration, or set compliance.mode = \"permissive\" while you do";
  warnings = failing "permissive" "would refuse under compliance.mode = \"enforce\"";
}
