package lib

import (
	"fmt"
	"os"
	"strings"
	"testing"
)

// Whatever a person writes in the wrong place, he reads a sentence of ours that names
// the place, and not an error from somewhere inside of mkFleet.
func TestWrongTypesAreNamed(t *testing.T) {
	nix(t)
	dir, err := os.Getwd()
	if err != nil {
		t.Fatal(err)
	}
	host := func(member string) string {
		return "base // { hosts.web-01 = base.hosts.web-01 // { " + member + " }; }"
	}
	channel := func(member string) string {
		return "base // { channels.stable = base.channels.stable // { " + member + " }; }"
	}
	policy := func(member string) string {
		return "base // { rolloutPolicies.staged = { " + member + " }; }"
	}
	for declaration, want := range map[string]string{
		`[ ]`:                                                                         "mkFleet takes an attribute set",
		`base // { hosts = [ ]; }`:                                                    "hosts must be an attribute set, { NAME = { … }; }",
		`base // { tags = [ ]; }`:                                                     "tags must be an attribute set",
		`base // { channels = [ ]; }`:                                                 "channels must be an attribute set",
		`base // { rolloutPolicies = [ ]; }`:                                          "rolloutPolicies must be an attribute set",
		`base // { edges = { }; }`:                                                    "edges must be a list",
		`base // { channelEdges = { }; }`:                                             "channelEdges must be a list",
		`base // { disruptionBudgets = { }; }`:                                        "disruptionBudgets must be a list",
		`base // { revocations = { }; }`:                                              "revocations must be a list",
		`base // { bootstrapNonces = { }; }`:                                          "bootstrapNonces must be a list",
		`base // { frameworks = "nis2"; }`:                                            "frameworks must be a list of names, or an attribute set",
		`base // { frameworks = [ 1 ]; }`:                                             "frameworks must be a list of names, or an attribute set",
		`base // { frameworks.nis2 = 1; }`:                                            "framework 'nis2' must be an attribute set",
		`base // { frameworks.nis2.controls = [ ]; }`:                                 "framework 'nis2': controls must be an attribute set",
		`base // { frameworks.nis2.controls.x = true; }`:                              "framework 'nis2': control 'x' must be an attribute set",
		`base // { frameworks.nis2.controls.x.check = true; }`:                        "framework 'nis2': control 'x': check must be a function",
		`base // { hosts.web-01 = null; }`:                                            "host 'web-01' must be an attribute set",
		`base // { tags.web = "x"; }`:                                                 "tag 'web' must be an attribute set",
		`base // { tags.web.pin = "x"; }`:                                             "tag 'web': pin must be an attribute set",
		`base // { channels.stable = null; }`:                                         "channel 'stable' must be an attribute set",
		`base // { rolloutPolicies.staged = "x"; }`:                                   "rollout policy 'staged' must be an attribute set",
		`base // { channels = base.channels // { "../x" = base.channels.stable; }; }`: "channel '../x': the name becomes part of file names and URLs",
		host(`tags = "web";`):                                                         "host 'web-01': tags must be a list of strings",
		host(`tags = [ 1 ];`):                                                         "host 'web-01': tags must be a list of strings",
		host(`tags = null;`):                                                          "host 'web-01': tags must be a list of strings",
		host(`system = 3; configuration = { };`):                                      "host 'web-01': system is missing",
		host(`pubkey = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAI4814d92093ac8a0f4a2163ab87dee509ba306a58f58";`): "host 'web-01': pubkey must be an OpenSSH ed25519 line",
		host(`pubkey = base.hosts.web-01.pubkey + "\nssh-rsa AAAA";`):                                        "host 'web-01': pubkey must be an OpenSSH ed25519 line",
		host(`pubkey = { };`):                                              "host 'web-01': pubkey must be an OpenSSH ed25519 line",
		host(`pin.commit = 5;`):                                            "host 'web-01': pin.commit must be a full commit",
		host(`healthChecks = "x";`):                                        "host 'web-01': healthChecks must be an attribute set",
		host(`healthChecks.http = { };`):                                   "host 'web-01': healthChecks.http must be a list",
		host(`healthChecks.http = [ "x" ];`):                               "host 'web-01': healthChecks.http[0] must be an attribute set",
		host(`healthChecks.tcp = [ { name = "x"; port = "5"; } ];`):        "host 'web-01': healthChecks.tcp[0]: port must be a port from 1 to 65535",
		host(`healthChecks.exec = [ { name = "x"; command = "true"; } ];`): "healthChecks.exec[0]: command must be a list of words",
		host(`healthChecks.units = [ { name = "x"; unit = "a.service"; timeoutSeconds = "1"; } ];`): "healthChecks.units[0]: timeoutSeconds must be a whole number",
		host(`rebootPolicy.mode = { };`): "host 'web-01': rebootPolicy.mode of type set is unknown; use never, window or immediate",
		host(`pin = { commit = "4f1c0a9be27d5538c6a1f09d3b7e2460d8a5c913"; reason = "r"; expiresAt = "2026-06-01T02:00:00+02:00"; };`): "host 'web-01': pin.expiresAt must be a time in UTC",
		channel(`freshnessWindow = "1 day";`):                                                                     "channel 'stable': freshnessWindow must be a whole number",
		channel(`freshnessWindow = 0; signingIntervalMinutes = 0;`):                                               "channel 'stable': signingIntervalMinutes must be 1 or more",
		channel(`compliance = "enforce";`):                                                                        "channel 'stable': compliance must be an attribute set",
		channel(`compliance.mode = { };`):                                                                         "channel 'stable': compliance.mode of type set is unknown; use disabled",
		channel(`compliance.frameworks = "nis2";`):                                                                "channel 'stable': compliance.frameworks must be a list of strings",
		channel(`compliance.frameworks = [ { } ];`):                                                               "channel 'stable': compliance.frameworks must be a list of strings",
		policy(`waves = { };`):                                                                                    "rollout policy 'staged': waves must be a list",
		policy(`waves = [ 1 ];`):                                                                                  "rollout policy 'staged': wave 0 must be an attribute set",
		policy(`waves = [ { selector.and = [ ]; } ];`):                                                            "wave 0: selector 'and' must be a list of one selector or more",
		policy(`waves = [ { selector.not.not = [ ]; } ];`):                                                        "wave 0: selector.not.not is not an attribute set",
		policy(`waves = [ { selector.and = [ { not.tags = "web"; } ]; } ];`):                                      "wave 0: selector.and[0].not 'tags' must be a list of strings",
		policy(`waves = [ { selector.and = [ { not.hosts = [ "web-99" ]; } ]; } ];`):                              "wave 0: selector names host 'web-99', which is not declared",
		policy(`waves = [ { selector.not.channel = "beta"; } ];`):                                                 "wave 0: selector names channel 'beta', which is not declared; declared are 'stable'",
		policy(`waves = [ { selector.all = true; soakMinutes = "5"; } ];`):                                        "wave 0: soakMinutes must be a whole number",
		policy(`healthGate = null;`):                                                                              "rollout policy 'staged': healthGate must be an attribute set",
		policy(`healthGate.systemdFailedUnits = { max = 0; min = 1; };`):                                          "healthGate.systemdFailedUnits must be { max = NUMBER; }",
		policy(`healthGate.complianceProbes.required = "yes";`):                                                   "healthGate.complianceProbes must be { required = true; }",
		policy(`strategy = { };`):                                                                                 "rollout policy 'staged': strategy of type set is unknown",
		policy(`onHealthFailure = null;`):                                                                         "rollout policy 'staged': onHealthFailure of type null is unknown",
		policy(`failureThreshold = 3;`):                                                                           "rollout policy 'staged': failureThreshold must be an attribute set",
		policy(`failureThreshold = { };`):                                                                         "failureThreshold says nothing; give minHosts or minPercent",
		policy(`failureThreshold.minHosts = 0;`):                                                                  "minHosts must be 1 or more",
		policy(`failureThreshold.minPercent = 101;`):                                                              "minPercent must be from 1 to 100",
		`base // { channelEdges = [ { gates = "stable"; gated = "stable"; holds = "all"; } ]; }`:                  "channel edge 0: holds 'all' is unknown; use active",
		`base // { disruptionBudgets = [ { selector.all = true; maxInFlight = 1; slotUntil = "healthy"; } ]; }`:   "disruption budget 0: slotUntil 'healthy' is unknown; use soaked or confirmed",
		`base // { edges = [ 1 ]; }`:                                                                              "edge 0 needs 'gated'",
		`base // { edges = [ { gated = "web-01"; gates = "web-02"; reason = 5; } ]; }`:                            "edge 0: reason must be a string",
		`base // { channelEdges = [ 1 ]; }`:                                                                       "channel edge 0 needs 'gates'",
		`base // { disruptionBudgets = [ 1 ]; }`:                                                                  "disruption budget 0 must be an attribute set",
		`base // { disruptionBudgets = [ { selector = 3; maxInFlight = 1.5; } ]; }`:                               "disruption budget 0: maxInFlight must be 1 or more",
		`base // { disruptionBudgets = [ { selector.all = true; maxInFlightPct = 101; } ]; }`:                     "disruption budget 0: maxInFlightPct must be from 1 to 100",
		`base // { revocations = [ 1 ]; }`:                                                                        "revocation 0 must be an attribute set",
		`base // { revocations = [ { hostname = "x"; notBefore = "2026-13-01T00:00:00Z"; } ]; }`:                  "revocation 0: notBefore must be a time in UTC",
		`base // { revocations = [ { hostname = "x"; notBefore = "2026-03-01T00:00:00.500000Z"; } ]; }`:           "revocation 0: notBefore must be a time in UTC",
		`base // { revocations = [ { hostname = "x"; notBefore = "2026-03-01T00:00:00Z"; reason = 3; } ]; }`:      "revocation 0: reason must be a string",
		`base // { bootstrapNonces = [ 1 ]; }`:                                                                    "bootstrap nonce 0 must be an attribute set",
		`base // { bootstrapNonces = [ { nonce = 3; hostname = { }; expiresAt = null; mintedAt = "today"; } ]; }`: "bootstrap nonce 0: mintedAt must be a time in UTC",
	} {
		t.Run(declaration, func(t *testing.T) {
			t.Parallel()
			expression := fmt.Sprintf("let base = import %s/testdata/base.nix; in ((import %s).mkFleet (%s)).resolved", dir, dir,
				declaration)
			out, said, err := evaluate(t, expression)
			if err == nil {
				t.Fatalf("evaluated to %s", out)
			}
			if !strings.Contains(said, want) {
				t.Errorf("said %q\nwant %q", said, want)
			}
		})
	}
}

