package lib

import (
	"fmt"
	"os"
	"strings"
	"testing"

	"nixfleet/nixops/fleet"
)

// v1Fleet is a fleet.nix as v1's users write it: frameworks that are known without a
// word, frameworks of their own, two parts that mergeFleets makes a fleet of, and hosts
// whose configurations v1's mkHost gives.
const v1Fleet = `let
  lib = import %s;
  base = import %[1]s/testdata/base.nix;
  configuration.config = {
    system.build.toplevel = "a system";
    systemd.services.compliance-evidence-collector = { };
  };
  web = {
    hosts.web-01 = base.hosts.web-01 // { inherit configuration; };
    channels.stable = {
      rolloutPolicy = "staged";
      freshnessWindow = 1440;
      compliance = { frameworks = [ "nis2" "house-rules" ]; mode = "enforce"; };
    };
    complianceFrameworks = [ "nis2" "house-rules" ];
  };
  desks = {
    hosts.web-02 = base.hosts.web-02 // { channel = "desks"; inherit configuration; };
    channels.desks = { rolloutPolicy = "staged"; freshnessWindow = 1440; compliance.mode = "disabled"; };
    rolloutPolicies.staged = {
      strategy = "staged";
      waves = [ { selector.and = [ { tags = [ "web" ]; } { not.hosts = [ "web-99" ]; } ]; soakMinutes = 5; } ];
    };
  };
  fleet = lib.mergeFleets [ web (desks // { rolloutPolicies.staged = { strategy = "all-at-once"; }; }) ];
in %s`

func TestV1Fleet(t *testing.T) {
	dir, err := os.Getwd()
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range [][2]string{
		// The fleet itself, and the argument of mkFleet that ours is.
		{`fleet.resolved == (lib.mkFleet fleet).resolved`, `true`},
		{`(lib.mkFleet (fleet // { edges = [ { gated = "web-01"; gates = "web-01"; } ]; })).resolved`,
			`host 'web-01' waits for itself`},
		{`builtins.attrNames fleet.nixosConfigurations`, `["web-01","web-02"]`},
		{`(lib.mergeFleets [ fleet { edges = [ 1 ]; } ]).edges`, `[1]`},
		// Frameworks that v1 knows, and others.
		{`fleet.resolved.channels.stable.compliance`, `{"frameworks":["nis2","house-rules"],"mode":"enforce"}`},
		{`(lib.mkFleet (base // {
  channels.stable = web.channels.stable // { compliance = { frameworks = [ "dora" ]; mode = "disabled"; }; };
})).resolved.channels.stable.compliance.frameworks`, `["dora"]`},
		{`(lib.mkFleet (base // web // { complianceFrameworks = [ "nis2" ]; rolloutPolicies.staged = { }; })).resolved`,
			`asks for compliance framework 'house-rules', which is not declared; declared are 'nis2'`},
		{`(lib.mkFleet (base // { complianceFrameworks = "nis2"; })).resolved`,
			`complianceFrameworks must be a list of names`},
		// A module is not an argument.
		{`(lib.mkFleet (base // { imports = [ ./a.nix ]; })).resolved`,
			`mkFleet has no member 'imports'; join files with mkFleet (mergeFleets [`},
		{`(lib.mkFleet ({ lib, ... }: { })).resolved`, `mkFleet takes an attribute set`},
		// What v1 gives of the declaration beside the document.
		{`builtins.mapAttrs (_: h: h.configuration.config.system.build.toplevel) fleet.hosts`,
			`{"web-01":"a system","web-02":"a system"}`},
		{`builtins.attrNames (lib.mkFleet fleet).hosts`, `["web-01","web-02"]`},
		// What v1's release scripts stamp.
		{`(lib.withSignature { signedAt = "2026-03-01T12:00:00Z"; ciCommit = "c"; } fleet.resolved).meta`,
			`{"ciCommit":"c","schemaVersion":1,"signedAt":"2026-03-01T12:00:00Z"}`},
		{`(lib.withSignature {
  signedAt = "2026-03-01T12:00:00Z"; ciCommit = null; signatureAlgorithm = "ecdsa-p256";
} fleet.resolved).meta.signatureAlgorithm`, `"ecdsa-p256"`},
	} {
		expression, want := c[0], c[1]
		t.Run(expression, func(t *testing.T) {
			t.Parallel()
			out, said, err := evaluate(t, fmt.Sprintf(v1Fleet, dir, expression))
			refused := !strings.ContainsAny(want[:1], `[{"`) && want != "true"
			if (err == nil) == refused || !strings.Contains(string(out)+said, want) {
				t.Errorf("gives %s\nwant %q\n%v %s", out, want, err, said)
			}
		})
	}
	out, said, err := evaluate(t, fmt.Sprintf(v1Fleet, dir, "fleet.resolved"))
	if err != nil {
		t.Fatalf("evaluate: %v\n%s", err, said)
	}
	if _, err := fleet.ParseFleet(out); err != nil {
		t.Errorf("our own reader refuses it: %v", err)
	}
}

