# Every invariant of a fleet declaration, as sentences that name the host, channel
# or edge and how to mend it. Gives { problems, warnings }; it never throws, so
# that all problems are seen at once.
{
  declared,
  facts,
  unplaced,
  known,
}:
let
  inherit (builtins)
    all
    attrNames
    concatLists
    concatMap
    concatStringsSep
    elem
    filter
    groupBy
    hasAttr
    isAttrs
    isInt
    isList
    isString
    length
    mapAttrs
    match
    ;

  selector = import ./selector.nix;

  when = cond: sentence: if cond then [ sentence ] else [ ];
  quoted = names: "'${concatStringsSep "', '" names}'";
  oneOf = names: if names == [ ] then "none is declared" else "declared are ${quoted names}";
  each = f: set: concatLists (builtins.attrValues (mapAttrs f set));
  indexed =
    f: list: concatLists (builtins.genList (i: f i (builtins.elemAt list i)) (length list));

  uint = v: isInt v && v >= 0 && v <= 4294967295;
  hex = v: isString v && match "[0-9a-f]+" v != null;
  time =
    v:
    isString v
    && match "[0-9]{4}-[0-9]{2}-[0-9]{2}[Tt ][0-9]{2}:[0-9]{2}:[0-9]{2}([.][0-9]+)?([Zz]|UTC|[+-][0-9]{2}:?([0-9]{2})?)" v
    != null;
  strings = v: isList v && all isString v;

  members =
    subject: allowed: set:
    concatMap (
      key: when (!elem key allowed) "${subject} has an unknown member '${key}'; known are ${quoted allowed}"
    ) (attrNames set);

  # ---- hosts

  hostMembers = [
    "channel"
    "configuration"
    "healthChecks"
    "pin"
    "pubkey"
    "rebootPolicy"
    "system"
    "tags"
  ];

  pinProblems =
    subject: p:
    if !isAttrs p then
      [ "${subject}: pin must be { commit, reason, expiresAt? }" ]
    else
      members "${subject}: pin" [ "commit" "expiresAt" "reason" ] p
      ++ when (!(hex (p.commit or null) && builtins.stringLength p.commit == 40))
        "${subject}: pin.commit must be a full commit of 40 hexadecimal digits; run 'git rev-parse REV' in the fleet repository"
      ++ when (!isString (p.reason or null)) "${subject}: pin.reason is missing; say why the pin is there"
      ++ when (p ? expiresAt && p.expiresAt != null && !time p.expiresAt)
        "${subject}: pin.expiresAt must be a time such as 2026-06-01T00:00:00Z";

  hostProblems =
    name: h:
    let
      subject = "host '${name}'";
      pinnedTags = filter (t: declared.tags.${t}.pin or null != null) facts.${name}.tags;
    in
    if !isAttrs h then
      [ "${subject} must be an attribute set" ]
    else
      when (match "[A-Za-z0-9]([A-Za-z0-9_-]{0,61}[A-Za-z0-9])?" name == null)
        "${subject}: the name must be a host name of letters, digits and inner hyphens or underscores, 63 at most"
      ++ members subject hostMembers h
      ++ when (!isString (h.system or null)) "${subject}: system is missing; write for example system = \"x86_64-linux\""
      ++ when (!strings (h.tags or [ ])) "${subject}: tags must be a list of strings"
      ++ (
        if !isString (h.channel or null) then
          [ "${subject}: channel is missing; ${oneOf (attrNames declared.channels)}" ]
        else
          when (!hasAttr h.channel declared.channels)
            "${subject} is on channel '${h.channel}', which is not declared; ${oneOf (attrNames declared.channels)}"
      )
      ++ when (
        h.pubkey or null != null
        && !(isString h.pubkey && match "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAI[A-Za-z0-9+/]{43}( .*)?" h.pubkey != null)
      ) "${subject}: pubkey must be an OpenSSH ed25519 line; take it from /etc/ssh/ssh_host_ed25519_key.pub of the host"
      ++ (if h.pin or null == null then [ ] else pinProblems subject h.pin)
      ++ when (h.pin or null == null && length pinnedTags > 1)
        "${subject} holds the pinned tags ${quoted pinnedTags}; give the host a pin of its own or take one tag away"
      ++ healthProblems subject (h.healthChecks or null)
      ++ rebootProblems subject (h.rebootPolicy or null);

  probeMembers = {
    http = [ "expectStatus" "gracePeriodSeconds" "intervalSeconds" "name" "timeoutSeconds" "url" ];
    tcp = [ "gracePeriodSeconds" "host" "intervalSeconds" "name" "port" "timeoutSeconds" ];
    exec = [ "command" "gracePeriodSeconds" "intervalSeconds" "name" "timeoutSeconds" ];
    units = [ "gracePeriodSeconds" "intervalSeconds" "name" "timeoutSeconds" "unit" ];
  };
  probeNeeds = {
    http = "url";
    tcp = "port";
    exec = "command";
    units = "unit";
  };

  healthProblems =
    subject: checks:
    if checks == null then
      [ ]
    else if !isAttrs checks then
      [ "${subject}: healthChecks must be { mode?, http?, tcp?, exec?, units? }" ]
    else
      members "${subject}: healthChecks" ([ "mode" ] ++ attrNames probeMembers) checks
      ++ when (!elem (checks.mode or "enforce") [ "disabled" "permissive" "enforce" ])
        "${subject}: healthChecks.mode must be disabled, permissive or enforce"
      ++ concatMap (
        kind:
        indexed (
          i: p:
          let
            probe = "${subject}: healthChecks.${kind}[${toString i}]";
          in
          members probe probeMembers.${kind} p
          ++ when (!isString (p.name or null)) "${probe} has no name"
          ++ when (!hasAttr probeNeeds.${kind} p) "${probe} has no ${probeNeeds.${kind}}"
        ) (checks.${kind} or [ ])
      ) (attrNames probeMembers);

  rebootProblems =
    subject: p:
    if p == null then
      [ ]
    else if !isAttrs p then
      [ "${subject}: rebootPolicy must be { mode, window? }" ]
    else
      members "${subject}: rebootPolicy" [ "mode" "window" ] p
      ++ when (!elem (p.mode or null) [ "never" "window" "immediate" ])
        "${subject}: rebootPolicy.mode must be never, window or immediate"
      ++ when (p.mode or null == "window" && !isString (p.window or null))
        "${subject}: rebootPolicy.window is missing; write an OnCalendar expression such as \"Sun 03:00\"";

  sharedKeys =
    let
      keyed = filter (n: isString (declared.hosts.${n}.pubkey or null)) (attrNames declared.hosts);
      # The comment at the end of a line is not part of the key.
      keyOf =
        n:
        let
          m = match "(ssh-ed25519 [^ ]+).*" declared.hosts.${n}.pubkey;
        in
        if m == null then declared.hosts.${n}.pubkey else builtins.head m;
    in
    each (
      _: names:
      when (length names > 1) "hosts ${quoted names} have the same pubkey; each host needs a key of its own, or one could act as the other"
    ) (groupBy keyOf keyed);

  # ---- channels and policies

  channelProblems =
    name: c:
    let
      subject = "channel '${name}'";
      freshness = c.freshnessWindow or 1440;
      signing = c.signingIntervalMinutes or 60;
      numbers = filter (key: c ? ${key} && !uint c.${key}) [
        "freshnessWindow"
        "reconcileIntervalMinutes"
        "signingIntervalMinutes"
      ];
    in
    if !isAttrs c then
      [ "${subject} must be an attribute set" ]
    else
      members subject [
        "compliance"
        "description"
        "freshnessWindow"
        "pin"
        "reconcileIntervalMinutes"
        "rolloutPolicy"
        "signingIntervalMinutes"
      ] c
      ++ (
        if !isString (c.rolloutPolicy or null) then
          [ "${subject}: rolloutPolicy is missing; ${oneOf (attrNames declared.rolloutPolicies)}" ]
        else
          when (!hasAttr c.rolloutPolicy declared.rolloutPolicies)
            "${subject} uses rollout policy '${c.rolloutPolicy}', which is not declared; ${oneOf (attrNames declared.rolloutPolicies)}"
      )
      ++ map (key: "${subject}: ${key} must be a whole number of minutes") numbers
      ++ when (numbers == [ ] && freshness < 2 * signing)
        "${subject}: freshnessWindow (${toString freshness} minutes) must be at least twice signingIntervalMinutes (${toString signing}), or one missed re-signing makes the release stale"
      ++ when (!elem (c.compliance.mode or "disabled") [ "disabled" "permissive" "enforce" ])
        "${subject}: compliance.mode '${toString c.compliance.mode}' is unknown; use disabled, permissive or enforce"
      ++ members "${subject}: compliance" [ "frameworks" "mode" ] (c.compliance or { })
      ++ concatMap (
        f:
        when (!elem f declared.frameworks)
          "${subject} asks for compliance framework '${f}', which is not declared; ${oneOf declared.frameworks}"
      ) (c.compliance.frameworks or [ ])
      ++ (if c.pin or null == null then [ ] else pinProblems subject c.pin);

  selectorProblems =
    subject: s:
    let
      shape = selector.shape s;
      missing = filter (h: !hasAttr h facts) (selector.named "hosts" s);
      channels = filter (c: !hasAttr c declared.channels) (selector.named "channel" s);
    in
    if shape != [ ] then
      map (sentence: "${subject} ${sentence}") shape
    else
      map (h: "${subject} names host '${h}', which is not declared") missing
      ++ map (c: "${subject} names channel '${c}', which is not declared; ${oneOf (attrNames declared.channels)}") channels;

  policyProblems =
    name: p:
    let
      subject = "rollout policy '${name}'";
      gate = p.healthGate or { };
    in
    if !isAttrs p then
      [ "${subject} must be an attribute set" ]
    else
      members subject [ "description" "healthGate" "onHealthFailure" "strategy" "waves" ] p
      ++ when (p ? strategy && !elem p.strategy [ "canary" "all-at-once" "staged" ])
        "${subject}: strategy '${toString p.strategy}' is unknown; use canary, staged or all-at-once"
      ++ when (!elem (p.onHealthFailure or "halt") [ "halt" "rollback-and-halt" ])
        "${subject}: onHealthFailure '${toString p.onHealthFailure}' is unknown; use halt or rollback-and-halt"
      ++ members "${subject}: healthGate" [ "complianceProbes" "systemdFailedUnits" ] gate
      ++ when (gate.systemdFailedUnits or null != null && !uint (gate.systemdFailedUnits.max or null))
        "${subject}: healthGate.systemdFailedUnits must be { max = NUMBER; }"
      ++ when (gate.complianceProbes or null != null && !builtins.isBool (gate.complianceProbes.required or null))
        "${subject}: healthGate.complianceProbes must be { required = true; } or false"
      ++ indexed (
        i: w:
        let
          wave = "${subject}: wave ${toString i}";
        in
        if !isAttrs w then
          [ "${wave} must be an attribute set" ]
        else
          members wave [ "selector" "soakMinutes" "soakSeconds" ] w
          ++ (if w ? selector then selectorProblems "${wave}: selector" w.selector else [ "${wave} has no selector" ])
          ++ when (!uint (w.soakMinutes or 0)) "${wave}: soakMinutes must be a whole number"
          ++ when (w.soakSeconds or null != null && !uint w.soakSeconds) "${wave}: soakSeconds must be a whole number"
      ) (p.waves or [ ]);

  # ---- order

  # What is left after every edge that cannot be part of a ring was taken away.
  ring =
    edges:
    let
      on = side: builtins.listToAttrs (map (e: { name = e.${side}; value = null; }) edges);
      sources = on "gates";
      sinks = on "gated";
      left = filter (e: hasAttr e.gated sources && hasAttr e.gates sinks) edges;
    in
    if length left == length edges then edges else ring left;

  ringProblems =
    what: edges:
    let
      left = ring edges;
    in
    when (left != [ ])
      "${what} wait for each other in a ring: ${
        concatStringsSep ", " (map (e: "'${e.gated}' waits for '${e.gates}'") left)
      }; take one edge away";

  edgeProblems = indexed (
    i: e:
    let
      subject = "edge ${toString i}";
      ends = filter (side: !isString (e.${side} or null)) [ "gated" "gates" ];
      missing = filter (side: !hasAttr e.${side} facts) [ "gated" "gates" ];
    in
    if ends != [ ] then
      [ "${subject} needs 'gated' (the host held) and 'gates' (the host waited for)" ]
    else if missing != [ ] then
      map (side: "${subject}: host '${e.${side}}' is not declared") missing
    else
      members subject [ "gated" "gates" "reason" ] e
      ++ when (e.gated == e.gates) "${subject}: host '${e.gated}' waits for itself; take the edge away"
      ++ when (facts.${e.gated}.channel != facts.${e.gates}.channel)
        "${subject}: '${e.gated}' (channel ${toString facts.${e.gated}.channel}) and '${e.gates}' (channel ${
          toString facts.${e.gates}.channel
        }) are on different channels; use a channel edge"
  ) declared.edges;

  wholeEdges = filter (e: isString (e.gated or null) && isString (e.gates or null)) declared.edges;

  channelEdgeSides = e: {
    gates = e.gates or e.before or null;
    gated = e.gated or e.after or null;
  };

  channelEdgeProblems = indexed (
    i: e:
    let
      subject = "channel edge ${toString i}";
      sides = channelEdgeSides e;
      missing = filter (side: !hasAttr sides.${side} declared.channels) [ "gated" "gates" ];
    in
    when (e ? gates && e ? before) "${subject} says both 'gates' and 'before'; keep 'gates'"
    ++ when (e ? gated && e ? after) "${subject} says both 'gated' and 'after'; keep 'gated'"
    ++ members subject [ "after" "before" "gated" "gates" "reason" ] e
    ++ (
      if !isString sides.gates || !isString sides.gated then
        [ "${subject} needs 'gates' (the channel that goes first) and 'gated' (the channel held)" ]
      else
        map (side: "${subject}: channel '${sides.${side}}' is not declared; ${oneOf (attrNames declared.channels)}") missing
        ++ when (sides.gates == sides.gated) "${subject}: channel '${sides.gated}' waits for itself; take the edge away"
    )
  ) declared.channelEdges;

  wholeChannelEdges = filter (e: isString e.gates && isString e.gated) (
    map channelEdgeSides declared.channelEdges
  );

  # ---- budgets and lists

  budgetProblems = indexed (
    i: b:
    let
      subject = "disruption budget ${toString i}";
      max = b.maxInFlight or null;
      pct = b.maxInFlightPct or null;
    in
    members subject [ "maxInFlight" "maxInFlightPct" "selector" ] b
    ++ (if b ? selector then selectorProblems "${subject}: selector" b.selector else [ "${subject} has no selector" ])
    ++ when (max == null && pct == null) "${subject} limits nothing; give maxInFlight or maxInFlightPct"
    ++ when (max != null && !(uint max && max >= 1)) "${subject}: maxInFlight must be 1 or more; 0 would hold its hosts for ever"
    ++ when (pct != null && !(uint pct && pct >= 1 && pct <= 100)) "${subject}: maxInFlightPct must be from 1 to 100"
  ) declared.disruptionBudgets;

  revocationProblems = indexed (
    i: r:
    let
      subject = "revocation ${toString i}";
    in
    members subject [ "hostname" "notBefore" "reason" "revokedBy" ] r
    ++ when (!isString (r.hostname or null)) "${subject} has no hostname"
    ++ when (!time (r.notBefore or null)) "${subject}: notBefore must be a time such as 2026-03-01T12:00:00Z; certificates issued before it are refused"
  ) declared.revocations;

  nonceProblems = indexed (
    i: n:
    let
      subject = "bootstrap nonce ${toString i}";
    in
    members subject [ "expiresAt" "hostname" "mintedAt" "mintedBy" "nonce" ] n
    ++ when (!(hex (n.nonce or null) && builtins.stringLength n.nonce == 32))
      "${subject}: nonce must be 32 lower-case hexadecimal digits; take it from the output of 'nixfleet mint-token'"
    ++ when (!hasAttr (toString (n.hostname or "")) facts) "${subject}: host '${toString (n.hostname or "")}' is not declared"
    ++ when (!time (n.expiresAt or null)) "${subject}: expiresAt must be a time such as 2026-03-02T12:00:00Z"
  ) declared.bootstrapNonces;

  tagProblems =
    name: t:
    members "tag '${name}'" [ "description" "pin" ] t
    ++ (if t.pin or null == null then [ ] else pinProblems "tag '${name}'" t.pin);

  problems =
    concatMap (key: when (!elem key known) "mkFleet has no member '${key}'; known are ${quoted known}") (
      attrNames declared
    )
    ++ each hostProblems declared.hosts
    ++ sharedKeys
    ++ each tagProblems declared.tags
    ++ each channelProblems declared.channels
    ++ each policyProblems declared.rolloutPolicies
    ++ edgeProblems
    ++ ringProblems "hosts" (filter (e: e.gated != e.gates) wholeEdges)
    ++ channelEdgeProblems
    ++ ringProblems "channels" (filter (e: e.gated != e.gates) wholeChannelEdges)
    ++ budgetProblems
    ++ revocationProblems
    ++ nonceProblems;

  # ---- what is allowed and yet suspicious

  held = builtins.listToAttrs (
    map (name: {
      inherit name;
      value = null;
    }) (concatMap (h: h.tags) (builtins.attrValues facts))
  );

  unheldTags =
    subject: s:
    map (t: "${subject} names tag '${t}', which no host holds") (
      filter (t: !hasAttr t held) (selector.named "tags" s ++ selector.named "tagsAny" s)
    );

  used = groupBy (n: toString facts.${n}.channel) (attrNames facts);

  warnings = [
    (each (
      name: h: when (h.pubkey or null == null) "host '${name}' has no pubkey; it can neither enrol nor prove its reports: declare the line that 'nixfleet host prepare ${name}' prints"
    ) declared.hosts)
    (each (
      name: c:
      when (!hasAttr name used) "channel '${name}' has no host"
      ++ when (
        declared.rolloutPolicies.${c.rolloutPolicy}.waves or [ ] != [ ] && unplaced.${name} != [ ]
      ) "channel '${name}': ${quoted unplaced.${name}} match no wave and update with wave 0; end the policy with { selector.all = true; }"
      ++ when (c.freshnessWindow or 1440 > 43200) "channel '${name}': a freshnessWindow above 30 days is cut by the control plane's own limit"
    ) declared.channels)
    (each (
      name: p:
      indexed (i: w: unheldTags "rollout policy '${name}': wave ${toString i}" w.selector) (p.waves or [ ])
    ) declared.rolloutPolicies)
    (indexed (
      i: b:
      unheldTags "disruption budget ${toString i}" b.selector
      ++ when (
        all (n: !selector.matches b.selector n facts.${n}) (attrNames facts)
      ) "disruption budget ${toString i} protects no host"
    ) declared.disruptionBudgets)
    (indexed (
      i: r:
      when (
        !hasAttr r.hostname facts
      ) "revocation ${toString i}: '${r.hostname}' is no declared host; that is right only for an operator's certificate"
    ) declared.revocations)
    (each (
      name: _: when (
        declared.tags != { } && !hasAttr name held
      ) "tag '${name}' is declared and no host holds it"
    ) declared.tags)
  ];
in
{
  inherit problems;
  # A warning may look at anything only when nothing is wrong.
  warnings = if problems == [ ] then concatLists warnings else [ ];
}
