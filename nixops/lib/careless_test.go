package lib

import (
	"fmt"
	"os"
	"strings"
	"testing"
)

// What is of the right type and cannot be meant is named as well, by the place where it
// stands and what to write instead.
func TestCarelessValuesAreNamed(t *testing.T) {
	nix(t)
	dir, err := os.Getwd()
	if err != nil {
		t.Fatal(err)
	}
	host := func(member string) string {
		return "base // { hosts.web-01 = base.hosts.web-01 // { " + member + " }; }"
	}
	wave := func(member string) string {
		return "base // { rolloutPolicies.staged.waves = [ { selector.all = true; " + member + " } ]; }"
	}
	selector := func(value string) string {
		return "base // { rolloutPolicies.staged.waves = [ { selector = " + value + "; } ]; }"
	}
	nonce := `nonce = "5f0c1e7a9b3d42868e6fa1c7d2b09e34"; hostname = "web-01";`
	for declaration, want := range map[string]string{
		host(`system = "";`):       "host 'web-01': system '' is none; write for example \"x86_64-linux\"",
		host(`system = "x86_64";`): "host 'web-01': system 'x86_64' is none",
		host(`tags = [ "" ];`):     "host 'web-01': tags must be a list of strings, none of them empty",
		host(`channel = "";`):      "host 'web-01' is on channel '', which is not declared; declared are 'stable'",
		host(`healthChecks.http = [ { name = ""; url = "http://x"; } ];`):                                                                                "host 'web-01': healthChecks.http[0] has no name",
		host(`healthChecks.http = [ { name = "a"; url = "localhost:80"; } ];`):                                                                           "host 'web-01': healthChecks.http[0]: url must be a URL, for example",
		host(`healthChecks.http = [ { name = "a"; url = "http://x"; expectStatus = 99999; } ];`):                                                         "healthChecks.http[0]: expectStatus must be a status of HTTP",
		host(`healthChecks.http = [ { name = "a"; url = "http://x"; intervalSeconds = 0; } ];`):                                                          "healthChecks.http[0]: intervalSeconds must be 1 or more",
		host(`healthChecks.http = [ { name = "a"; url = "http://x"; timeoutSeconds = 1.5; } ];`):                                                         "healthChecks.http[0]: timeoutSeconds must be a whole number of seconds",
		host(`healthChecks.tcp = [ { name = "a"; port = 22; host = null; } ];`):                                                                          "healthChecks.tcp[0]: host must be a name or an address",
		host(`healthChecks.exec = [ { name = "a"; command = [ "" ]; } ];`):                                                                               "healthChecks.exec[0]: command must be a list of words",
		host(`healthChecks.units = [ { name = "a"; unit = ""; } ];`):                                                                                     "healthChecks.units[0]: unit must be the name of a unit",
		host(`healthChecks = { tcp = [ { name = "a"; port = 22; } ]; exec = [ { name = "a"; command = [ "x" ]; } ]; };`):                                 "host 'web-01': healthChecks: two probes are named 'a'; rename one",
		host(`rebootPolicy = { mode = "window"; window = ""; };`):                                                                                        "host 'web-01': rebootPolicy.window is missing",
		host(`rebootPolicy = { mode = "never"; window = "Sun 03:00"; };`):                                                                                "host 'web-01': rebootPolicy.window belongs to mode = \"window\"",
		host(`pin = { commit = "4f1c0a9be27d5538c6a1f09d3b7e2460d8a5c913"; reason = "r"; expiresAt = "2026-02-31T00:00:00Z"; };`):                        "host 'web-01': pin.expiresAt must be a time in UTC",
		`base // { channels.stable = base.channels.stable // { freshnessWindow = 5000000000; }; }`:                                                       "channel 'stable': freshnessWindow must be a whole number of minutes, from 0 to 4294967295",
		`base // { channels.stable = base.channels.stable // { freshnessWindow = -5; }; }`:                                                               "channel 'stable': freshnessWindow must be a whole number of minutes",
		`base // { channels.stable = base.channels.stable // { emergency = ""; }; }`:                                                                     "channel 'stable': emergency must be a string that says why",
		`base // { channels.stable = base.channels.stable // { maintenance = { }; }; }`:                                                                  "channel 'stable': maintenance.windows must be a list",
		`base // { channels.stable = base.channels.stable // { maintenance.windows = [ ]; }; }`:                                                          "channel 'stable': maintenance.windows must be a list",
		`base // { channels.stable = base.channels.stable // { maintenance = { timeZone = 1; windows = [ { opens = "weekly"; minutes = 60; } ]; }; }; }`: "channel 'stable': maintenance: timeZone must be the name of a time zone",
		`base // { channels.stable = base.channels.stable // { maintenance.windows = [ { minutes = 60; } ]; }; }`:                                        "channel 'stable': maintenance: window 0: opens must be an OnCalendar expression",
		`base // { channels.stable = base.channels.stable // { maintenance.windows = [ { opens = "weekly"; minutes = 9; } ]; }; }`:                       "channel 'stable': maintenance: window 0: minutes must be from 10 to 44640",
		`base // { channels.stable = base.channels.stable // { maintenance.windows = [ { opens = "weekly"; minutes = 60; often = 1; } ]; }; }`:           "channel 'stable': maintenance: window 0",
		wave(`soakMinutes = -1;`):                                              "rollout policy 'staged': wave 0: soakMinutes must be a whole number of minutes",
		wave(`mayBeEmpty = "yes";`):                                            "rollout policy 'staged': wave 0: mayBeEmpty must be true or false",
		wave(`soakMinutes = null;`):                                            "rollout policy 'staged': wave 0: soakMinutes must be a whole number of minutes",
		wave(`soakSeconds = 4294967296;`):                                      "rollout policy 'staged': wave 0: soakSeconds must be a whole number of seconds, from 0 to 4294967295",
		wave(`soakSeconds = 0.5;`):                                             "rollout policy 'staged': wave 0: soakSeconds must be a whole number of seconds",
		selector(`let s.not = s; in s`):                                        "rollout policy 'staged': wave 0: selector is nested more than 100 levels deep",
		selector(`let s.and = [ s ]; in s`):                                    "rollout policy 'staged': wave 0: selector is nested more than 100 levels deep",
		selector(`{ and = [ { not.or = 1; } ]; }`):                             "rollout policy 'staged': wave 0: selector.and[0].not has an unknown member 'or'",
		selector(`{ and = [ { all = true; } { channel = [ "stable" ]; } ]; }`): "wave 0: selector.and[1] 'channel' must be a string",
		selector(`x: x`):                                                       "rollout policy 'staged': wave 0: selector is not an attribute set",
		`base // { disruptionBudgets = [ { selector.all = true; maxInFlight = 1.0; } ]; }`:         "disruption budget 0: maxInFlight must be 1 or more, in whole hosts",
		`base // { disruptionBudgets = [ { selector.all = true; maxInFlight = 99999999999; } ]; }`: "disruption budget 0: maxInFlight must be 1 or more, in whole hosts",
		`base // { disruptionBudgets = [ { selector.all = true; maxInFlightPct = 50.5; } ]; }`:     "disruption budget 0: maxInFlightPct must be from 1 to 100, without a fraction",
		`base // { revocations = [ { hostname = ""; notBefore = "2026-03-01T12:00:00Z"; } ]; }`:    "revocation 0 has no hostname",
		`base // { revocations = [ { hostname = "a"; notBefore = "2026-04-31T12:00:00Z"; } ]; }`:   "revocation 0: notBefore must be a time in UTC",
		`base // { bootstrapNonces = [ { ` + nonce + ` expiresAt = "2026-02-29T12:00:00Z"; } ]; }`: "bootstrap nonce 0: expiresAt must be a time in UTC",
		`base // { bootstrapNonces = [ { ` + nonce + ` expiresAt = "2100-02-29T12:00:00Z"; } ]; }`: "bootstrap nonce 0: expiresAt must be a time in UTC",
		`base // { hosts.web-01 = base.hosts.web-01 // { configuration = 3; }; frameworks.nis2.controls.x.check = config: config.a; channels.stable = base.channels.stable // { compliance = { frameworks = [ "nis2" ]; mode = "enforce"; }; }; }`:            "host 'web-01': its configuration is not a system",
		`base // { hosts.web-01 = base.hosts.web-01 // { configuration.config = { }; }; frameworks.nis2.controls.x.check = config: config.a.b; channels.stable = base.channels.stable // { compliance = { frameworks = [ "nis2" ]; mode = "enforce"; }; }; }`: "while control 'x' of framework 'nis2' looks at host 'web-01'",
	} {
		t.Run(declaration, func(t *testing.T) {
			t.Parallel()
			out, said, err := evaluate(t, fmt.Sprintf(
				"let base = import %s/testdata/base.nix; in ((import %s).mkFleet (%s)).resolved", dir, dir, declaration))
			if err == nil {
				t.Fatalf("evaluated to %s", out)
			}
			if !strings.Contains(said, want) {
				t.Errorf("said %q\nwant %q", said, want)
			}
		})
	}
}

// Every day that there is may be written.
func TestDaysOfTheCalendar(t *testing.T) {
	dir, err := os.Getwd()
	if err != nil {
		t.Fatal(err)
	}
	out, said, err := evaluate(t, fmt.Sprintf(`let
  inherit (import %s/sentences.nix) time;
  at = day: "${day}T12:00:00Z";
in {
  refused = builtins.filter (d: !time (at d)) [ "2024-02-29" "2000-02-29" "2026-02-28" "2026-01-31" "2026-04-30" "2026-06-29" "2026-12-31" "2026-10-01" "2026-11-30" ];
  accepted = builtins.filter (d: time (at d)) [ "2026-02-29" "1900-02-29" "2026-02-30" "2026-04-31" "2026-11-31" "2026-00-10" "2026-13-10" "2026-01-00" "2026-01-32" ];
}`, dir))
	if err != nil || strings.TrimSpace(string(out)) != `{"accepted":[],"refused":[]}` {
		t.Errorf("%s %v\n%s", out, err, said)
	}
}