// A host's configuration is what mkHost gives. Everything else that a person may put there
// is refused by the place where it stands, on every channel, and without evaluating more.
func TestConfigurationsOfTheWrongTypeAreRefused(t *testing.T) {
	dir, err := os.Getwd()
	if err != nil {
		t.Fatal(err)
	}
	for configuration, refused := range map[string]bool{
		`./hosts/web-01.nix`:                   true,
		`"web-01"`:                             true,
		`{ config, ... }: { }`:                 true,
		`[ ]`:                                  true,
		`{ services.nginx.enable = true; }`:    true,
		`{ type = "derivation"; name = "x"; }`: true,
		`null`:                                 false,
		`{ config = throw "evaluated"; }`:      false,
		`throw "not built on this machine"`:    false,
	} {
		out, said, err := evaluate(t, fmt.Sprintf(`let
  base = import %s/testdata/base.nix;
in ((import %[1]s).mkFleet (base // {
  hosts.web-01 = base.hosts.web-01 // { configuration = (%s); };
})).resolved.hosts.web-01.system`, dir, configuration))
		const want = "host 'web-01': its configuration is not a system; give what mkHost or nixosSystem returns"
		if refused && (err == nil || !strings.Contains(said, want)) || !refused && err != nil {
			t.Errorf("%s gives %s, said %q", configuration, out, said)
		}
	}
}

// Evidence that a configuration brings along gates the evaluation as the mode of the
// channel says, with frameworks or without; what only a collector can measure does not.
func TestStaticEvidence(t *testing.T) {
	dir, err := os.Getwd()
	if err != nil {
		t.Fatal(err)
	}
	const expression = `let
  base = import %[1]s/testdata/base.nix;
  fleet = (import %[1]s).mkFleet (base // {
    hosts.web-01 = base.hosts.web-01 // { configuration.config = {
      systemd.services.compliance-evidence-collector = { };
      compliance.evidence.probes = { luks = %[3]s; };
    }; };
    channels.stable = base.channels.stable // { compliance.mode = "%[2]s"; };
  });
in { inherit (fleet.resolved.channels.stable.compliance) mode; inherit (fleet) warnings; }`
	const failed = `{
  type = "static";
  staticEvidence = { passed = false; evidence = { disk = "sda"; encrypted = false; raw = x: x; }; };
}`
	const fails = `host 'web-01' fails the static control 'luks' (disk: sda, encrypted: false) of its ` +
		`compliance.evidence.probes, which channel 'stable' `
	for _, c := range [][3]string{
		{"enforce", failed,
			fails + `enforces; mend its configuration`},
		{"permissive", failed,
			`"warnings":["` + fails + `would refuse`},
		{"disabled", `throw "it is evaluated"`, `"warnings":[]`},
		{"enforce", strings.Replace(failed, "static\"", "both\"", 1), `fails the static control 'luks'`},
		{"enforce", strings.Replace(failed, "static\"", "runtime\"", 1), `"mode":"enforce"`},
		{"enforce", `{ staticEvidence.passed = false; }`, `"mode":"enforce"`},
		{"enforce", `{ type = "static"; staticEvidence.passed = true; }`, `"mode":"enforce"`},
		{"enforce", `{ type = "static"; staticEvidence = null; }`, `"mode":"enforce"`},
		{"enforce", `{ type = "static"; staticEvidence = { }; }`, `"mode":"enforce"`},
		{"enforce", `{ type = "static"; staticEvidence.passed = "false"; }`,
			`compliance.evidence.probes.luks.staticEvidence.passed must be true or false`},
	} {
		out, said, err := evaluate(t, fmt.Sprintf(expression, dir, c[0], c[1]))
		if !strings.Contains(string(out)+said, c[2]) || (err == nil) != strings.HasPrefix(c[2], `"`) {
			t.Errorf("%s, %s: %v\n%s\n%s\nwant %q", c[0], c[1], err, out, said, c[2])
		}
	}
}