// The same holds for what teams declare apart.
func TestMergeFleetsNamesWhatItRefuses(t *testing.T) {
	dir, err := os.Getwd()
	if err != nil {
		t.Fatal(err)
	}
	for parts, want := range map[string]string{
		`{ hosts = { }; }`:                      "mergeFleets takes a list of attribute sets",
		`[ 1 ]`:                                 "mergeFleets takes a list of attribute sets",
		`[ { } { host = { }; } ]`:               "mergeFleets: unknown member 'host'; known are hosts, tags,",
		`[ { hosts = [ ]; } ]`:                  "mergeFleets: hosts must be an attribute set in every part",
		`[ { edges = [ ]; } { edges = { }; } ]`: "mergeFleets: edges must be a list in every part",
		`[ { tags.a = { }; } { tags.b = { }; tags.a = 1; } ]`:                     "mergeFleets: tags 'a' is declared in more than one part; keep one",
		`[ { channels.x = 1; } { } { channels.x = 1; } ]`:                         "mergeFleets: channels 'x' is declared in more than one part",
		`[ { rolloutPolicies.p = 1; } { rolloutPolicies = { p = 1; q = 1; }; } ]`: "mergeFleets: rolloutPolicies 'p' is declared in more than one part",
	} {
		out, said, err := evaluate(t, fmt.Sprintf("(import %s).mergeFleets %s", dir, parts))
		if err == nil || !strings.Contains(said, want) {
			t.Errorf("%s gives %s, said %q\nwant %q", parts, out, said, want)
		}
	}
	out, said, err := evaluate(t, fmt.Sprintf(`{
  inherit ((import %s).mergeFleets [ { hosts.a = 1; edges = [ 1 ]; } { } { hosts.b = 2; edges = [ 2 ]; } ]) hosts edges;
}`, dir))
	if err != nil || !strings.Contains(string(out), `"edges":[1,2]`) ||
		!strings.Contains(string(out), `"hosts":{"a":1,"b":2}`) {
		t.Errorf("merged to %s: %v\n%s", out, err, said)
	}
}

