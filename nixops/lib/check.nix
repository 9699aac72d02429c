# Every invariant of a fleet declaration, as sentences that name the host, channel
# or edge and how to mend it. Gives { problems, warnings }; it never throws, so
# that all problems are seen at once.
{
  declared,
  facts,
  waves,
}:
let
  inherit (builtins)
    all
    any
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
    hasAttr
    isBool
    isList
    isString
    length
    listToAttrs
    mapAttrs
    match
    stringLength
    typeOf
    ;
  inherit (import ./sentences.nix)
    each
    hex
    indexed
    notText
    oneOf
    quoted
    record
    repeated
    said
    strings
    text
    time
    uint
    unknown
    when
    whole
    ;

  selector = import ./selector.nix;
  ring = import ./ring.nix;
  hosts = import ./checkHosts.nix { inherit declared facts; };
  inherit (hosts) pinProblems;
  compliance = import ./compliance.nix { inherit declared facts; };
  defaults = import ./defaults.nix;

  # What mkFleet takes, and as what.
  kinds = {
    hosts = "set";
    tags = "set";
    channels = "set";
    rolloutPolicies = "set";
    edges = "list";
    channelEdges = "list";
    disruptionBudgets = "list";
    revocations = "list";
    bootstrapNonces = "list";
    operatorScopes = "set";
  };
  known = attrNames kinds ++ [ "complianceFrameworks" "frameworks" ];

  misshapen = each (
    key: kind:
    when (typeOf declared.${key} != kind) "${key} must be ${
      if kind == "set" then "an attribute set, { NAME = { … }; }" else "a list, [ … ]"
    }"
  ) kinds;

  channelsDeclared = oneOf (attrNames declared.channels);
  set = names: listToAttrs (map (name: { inherit name; value = null; }) names);

  # ---- channels and policies

  channelProblems =
    name: c:
    let
      subject = "channel '${name}'";
      freshness = c.freshnessWindow or defaults.freshnessWindow;
      signing = c.signingIntervalMinutes or defaults.signingIntervalMinutes;
      numbers = filter (key: c ? ${key} && !uint c.${key}) [
        "freshnessWindow"
        "reconcileIntervalMinutes"
        "signingIntervalMinutes"
      ];
      asked = c.compliance or { };
      mode = defaults.modeOf asked;
      frameworks = asked.frameworks or [ ];
    in
    when (match "[A-Za-z0-9][A-Za-z0-9._-]*" name == null)
      "${subject}: the name becomes part of file names and URLs; use letters, digits, dots, hyphens and underscores"
    ++ record subject
      [
        "compliance"
        "description"
        "emergency"
        "freshnessWindow"
        "maintenance"
        "pin"
        "reconcileIntervalMinutes"
        "rolloutPolicy"
        "signingIntervalMinutes"
      ]
      c
      (
        (
          if !isString (c.rolloutPolicy or null) then
            [ "${subject}: rolloutPolicy is missing; ${oneOf (attrNames declared.rolloutPolicies)}" ]
          else
            when (!hasAttr c.rolloutPolicy declared.rolloutPolicies)
              "${subject} uses rollout policy '${c.rolloutPolicy}', which is not declared; ${oneOf (attrNames declared.rolloutPolicies)}"
        )
        ++ map (key: "${subject}: ${key} ${whole "minutes"}") numbers
        ++ when (numbers == [ ] && signing == 0) "${subject}: signingIntervalMinutes must be 1 or more; it says how often CI signs anew"
        ++ when (numbers == [ ] && freshness < 2 * signing)
          "${subject}: freshnessWindow (${toString freshness} minutes) must be at least twice signingIntervalMinutes (${toString signing}), or one missed re-signing makes the release stale"
        ++ record "${subject}: compliance" [ "frameworks" "mode" ] asked (
          when (!elem mode [ "disabled" "permissive" "enforce" ])
            "${subject}: compliance.mode ${said mode} is unknown; use disabled, permissive or enforce"
          ++ (
            if strings frameworks then
              concatMap (
                f:
                when (!elem f compliance.names)
                  "${subject} asks for compliance framework '${f}', which is not declared; ${oneOf compliance.names}"
              ) frameworks
            else
              [ "${subject}: compliance.frameworks must be a list of strings" ]
          )
        )
        ++ pinProblems subject (c.pin or null)
        ++ when (!(text (c.emergency or null) && c.emergency or null != ""))
          "${subject}: emergency must be a string that says why this release waits for neither a window nor the end of a freeze"
        ++ (
          if c.maintenance or null == null then [ ] else maintenanceProblems "${subject}: maintenance" c.maintenance
        )
      );

  # When hosts of a channel may be given another closure. `release` reads the expressions.
  maintenanceProblems =
    subject: m:
    record subject [ "timeZone" "windows" ] m (
      when (!text (m.timeZone or null)) "${subject}: timeZone must be the name of a time zone such as Europe/Berlin"
      ++ (
        if !isList (m.windows or null) || m.windows == [ ] then
          [ "${subject}.windows must be a list such as [ { opens = \"Sat 02:00\"; minutes = 240; } ]" ]
        else
          indexed (
            i: w:
            let
              window = "${subject}: window ${toString i}";
            in
            record window [ "minutes" "opens" ] w (
              when (!isString (w.opens or null) || w.opens == "")
                "${window}: opens must be an OnCalendar expression such as \"Sat 02:00\""
              ++ when (!(uint (w.minutes or null) && w.minutes >= 10 && w.minutes <= 44640))
                "${window}: minutes must be from 10 to 44640 (31 days), in whole minutes"
            )
          ) m.windows
      )
    );

  selectorProblems =
    subject: s:
    let
      shape = selector.shape s;
      missing = filter (h: !hasAttr h facts) (selector.named "hosts" s);
      channels = filter (c: !hasAttr c declared.channels) (selector.named "channel" s);
    in
    if shape != [ ] then
      map (sentence: "${subject}: ${sentence}") shape
    else
      map (h: "${subject}: selector names host '${h}', which is not declared; correct the name or declare the host") missing
      ++ map (c: "${subject}: selector names channel '${c}', which is not declared; ${channelsDeclared}") channels;

  needsSelector =
    subject: v:
    if v ? selector then selectorProblems subject v.selector else [ "${subject} has no selector; write for example selector.tags = [ \"web\" ]" ];

  # From how many failures on a policy acts.
  thresholdProblems =
    subject: t:
    record subject [ "minHosts" "minPercent" ] t (
      when (t.minHosts or null == null && t.minPercent or null == null) "${subject} says nothing; give minHosts or minPercent"
      ++ when (t.minHosts or null != null && !(uint t.minHosts && t.minHosts >= 1))
        "${subject}: minHosts must be 1 or more, in whole hosts"
      ++ when (t.minPercent or null != null && !(uint t.minPercent && t.minPercent >= 1 && t.minPercent <= 100))
        "${subject}: minPercent must be from 1 to 100, without a fraction"
    );

  policyProblems =
    name: p:
    let
      subject = "rollout policy '${name}'";
      gate = p.healthGate or { };
      failed = gate.systemdFailedUnits or null;
      probes = gate.complianceProbes or null;
      strategy = p.strategy or "staged";
      onFailure = p.onHealthFailure or defaults.onHealthFailure;
      threshold = p.failureThreshold or null;
    in
    record subject [ "description" "failureThreshold" "healthGate" "onHealthFailure" "strategy" "waves" ] p (
      when (!elem strategy [ "canary" "all-at-once" "staged" ])
        "${subject}: strategy ${said strategy} is unknown; use canary, staged or all-at-once"
      ++ when (!elem onFailure [ "halt" "rollback-and-halt" ])
        "${subject}: onHealthFailure ${said onFailure} is unknown; use halt or rollback-and-halt"
      ++ (if threshold == null then [ ] else thresholdProblems "${subject}: failureThreshold" threshold)
      ++ record "${subject}: healthGate" [ "complianceProbes" "systemdFailedUnits" ] gate (
        when (failed != null && !(uint (failed.max or null) && attrNames failed == [ "max" ]))
          "${subject}: healthGate.systemdFailedUnits must be { max = NUMBER; }"
        ++ when (probes != null && !(isBool (probes.required or null) && attrNames probes == [ "required" ]))
          "${subject}: healthGate.complianceProbes must be { required = true; } or false"
      )
      ++ (
        if isList (p.waves or [ ]) then
          indexed (
            i: w:
            let
              wave = "${subject}: wave ${toString i}";
            in
            record wave [ "mayBeEmpty" "selector" "soakMinutes" "soakSeconds" ] w (
              needsSelector wave w
              ++ when (!isBool (w.mayBeEmpty or false)) "${wave}: mayBeEmpty must be true or false"
              ++ when (!uint (w.soakMinutes or 0)) "${wave}: soakMinutes ${whole "minutes"}"
              ++ when (w.soakSeconds or null != null && !uint w.soakSeconds) "${wave}: soakSeconds ${whole "seconds"}"
            )
          ) (p.waves or [ ])
        else
          [ "${subject}: waves must be a list" ]
      )
    );

  # ---- order

  ringProblems =
    what: edges:
    let
      left = ring edges;
    in
    when (left != [ ])
      "${what} wait for each other in a ring: ${
        concatStringsSep ", " (map (e: "'${e.gated}' waits for '${e.gates}'") left)
      }; take one edge away";

  sides = [ "gated" "gates" ];

  edgeProblems = indexed (
    i: e:
    let
      subject = "edge ${toString i}";
      missing = filter (side: !hasAttr e.${side} facts) sides;
    in
    if !all (side: isString (e.${side} or null)) sides then
      [ "${subject} needs 'gated' (the host held) and 'gates' (the host waited for)" ]
    else if missing != [ ] then
      map (side: "${subject}: host '${e.${side}}' is not declared; correct the name or take the edge away") missing
    else
      unknown subject (sides ++ [ "reason" ]) e
      ++ when (!text (e.reason or null)) "${subject}: reason must be a string that says why the order counts"
      ++ when (e.gated == e.gates) "${subject}: host '${e.gated}' waits for itself; take the edge away"
      ++ when (facts.${e.gated}.channel != facts.${e.gates}.channel)
        "${subject}: '${e.gated}' (channel ${toString facts.${e.gated}.channel}) and '${e.gates}' (channel ${
          toString facts.${e.gates}.channel
        }) are on different channels; use a channel edge"
  ) declared.edges;

  sided = filter (e: isString (e.gated or null) && isString (e.gates or null) && e.gated != e.gates);

  channelEdgeSides = e: {
    gates = e.gates or e.before or null;
    gated = e.gated or e.after or null;
  };

  channelEdgeProblems = indexed (
    i: e:
    let
      subject = "channel edge ${toString i}";
      ends = channelEdgeSides e;
      missing = filter (side: !hasAttr ends.${side} declared.channels) sides;
    in
    when (e ? gates && e ? before) "${subject} says both 'gates' and 'before'; keep 'gates'"
    ++ when (e ? gated && e ? after) "${subject} says both 'gated' and 'after'; keep 'gated'"
    ++ (
      if !isString ends.gates || !isString ends.gated then
        [ "${subject} needs 'gates' (the channel that goes first) and 'gated' (the channel held)" ]
      else
        unknown subject ([ "after" "before" "holds" "reason" ] ++ sides) e
        ++ when (!elem (e.holds or "active") [ "active" "opening" ])
          "${subject}: holds ${said e.holds} is unknown; use active (each host, while the channel before has an active rollout) or opening (only the opening of the rollout)"
        ++ when (!text (e.reason or null)) "${subject}: reason must be a string that says why the order counts"
        ++ map (side: "${subject}: channel '${ends.${side}}' is not declared; ${channelsDeclared}") missing
        ++ when (ends.gates == ends.gated) "${subject}: channel '${ends.gated}' waits for itself; take the edge away"
    )
  ) declared.channelEdges;

  # ---- budgets and lists

  budgetProblems = indexed (
    i: b:
    let
      subject = "disruption budget ${toString i}";
      max = b.maxInFlight or null;
      pct = b.maxInFlightPct or null;
    in
    record subject [ "maxInFlight" "maxInFlightPct" "selector" "slotUntil" ] b (
      needsSelector subject b
      ++ when (max == null && pct == null) "${subject} limits nothing; give maxInFlight or maxInFlightPct"
      ++ when (max != null && !(uint max && max >= 1)) "${subject}: maxInFlight must be 1 or more, in whole hosts; 0 would hold its hosts for ever"
      ++ when (pct != null && !(uint pct && pct >= 1 && pct <= 100)) "${subject}: maxInFlightPct must be from 1 to 100, without a fraction"
      ++ when (!elem (b.slotUntil or "soaked") [ "soaked" "confirmed" ])
        "${subject}: slotUntil ${said b.slotUntil} is unknown; use soaked or confirmed"
    )
  ) declared.disruptionBudgets;

  revocationProblems = indexed (
    i: r:
    let
      subject = "revocation ${toString i}";
    in
    record subject [ "hostname" "notBefore" "reason" "revokedBy" ] r (
      when (!isString (r.hostname or null) || r.hostname == "") "${subject} has no hostname; name the host, or the operator by the name in his certificate"
      ++ when (!time (r.notBefore or null)) "${subject}: notBefore must be a time in UTC such as 2026-03-01T12:00:00Z; certificates issued before it are refused"
      ++ map (key: "${subject}: ${key} must be a string") (notText r [ "reason" "revokedBy" ])
    )
  ) declared.revocations;

  nonceProblems = indexed (
    i: n:
    let
      subject = "bootstrap nonce ${toString i}";
    in
    record subject [ "expiresAt" "hostname" "mintedAt" "mintedBy" "nonce" ] n (
      when (!(hex (n.nonce or null) && stringLength n.nonce == 32))
        "${subject}: nonce must be 32 lower-case hexadecimal digits; take it from the output of 'nixfleet mint-token'"
      ++ (
        if !isString (n.hostname or null) then
          [ "${subject} has no hostname; name the host that the token is for" ]
        else
          when (!hasAttr n.hostname facts) "${subject}: host '${n.hostname}' is not declared; declare it or take the entry away"
      )
      ++ when (!time (n.expiresAt or null)) "${subject}: expiresAt must be a time in UTC such as 2026-03-02T12:00:00Z"
      ++ when (n.mintedAt or null != null && !time n.mintedAt) "${subject}: mintedAt must be a time in UTC such as 2026-03-01T12:00:00Z"
      ++ map (key: "${subject}: ${key} must be a string") (notText n [ "mintedBy" ])
    )
  ) declared.bootstrapNonces;

  tagProblems =
    name: t:
    record "tag '${name}'" [ "description" "pin" ] t (pinProblems "tag '${name}'" (t.pin or null));

  mistakes =
    concatMap (
      key:
      when (!elem key known) "mkFleet has no member '${key}'; ${
        if key == "imports" then
          "join files with mkFleet (mergeFleets [ (import ./a.nix) (import ./b.nix) ])"
        else
          "known are ${quoted known}"
      }"
    ) (attrNames declared)
    ++ (
      if misshapen != [ ] then
        misshapen
      else
        hosts.problems
        ++ each tagProblems declared.tags
        ++ compliance.problems
        ++ each channelProblems declared.channels
        ++ each policyProblems declared.rolloutPolicies
        ++ edgeProblems
        ++ ringProblems "hosts" (sided declared.edges)
        ++ channelEdgeProblems
        ++ ringProblems "channels" (sided (map channelEdgeSides declared.channelEdges))
        ++ budgetProblems
        ++ revocationProblems
        ++ nonceProblems
    );

  problems = if mistakes == [ ] then compliance.failures else mistakes;

  # ---- what is allowed and yet suspicious

  held = set (concatMap (h: h.tags) (attrValues facts));

  selectorWarnings =
    subject: s:
    map (t: "${subject} names tag '${t}', which no host holds") (
      filter (t: !hasAttr t held) (selector.named "tags" s ++ selector.named "tagsAny" s)
    )
    ++ map (sentence: "${subject} ${sentence}") (selector.shadowed s);

  hostNames = attrNames facts;
  used = groupBy (n: toString facts.${n}.channel) hostNames;

  # The channels of each policy.
  users = groupBy (channel: declared.channels.${channel}.rolloutPolicy) (attrNames declared.channels);
  policyOf = c: declared.rolloutPolicies.${c.rolloutPolicy}.waves or [ ];

  # The wave that a host is updated with. What matches none goes with the first.
  waveOf = mapAttrs (
    _: w:
    listToAttrs (
      concatLists (genList (i: map (name: { inherit name; value = i; }) (elemAt w.waves i).hosts) (length w.waves))
    )
  ) waves;

  backwards =
    e:
    let
      wave = name: waveOf.${facts.${e.gated}.channel}.${name} or 0;
    in
    when (wave e.gated < wave e.gates)
      "'${e.gated}' (wave ${toString (wave e.gated)}) waits for '${e.gates}' (wave ${toString (wave e.gates)}), whose wave waits for it: neither is ever updated; turn the edge round, or put '${e.gates}' into an earlier wave";

  twice = what: names: rest: map (name: "${what} '${name}' is listed more than once; ${rest}") (repeated names);

  warnings = [
    hosts.pubkeyWarnings
    compliance.warnings
    (each (
      name: c:
      when (!hasAttr name used) "channel '${name}' has no host"
      ++ when (
        policyOf c != [ ] && waves.${name}.left != [ ]
      ) "channel '${name}': ${quoted waves.${name}.left} match no wave and update with wave 0; end the policy with { selector.all = true; }"
      ++ when (c.freshnessWindow or defaults.freshnessWindow > 43200) "channel '${name}': a freshnessWindow above 30 days is cut by the control plane's own limit"
    ) declared.channels)
    (each (
      name: p:
      indexed (
        i: w:
        let
          wave = "rollout policy '${name}': wave ${toString i}";
          # The last one is for whatever is left.
          passing = filter (
            channel: i + 1 < length (policyOf declared.channels.${channel}) && (elemAt waves.${channel}.waves i).hosts == [ ]
          ) (filter (channel: hasAttr channel used) (users.${name} or [ ]));
        in
        selectorWarnings wave w.selector
        ++ when (passing != [ ]) "${wave} holds no host of ${quoted passing} and is passed at once there"
      ) (p.waves or [ ])
    ) declared.rolloutPolicies)
    (indexed (i: e: map (sentence: "edge ${toString i}: ${sentence}") (backwards e)) declared.edges)
    (indexed (
      i: b:
      let
        protects = selector.matches b.selector;
      in
      selectorWarnings "disruption budget ${toString i}" b.selector
      ++ when (
        !any (n: protects n facts.${n}) hostNames
      ) "disruption budget ${toString i} protects no host"
    ) declared.disruptionBudgets)
    (indexed (
      i: r:
      when (
        !hasAttr r.hostname facts
      ) "revocation ${toString i}: '${r.hostname}' is not a declared host; that is right only for an operator's certificate"
    ) declared.revocations)
    (twice "revocation of" (map (r: r.hostname) declared.revocations) "the last entry counts")
    (twice "bootstrap nonce" (map (n: n.nonce) declared.bootstrapNonces) "it is good for one host, once: take the others away")
    hosts.tagWarnings
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
