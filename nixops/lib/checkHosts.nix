# The problems of every host, of its pin, its probes and its reboot policy.
{ declared, facts }:
let
  inherit (builtins)
    attrNames
    concatMap
    elem
    filter
    groupBy
    hasAttr
    head
    isAttrs
    isList
    isString
    length
    match
    stringLength
    ;
  inherit (import ./sentences.nix)
    each
    hex
    indexed
    line
    oneOf
    quoted
    record
    repeated
    said
    setOr
    strings
    systemOf
    time
    uint
    when
    whole
    ;

  listOr = v: if isList v then v else [ ];
  label = "[A-Za-z0-9]([A-Za-z0-9_-]{0,61}[A-Za-z0-9])?";

  pinProblems =
    subject: p:
    if p == null then
      [ ]
    else
      record "${subject}: pin" [ "commit" "expiresAt" "reason" ] p (
        when (!(hex (p.commit or null) && stringLength p.commit == 40))
          "${subject}: pin.commit must be a full commit of 40 hexadecimal digits; run 'git rev-parse REV' in the fleet repository"
        ++ when (!isString (p.reason or null)) "${subject}: pin.reason is missing; say why the pin is there"
        ++ when (p.expiresAt or null != null && !time p.expiresAt)
          "${subject}: pin.expiresAt must be a time in UTC such as 2026-06-01T00:00:00Z"
      );

  hostProblems =
    name: h:
    let
      subject = "host '${name}'";
      pubkey = line (h.pubkey or null);
      pinnedTags = filter (t: (setOr (declared.tags.${t} or null)).pin or null != null) facts.${name}.tags;
    in
    record subject
      [
        "channel"
        "configuration"
        "healthChecks"
        "pin"
        "pubkey"
        "rebootPolicy"
        "system"
        "tags"
      ]
      h
      (
        when (match "${label}([.]${label})*" name == null || stringLength name > 253 || match "[0-9.]+" name != null && match ".*[.].*" name != null)
          "${subject}: the name must be a host name of letters, digits and inner hyphens or underscores, 63 at most"
        ++ (
          if !isString (h.system or null) then
            [ "${subject}: system is missing; write for example system = \"x86_64-linux\"" ]
          else
            when (match "[a-z0-9_]+-[a-z0-9]+" h.system == null)
              "${subject}: system '${h.system}' is none; write for example \"x86_64-linux\" or \"aarch64-darwin\""
        )
        ++ when (!strings (h.tags or [ ]) || elem "" (h.tags or [ ])) "${subject}: tags must be a list of strings, none of them empty"
        ++ (
          if !isString (h.channel or null) then
            [ "${subject}: channel is missing; ${oneOf (attrNames declared.channels)}" ]
          else
            when (!hasAttr h.channel declared.channels)
              "${subject} is on channel '${h.channel}', which is not declared; ${oneOf (attrNames declared.channels)}"
        )
        ++ when (
          pubkey != null
          && !(isString pubkey && match "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAI[A-P][A-Za-z0-9+/]{42}( [^\n]*)?" pubkey != null)
        ) "${subject}: pubkey must be an OpenSSH ed25519 line; take it from /etc/ssh/ssh_host_ed25519_key.pub of the host"
        ++ when ((systemOf h).known && !(systemOf h).system)
          "${subject}: its configuration is not a system; give what mkHost or nixosSystem returns, neither its modules nor what is built of it"
        ++ pinProblems subject (h.pin or null)
        ++ when (h.pin or null == null && length pinnedTags > 1)
          "${subject} holds the pinned tags ${quoted pinnedTags}; give the host a pin of its own or take one tag away"
        ++ healthProblems subject (h.healthChecks or null)
        ++ rebootProblems subject (h.rebootPolicy or null)
      );

  named = v: isString v && v != "";

  # Members of each kind of probe: the one that it needs, what that has to be, and others.
  probeKinds = {
    http = {
      needs = "url";
      is = v: isString v && match "https?://[^/].*" v != null;
      also = [ "expectStatus" ];
    };
    tcp = {
      needs = "port";
      is = v: uint v && v >= 1 && v <= 65535;
      also = [ "host" ];
    };
    exec = {
      needs = "command";
      is = v: strings v && v != [ ] && head v != "";
      also = [ ];
    };
    units = {
      needs = "unit";
      is = named;
      also = [ ];
    };
  };

  probeProblems =
    subject: kind: p:
    let
      k = probeKinds.${kind};
      seconds = [ "intervalSeconds" "timeoutSeconds" ];
      numbers = [ "gracePeriodSeconds" ] ++ seconds;
    in
    record subject ([ "name" k.needs ] ++ k.also ++ numbers) p (
      when (!named (p.name or null)) "${subject} has no name; reports show it by its name"
      ++ (
        if !hasAttr k.needs p then
          [ "${subject} has no ${k.needs}; a probe of this kind needs it" ]
        else
          when (!k.is p.${k.needs}) "${subject}: ${k.needs} must be ${
            {
              url = "a URL, for example \"http://127.0.0.1:80/\"";
              port = "a port from 1 to 65535";
              command = "a list of words, for example [ \"/run/current-system/sw/bin/pg_isready\" ]";
              unit = "the name of a unit, for example \"nginx.service\"";
            }
            .${k.needs}
          }"
      )
      ++ concatMap (key: when (hasAttr key p && !uint p.${key}) "${subject}: ${key} ${whole "seconds"}") numbers
      ++ concatMap (key: when (p.${key} or null == 0) "${subject}: ${key} must be 1 or more") seconds
      ++ when (p ? expectStatus && !(uint p.expectStatus && p.expectStatus >= 100 && p.expectStatus <= 599))
        "${subject}: expectStatus must be a status of HTTP, from 100 to 599"
      ++ when (p ? host && !named p.host) "${subject}: host must be a name or an address"
    );

  healthProblems =
    subject: checks:
    let
      probes = concatMap (kind: listOr (checks.${kind} or null)) (attrNames probeKinds);
    in
    if checks == null then
      [ ]
    else
      record "${subject}: healthChecks" ([ "mode" ] ++ attrNames probeKinds) checks (
        map (name: "${subject}: healthChecks: two probes are named '${name}'; rename one, since the agent tells them apart by their names") (
          repeated (filter isString (map (p: (setOr p).name or null) probes))
        )
        ++ when (!elem (checks.mode or "enforce") [ "disabled" "permissive" "enforce" ])
          "${subject}: healthChecks.mode must be disabled, permissive or enforce"
        ++ concatMap (
          kind:
          let
            list = "${subject}: healthChecks.${kind}";
          in
          if isList (checks.${kind} or [ ]) then
            indexed (i: probeProblems "${list}[${toString i}]" kind) (checks.${kind} or [ ])
          else
            [ "${list} must be a list" ]
        ) (attrNames probeKinds)
      );

  rebootProblems =
    subject: p:
    if p == null then
      [ ]
    else
      record "${subject}: rebootPolicy" [ "mode" "window" ] p (
        when (!elem (p.mode or null) [ "never" "window" "immediate" ])
          "${subject}: rebootPolicy.mode ${said (p.mode or null)} is unknown; use never, window or immediate"
        ++ when (p.mode or null == "window" && !named (p.window or null))
          "${subject}: rebootPolicy.window is missing; write an OnCalendar expression such as \"Sun 03:00\""
        ++ when (p.mode or null != "window" && p.window or null != null)
          "${subject}: rebootPolicy.window belongs to mode = \"window\"; take it away or set the mode"
      );

  sharedKeys =
    let
      keyed = filter (n: isString ((setOr declared.hosts.${n}).pubkey or null)) (attrNames declared.hosts);
      # The comment at the end of a line is not part of the key.
      keyOf =
        n:
        let
          key = line declared.hosts.${n}.pubkey;
          m = match "(ssh-ed25519 [^ ]+).*" key;
        in
        if m == null then key else head m;
    in
    each (
      _: names:
      when (length names > 1) "hosts ${quoted names} have the same pubkey; each host needs a key of its own, or one could act as the other"
    ) (groupBy keyOf keyed);
in
{
  inherit pinProblems;
  problems = each hostProblems declared.hosts ++ sharedKeys;
  tagWarnings = each (
    name: f: map (tag: "host '${name}' lists tag '${tag}' more than once") (repeated f.tags)
  ) facts;
  pubkeyWarnings = each (
    name: h:
    when (isAttrs h && h.pubkey or null == null)
      "host '${name}' has no pubkey; it can neither enrol nor prove its reports: declare the line that 'nixfleet host prepare ${name}' prints"
  ) declared.hosts;
}