// A key may be read from the file that ssh-keygen wrote; what is emitted is the line.
func TestPubkeyOfAFile(t *testing.T) {
	dir, err := os.Getwd()
	if err != nil {
		t.Fatal(err)
	}
	out, said, err := evaluate(t, fmt.Sprintf(`let base = import %s/testdata/base.nix; in ((import %s).mkFleet (base // {
  hosts.web-01 = base.hosts.web-01 // { pubkey = base.hosts.web-01.pubkey + " root@web-01\n"; };
})).resolved.hosts.web-01.pubkey`, dir, dir))
	if err != nil || !strings.HasSuffix(strings.TrimSpace(string(out)), ` root@web-01"`) {
		t.Errorf("pubkey %s: %v\n%s", out, err, said)
	}
}

// A host that is declared badly does not keep the others from being built.
func TestConfigurationsOfWholeHostsRemain(t *testing.T) {
	dir, err := os.Getwd()
	if err != nil {
		t.Fatal(err)
	}
	out, said, err := evaluate(t, fmt.Sprintf(`let
  fleet = (import %s).mkFleet {
    hosts.a = { system = "x86_64-linux"; configuration = "a"; };
    hosts.b = { configuration = "b"; };
    hosts.c = null;
    hosts.d = { system = "aarch64-darwin"; configuration = "d"; };
  };
in { inherit (fleet) nixosConfigurations darwinConfigurations; }`, dir))
	if err != nil {
		t.Fatalf("evaluate: %v\n%s", err, said)
	}
	if got := string(out); strings.TrimSpace(
		got) != `{"darwinConfigurations":{"d":"d"},"nixosConfigurations":{"a":"a","b":"b"}}` {
		t.Errorf("configurations %s", got)
	}
}

