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
#
# A configuration may bring evidence of its own, as v1's compliance modules do:
#
#   compliance.evidence.probes.disk-encryption = {
#     type = "static";             # or "both", which a collector measures as well
#     staticEvidence = { passed = false; evidence = { … }; };
#   };
#
# It is judged by the mode of the channel, whatever frameworks that lists.
{ declared, facts }:
let
  inherit (builtins)
    addErrorContext
    attrNames
    concatMap
    concatStringsSep
    elem
    filter
    isAttrs
    isBool
    isFunction
    isInt
    isList
    isString
    match
    ;
  inherit (import ./sentences.nix)
    each
    record
    setOr
    strings
    text
    when
    ;
  inherit (import ./defaults.nix) modeOf;

  inherit (declared) frameworks complianceFrameworks;

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

  failingControls =
    host: asked: verb: config:
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
      ) (filter (control: !(fulfils host framework control controls.${control}.check config)) (attrNames controls))
    ) asked;

  # What a person can read of evidence whose form is not known.
  shown =
    evidence:
    let
      value =
        v:
        if isString v then
          v
        else if isBool v then
          (if v then "true" else "false")
        else
          toString v;
      scalar = v: isString v || isBool v || isInt v;
      plain = filter (key: scalar evidence.${key}) (attrNames evidence);
    in
    if isAttrs evidence && plain != [ ] then
      " (${concatStringsSep ", " (map (key: "${key}: ${value evidence.${key}}") plain)})"
    else
      "";

  failingEvidence =
    host: verb: config:
    let
      probes = setOr (config.compliance.evidence.probes or { });
      isStatic = p: elem (p.type or "runtime") [ "static" "both" ];
      measured = filter (p: isStatic probes.${p} && probes.${p}.staticEvidence or null != null) (attrNames probes);
    in
    concatMap (
      p:
      let
        found = probes.${p}.staticEvidence;
        passed = found.passed or true;
      in
      if !isBool passed then
        [ "host '${host}': compliance.evidence.probes.${p}.staticEvidence.passed must be true or false" ]
      else
        when (!passed) "host '${host}' fails the static control '${p}'${
          shown (found.evidence or { })
        } of its compliance.evidence.probes, which channel '${facts.${host}.channel}' ${verb}"
    ) measured;

  # Under enforce a system without evidence is sent back by the agent, each one anew.
  missingCollector =
    host: config:
    let
      unit = "compliance-evidence-collector";
      services = config.systemd.services or { };
      darwin = match ".*-darwin" (toString (declared.hosts.${host}.system or "")) != null;
      said = "host '${host}': its channel enforces compliance, and";
      rest =
        "the agent would send every new system back; set compliance.mode = \"permissive\""
        + " on channel '${facts.${host}.channel}'";
    in
    if darwin then
      [
        "${said} under launchd there is no collector of evidence: ${rest}, or move the host to another channel"
      ]
    else
      when (!(services ? ${unit} && services.${unit}.enable or true))
        "${said} its configuration has no unit ${unit}.service: ${rest}, or declare the unit";

  # The sentences about all that fails on the channels of a mode. Of other hosts the
  # configuration is not even asked for.
  failing =
    mode: verb:
    concatMap (
      host:
      let
        compliance = (channelOf host).compliance or { };
        configuration = declared.hosts.${host}.configuration or null;
      in
      if modeOf compliance != mode || configuration == null then
        [ ]
      else
        failingControls host (compliance.frameworks or [ ]) verb configuration.config
        ++ failingEvidence host verb configuration.config
        ++ (if mode == "enforce" then missingCollector host configuration.config else [ ])
    ) (attrNames facts);
in
{
  names =
    (if isAttrs frameworks then attrNames frameworks else filter isString frameworks)
    ++ filter isString complianceFrameworks;

  problems =
    when (!strings complianceFrameworks) "complianceFrameworks must be a list of names"
    ++ (
      if isAttrs frameworks then
        each frameworkProblems frameworks
      else
        when (!(isList frameworks && strings frameworks))
          "frameworks must be a list of names, or an attribute set, { NAME.controls = { … }; }"
    );

  # To be asked for only when nothing else is wrong: both evaluate configurations.
  failures = failing "enforce" "enforces; mend its configuration, or set compliance.mode = \"permissive\" while you do";
  warnings = failing "permissive" "would refuse under compliance.mode = \"enforce\"";
}
