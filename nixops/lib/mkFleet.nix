# mkFleet :: fleet arguments -> fleet
#
#   mkFleet {
#     hosts.web-01 = { system, tags, channel, pubkey, configuration, pin, healthChecks, rebootPolicy };
#     tags.web = { description, pin };
#     channels.stable = { rolloutPolicy, freshnessWindow, signingIntervalMinutes, ... };
#     rolloutPolicies.canary = { strategy, waves, healthGate, onHealthFailure, failureThreshold };
#     edges = [ { gated, gates, reason } ];
#     channelEdges = [ { gates, gated, reason, holds } ];
#     disruptionBudgets = [ { selector, maxInFlight, maxInFlightPct, slotUntil } ];
#     revocations = [ { hostname, notBefore, reason, revokedBy } ];
#     bootstrapNonces = [ { nonce, hostname, expiresAt, mintedAt, mintedBy } ];
#     operatorScopes.operator-jo = { channels = [ "edge*" ]; verbs = [ "read" "pause" ]; };
#     frameworks = [ "nis2" ];     # or with controls, see compliance.nix; without it v1's four
#     complianceFrameworks = [ ];  # v1's name for more names of frameworks
#   }
#
# What mergeFleets gives is taken as well, also with members replaced (`//`).
#
# gives
#
#   resolved            the document that `nixfleet release` stamps and signs
#   revocations         the bare list, for --revocations-attr
#   bootstrapNonces     the bare list, for --bootstrap-nonces-attr
#   nixosConfigurations, darwinConfigurations
#                       the hosts that carry a `configuration`, by their kind
#   warnings            what is allowed but suspicious, as sentences
#   hosts, channels, …  what was declared, as v1's mkFleet gives it
#
# The document holds nothing that changes from commit to commit: who signs it,
# when, and what was built is filled in by `nixfleet release`.
args:
let
  inherit (builtins)
    attrNames
    concatStringsSep
    filter
    foldl'
    hasAttr
    head
    length
    listToAttrs
    mapAttrs
    removeAttrs
    ;

  selector = import ./selector.nix;
  check = import ./check.nix;
  defaults = import ./defaults.nix;
  merged = import ./merged.nix;
  inherit (import ./sentences.nix) line setOr strings;

  given =
    if builtins.isAttrs args then
      merged.plain args
    else
      throw (
        "nixfleet: mkFleet takes an attribute set, { hosts = { … }; channels = { … }; … }; "
        + "a module or a file is imported by the caller, and several are joined with mergeFleets"
      );

  declared = {
    hosts = { };
    tags = { };
    channels = { };
    rolloutPolicies = { };
    edges = [ ];
    channelEdges = [ ];
    disruptionBudgets = [ ];
    revocations = [ ];
    bootstrapNonces = [ ];
    operatorScopes = { };
    complianceFrameworks = [ ];
    frameworks = if given ? complianceFrameworks then [ ] else defaults.frameworks;
  }
  // given;

  # Only what a selector may ask for, so that a configuration is never forced by one.
  # The checks ask for it too, before it is known to be well.
  facts = mapAttrs (_: h: {
    tags = if strings (h.tags or null) then h.tags else [ ];
    channel = if builtins.isString (h.channel or null) then h.channel else null;
  }) declared.hosts;

  optional = cond: set: if cond then set else { };
  some = name: from: optional (from.${name} or null != null) { ${name} = from.${name}; };

  # The most specific pin wins: host, then tag, then channel.
  pinOf =
    h:
    let
      tags = filter (t: declared.tags.${t}.pin or null != null) (h.tags or [ ]);
    in
    if h.pin or null != null then
      h.pin
    else if tags != [ ] then
      declared.tags.${head tags}.pin
    else
      declared.channels.${h.channel}.pin or null;

  pin = p: {
    inherit (p) commit reason;
  } // some "expiresAt" p;

  host =
    h:
    {
      system = h.system;
      tags = h.tags or [ ];
      channel = h.channel;
      closureHash = null;
      pubkey = line (h.pubkey or null);
    }
    // optional (pinOf h != null) { pin = pin (pinOf h); }
    // some "healthChecks" h
    // some "rebootPolicy" h;

  channel = c: {
    inherit (c) rolloutPolicy;
    reconcileIntervalMinutes = c.reconcileIntervalMinutes or defaults.reconcileIntervalMinutes;
    freshnessWindow = c.freshnessWindow or defaults.freshnessWindow;
    signingIntervalMinutes = c.signingIntervalMinutes or defaults.signingIntervalMinutes;
    compliance = {
      frameworks = c.compliance.frameworks or [ ];
      mode = defaults.modeOf (c.compliance or { });
    };
  }
  // some "emergency" c
  // optional (c.maintenance or null != null) {
    maintenance = {
      windows = map (w: { inherit (w) opens minutes; }) c.maintenance.windows;
    } // some "timeZone" c.maintenance;
  };

  # How long a wave soaks, and whether it may be empty. Seconds win; minutes are then
  # their ceiling, for readers that know only minutes.
  soak =
    w:
    (
      if w.soakSeconds or null != null then
        {
          inherit (w) soakSeconds;
          soakMinutes = (w.soakSeconds + 59) / 60;
        }
      else
        { soakMinutes = w.soakMinutes or 0; }
    )
    // optional (w.mayBeEmpty or null == true) { mayBeEmpty = true; };

  policy = p: {
    strategy = p.strategy or (if p.waves or [ ] == [ ] then "all-at-once" else "staged");
    waves = map (w: { selector = selector.lower facts w.selector; } // soak w) (p.waves or [ ]);
    healthGate =
      some "systemdFailedUnits" (p.healthGate or { }) // some "complianceProbes" (p.healthGate or { });
    onHealthFailure = p.onHealthFailure or defaults.onHealthFailure;
  }
  // optional (p.failureThreshold or null != null) {
    failureThreshold = some "minHosts" p.failureThreshold // some "minPercent" p.failureThreshold;
  };

  hostsByChannel = builtins.groupBy (name: facts.${name}.channel) (attrNames facts);

  # A wave holds hosts of its own channel only, and each host once, in the first
  # wave that means it: a host of another channel would never soak there.
  wavesOf =
    channelName: c:
    let
      step =
        acc: w:
        let
          means = selector.matches w.selector;
          hosts = filter (name: means name facts.${name}) acc.left;
          taken = listToAttrs (
            map (name: {
              inherit name;
              value = null;
            }) hosts
          );
        in
        {
          waves = acc.waves ++ [ ({ inherit hosts; } // soak w) ];
          left = filter (name: !(hasAttr name taken)) acc.left;
        };
    in
    foldl' step {
      waves = [ ];
      left = hostsByChannel.${channelName} or [ ];
    } (declared.rolloutPolicies.${c.rolloutPolicy}.waves or [ ]);

  waves = mapAttrs wavesOf declared.channels;

  edge = e: {
    inherit (e) gated gates;
    reason = e.reason or "";
  };
  channelEdge = e: {
    gates = e.gates or e.before;
    gated = e.gated or e.after;
    reason = e.reason or "";
  } // some "holds" e;

  budget = b: {
    selector = selector.lower facts b.selector;
    maxInFlight = b.maxInFlight or null;
    maxInFlightPct = b.maxInFlightPct or null;
  } // some "slotUntil" b;

  resolved = {
    schemaVersion = 1;
    hosts = mapAttrs (_: host) declared.hosts;
    channels = mapAttrs (_: channel) declared.channels;
    rolloutPolicies = mapAttrs (_: policy) declared.rolloutPolicies;
    waves = mapAttrs (_: w: w.waves) waves;
    edges = map edge declared.edges;
    channelEdges = map channelEdge declared.channelEdges;
    disruptionBudgets = map budget declared.disruptionBudgets;
    meta = {
      schemaVersion = 1;
      signedAt = null;
      ciCommit = null;
    };
  }
  // optional (declared.operatorScopes != { }) {
    operatorScopes = mapAttrs (_: s: {
      channels = s.channels or [ ];
      verbs = s.verbs or [ ];
    }) declared.operatorScopes;
  };

  revocations = map (r: {
    inherit (r) hostname notBefore;
    reason = r.reason or null;
    revokedBy = r.revokedBy or null;
  }) declared.revocations;

  bootstrapNonces = map (n: {
    inherit (n) nonce hostname expiresAt;
    mintedAt = n.mintedAt or null;
    mintedBy = n.mintedBy or null;
  }) declared.bootstrapNonces;

  found = check { inherit declared facts waves; };

  warn = builtins.warn or (message: builtins.trace "warning: ${message}");

  checked =
    value:
    if found.problems != [ ] then
      throw "nixfleet: the fleet has ${toString (length found.problems)} problem${
        if length found.problems == 1 then "" else "s"
      }:\n  - ${concatStringsSep "\n  - " found.problems}"
    else
      foldl' (v: w: warn "nixfleet: ${w}" v) value found.warnings;

  # By name only, so that one host can be built while the declaration of another has
  # a problem.
  configurations =
    darwin:
    mapAttrs (_: h: h.configuration) (
      removeAttrs declared.hosts (
        filter (
          name:
          let
            h = setOr declared.hosts.${name};
          in
          h.configuration or null == null
          || (builtins.match ".*-darwin" (toString (h.system or "")) != null) != darwin
        ) (attrNames declared.hosts)
      )
    );
in
declared
// {
  resolved = checked resolved;
  revocations = checked revocations;
  bootstrapNonces = checked bootstrapNonces;
  nixosConfigurations = configurations false;
  darwinConfigurations = configurations true;
  inherit (found) warnings;
}