// What is allowed and suspicious is said, and nothing else is.
func TestWarnings(t *testing.T) {
	dir, err := os.Getwd()
	if err != nil {
		t.Fatal(err)
	}
	for declaration, want := range map[string]string{
		`base`: `[]`,
		// A host that goes first and yet waits for one that goes later.
		`base // {
  rolloutPolicies.staged.waves = [ { selector.hosts = [ "web-01" ]; } { selector.all = true; } ];
  edges = [ { gated = "web-01"; gates = "web-02"; } ];
}`: `["edge 0: 'web-01' (wave 0) waits for 'web-02' (wave 1), whose wave waits for it: neither is ever updated; turn the edge round, or put 'web-02' into an earlier wave"]`,
		`base // {
  rolloutPolicies.staged.waves = [ { selector.hosts = [ "web-01" ]; } { selector.all = true; } ];
  edges = [ { gated = "web-02"; gates = "web-01"; } ];
}`: `[]`,
		// A canary that is none.
		`base // {
  channels = base.channels // { edge.rolloutPolicy = "staged"; };
  hosts = base.hosts // { web-02 = base.hosts.web-02 // { channel = "edge"; }; };
  rolloutPolicies.staged.waves = [ { selector.hosts = [ "web-01" ]; } { selector.all = true; } ];
}`: `["rollout policy 'staged': wave 0 holds no host of 'edge' and is passed at once there"]`,
		`base // { disruptionBudgets = [ { selector = { not.tags = [ "db" ]; tags = [ "web" ]; }; maxInFlight = 1; } ]; }`: `["disruption budget 0 names tag 'db', which no host holds",` +
			`"disruption budget 0 has 'not', which wins over 'tags' beside it; put both into and = [ … ]"]`,
		`base // { hosts.web-01 = base.hosts.web-01 // { tags = [ "web" "web" ]; }; }`:                                                                                                              `["host 'web-01' lists tag 'web' more than once"]`,
		`base // { bootstrapNonces = let n = { nonce = "5f0c1e7a9b3d42868e6fa1c7d2b09e34"; hostname = "web-01"; expiresAt = "2026-03-02T12:00:00Z"; }; in [ n (n // { hostname = "web-02"; }) ]; }`: `["bootstrap nonce '5f0c1e7a9b3d42868e6fa1c7d2b09e34' is listed more than once; it is good for one host, once: take the others away"]`,
		`base // { revocations = [ { hostname = "web-01"; notBefore = "2026-03-01T00:00:00Z"; } { hostname = "web-01"; notBefore = "2026-02-01T00:00:00Z"; } ]; }`:                                  `["revocation of 'web-01' is listed more than once; the last entry counts"]`,
	} {
		out, said, err := evaluate(t, fmt.Sprintf(
			"let base = import %s/testdata/base.nix; in ((import %s).mkFleet (%s)).warnings", dir, dir, declaration))
		if err != nil {
			t.Fatalf("evaluate: %v\n%s", err, said)
		}
		if got := strings.TrimSpace(string(out)); got != want {
			t.Errorf("%s\nwarns %s\nwant  %s", declaration, got, want)
		}
	}
}