// Under enforce the agent sends back every system that has no collector of evidence, so
// that such a fleet is refused before it is built.
func TestEnforceWantsACollector(t *testing.T) {
	dir, err := os.Getwd()
	if err != nil {
		t.Fatal(err)
	}
	const expression = `let base = import %[1]s/testdata/base.nix; in ((import %[1]s).mkFleet (base // {
  hosts.web-01 = base.hosts.web-01 // { system = "%[4]s"; configuration.config = { %[3]s }; };
  channels.stable = base.channels.stable // { compliance.mode = "%[2]s"; };
})).resolved.channels.stable.compliance.mode`
	const collector = `systemd.services.compliance-evidence-collector = { };`
	for _, c := range [][4]string{
		{"enforce", collector, "x86_64-linux", `"enforce"`},
		{"permissive", ``, "x86_64-linux", `"permissive"`},
		{"enforce", ``, "x86_64-linux",
			`its configuration has no unit compliance-evidence-collector.service: the agent would send every new system back`},
		{"enforce", `systemd.services.compliance-evidence-collector.enable = false;`, "x86_64-linux",
			`has no unit compliance-evidence-collector.service`},
		{"enforce", collector, "aarch64-darwin", `under launchd there is no collector of evidence`},
	} {
		out, said, err := evaluate(t, fmt.Sprintf(expression, dir, c[0], c[1], c[2]))
		if !strings.Contains(string(out)+said, c[3]) || (err == nil) != strings.HasPrefix(c[3], `"`) {
			t.Errorf("%q: %v\n%s\n%s\nwant %q", c[:3], err, out, said, c[3])
		}
	}
}

// What a declaration leaves out means here what it means in v1, where the same word is
// stronger than another: a failure brings the others back as well, and frameworks that are
// declared are enforced. A word that is written counts.
func TestDefaultsAreNotWeakerThanThoseOfV1(t *testing.T) {
	dir, err := os.Getwd()
	if err != nil {
		t.Fatal(err)
	}
	const expression = `let
  base = import %[1]s/testdata/base.nix;
  fleet = (import %[1]s).mkFleet (base // {
    channels.stable = base.channels.stable // { %[2]s };
    rolloutPolicies.staged = { %[3]s };
  });
in [ fleet.resolved.channels.stable.compliance.mode fleet.resolved.rolloutPolicies.staged.onHealthFailure ]`
	for _, c := range [][3]string{
		{``, ``, `["disabled","rollback-and-halt"]`},
		{`compliance = { };`, `onHealthFailure = "halt";`, `["disabled","halt"]`},
		{`compliance.frameworks = [ ];`, ``, `["disabled","rollback-and-halt"]`},
		{`compliance.frameworks = [ "nis2" ];`, ``, `["enforce","rollback-and-halt"]`},
		{`compliance = { frameworks = [ "nis2" ]; mode = "permissive"; };`, ``, `["permissive","rollback-and-halt"]`},
		{`compliance.mode = "enforce";`, ``, `["enforce","rollback-and-halt"]`},
	} {
		out, said, err := evaluate(t, fmt.Sprintf(expression, dir, c[0], c[1]))
		if err != nil || strings.TrimSpace(string(out)) != c[2] {
			t.Errorf("%q, %q: %s, want %s\n%v %s", c[0], c[1], out, c[2], err, said)
		}
	}
}