// Controls that can be seen in a configuration: a host that fails one is refused where
// its channel enforces the framework, warned of where it is permissive, and not even
// evaluated elsewhere.
func TestStaticCompliance(t *testing.T) {
	dir, err := os.Getwd()
	if err != nil {
		t.Fatal(err)
	}
	const fleet = `let
  base = import %[1]s/testdata/base.nix;
  controls = {
    disk-encryption = { description = "disks are encrypted at rest"; check = config: config.luks; };
    audit.check = config: config.audit;
  };
  fleet = (import %[1]s).mkFleet (base // {
    hosts = {
      web-01 = base.hosts.web-01 // {
        configuration.config = { luks = %[3]s; audit = true; systemd.services.compliance-evidence-collector = { }; };
      };
      web-02 = base.hosts.web-02 // { channel = "lab"; configuration = throw "a host of the lab is evaluated"; };
    };
    frameworks.nis2 = { inherit controls; };
    channels.stable = base.channels.stable // { compliance = { frameworks = [ "nis2" ]; mode = "%[2]s"; }; };
    channels.lab = base.channels.stable // { compliance = { frameworks = [ "nis2" ]; mode = "disabled"; }; };
  });
in { inherit (fleet.resolved.channels.stable) compliance; inherit (fleet) warnings; }`
	for _, c := range [][3]string{
		{"enforce", "true", `"mode":"enforce"`},
		{"enforce", "false",
			`host 'web-01' fails control 'disk-encryption' (disks are encrypted at rest) of framework 'nis2', which channel 'stable' enforces; mend its configuration`},
		{"permissive", "false",
			`"warnings":["host 'web-01' fails control 'disk-encryption' (disks are encrypted at rest) of framework 'nis2', which channel 'stable' would refuse`},
		{"disabled", `throw "it is evaluated"`, `"warnings":[]`},
	} {
		out, said, err := evaluate(t, fmt.Sprintf(fleet, dir, c[0], c[1]))
		if !strings.Contains(string(out)+said, c[2]) || (err == nil) != strings.HasPrefix(c[2], `"`) {
			t.Errorf("%s, luks = %s: %v\n%s\n%s\nwant %q", c[0], c[1], err, out, said, c[2])
		}
	}
	// Names of one team and controls of another.
	out, said, err := evaluate(t, fmt.Sprintf(`builtins.mapAttrs (_: f: builtins.attrNames (f.controls or { })) ((import %s).mergeFleets [
  { frameworks = [ "nis2" "iso" ]; } { } { frameworks.nis2.controls.a.check = _: true; }
]).frameworks`, dir))
	if err != nil || strings.TrimSpace(string(out)) != `{"iso":[],"nis2":["a"]}` {
		t.Errorf("merged to %s: %v\n%s", out, err, said)
	}
}

// The algebra, spelled out: who is meant of web-01 (web, eu; stable), web-02 (web, us; edge)
// and db-01 (db, eu; stable).
func TestSelectorsMean(t *testing.T) {
	dir, err := os.Getwd()
	if err != nil {
		t.Fatal(err)
	}
	for selector, want := range map[string]string{
		`{ }`:                          "",
		`{ tags = [ ]; }`:              "",
		`{ tags = [ "web" "eu" ]; }`:   "web-01",
		`{ tagsAny = [ "db" "us" ]; }`: "db-01 web-02",
		`{ hosts = [ "db-01" ]; tags = [ "us" ]; }`: "db-01 web-02",
		`{ channel = "stable"; }`:                   "db-01 web-01",
		`{ channel = null; all = false; }`:          "",
		`{ all = true; }`:                           "db-01 web-01 web-02",
		`{ not = { }; }`:                            "db-01 web-01 web-02",
		`{ not.all = true; }`:                       "",
		`{ not.tags = [ "web" ]; }`:                 "db-01",
		`{ not.not.tags = [ "web" ]; }`:             "web-01 web-02",
		`{ not.tags = [ "web" ]; all = true; and = [ { all = true; } ]; }`:                               "db-01",
		`{ and = [ { tags = [ "web" ]; } { not.tags = [ "us" ]; } ]; }`:                                  "web-01",
		`{ and = [ { tags = [ "web" ]; } { } ]; all = true; }`:                                           "",
		`{ and = [ { all = true; } { not.and = [ { tags = [ "eu" ]; } { channel = "stable"; } ]; } ]; }`: "web-02",
		`{ not = null; and = null; tags = [ "db" ]; }`:                                                   "db-01",
	} {
		out, said, err := evaluate(t, fmt.Sprintf(`let
  hosts = {
    web-01 = { tags = [ "web" "eu" ]; channel = "stable"; };
    web-02 = { tags = [ "web" "us" ]; channel = "edge"; };
    db-01 = { tags = [ "db" "eu" ]; channel = "stable"; };
  };
  inherit (import %s/selector.nix) lower matches shape;
  meant = builtins.filter (name: matches selector name hosts.${name}) (builtins.attrNames hosts);
  selector = %s;
  low = lower hosts selector;
in
assert shape selector == [ ];
assert builtins.attrNames low == [ "all" "channel" "hosts" "tags" "tagsAny" ];
assert builtins.filter (name: matches low name hosts.${name}) (builtins.attrNames hosts) == meant;
builtins.concatStringsSep " " meant`, dir, selector))
		if err != nil {
			t.Errorf("%s: %v\n%s", selector, err, said)
			continue
		}
		if got := strings.Trim(strings.TrimSpace(string(out)), `"`); got != want {
			t.Errorf("%s means %q, want %q", selector, got, want)
		}
	}
}

// Edges may form a chain as long as the fleet: it evaluates, and its ring is named
// without the chain that leads to it.
func TestLongChainOfEdges(t *testing.T) {
	dir, err := os.Getwd()
	if err != nil {
		t.Fatal(err)
	}
	const chain = `let
  ring = import %s/ring.nix;
  edge = from: to: { gates = "host-${toString from}"; gated = "host-${toString to}"; };
in map (e: e.gated) (ring (builtins.genList (i: edge i (i + 1)) 12000 ++ [ %s ]))`
	for more, want := range map[string]string{
		``:                   `[]`,
		`(edge 6001 6000)`:   `["host-6001","host-6000"]`,
		`(edge 7 7)`:         `["host-7"]`,
		`(edge 12000 11998)`: `["host-11999","host-12000","host-11998"]`,
	} {
		out, said, err := evaluate(t, fmt.Sprintf(chain, dir, more))
		if err != nil {
			t.Fatalf("evaluate: %v\n%s", err, said[max(0, len(said)-400):])
		}
		if got := strings.TrimSpace(string(out)); got != want {
			t.Errorf("with %q the ring is %.200s, want %s", more, got, want)
		}
	}
}
