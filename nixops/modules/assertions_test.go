package modules

import (
	"fmt"
	"slices"
	"strings"
	"testing"
)

// Each mistake is caught when the configuration is evaluated, by a sentence that
// says how to mend it.
func TestAssertionsNameTheFix_A26_T13(t *testing.T) {
	nixpkgsLib(t)
	const agent, cp = "agent", "control-plane"
	for name, c := range map[string]struct {
		base, change string // a module on top of a good configuration
		want         string // in one failed assertion
	}{
		"switch-to-configuration taken away":  {agent, "system.switch.enable = false;", "system.switch.enable = true"},
		"autoUpgrade":                         {agent, "system.autoUpgrade.enable = true;", "set system.autoUpgrade.enable = false"},
		"comin":                               {agent, "services.comin.enable = true;", "set services.comin.enable = false"},
		"state on a tmpfs root":               {agent, `fileSystems."/".fsType = "tmpfs";`, "services.nixfleet-agent.stateDir (/var/lib/nixfleet-agent) is on a tmpfs"},
		"certificate on a tmpfs":              {agent, `fileSystems."/var/lib/nixfleet".fsType = "tmpfs";`, "persist /var/lib/nixfleet, or set services.nixfleet-agent.allowVolatileState = true"},
		"state on a ramfs":                    {agent, `fileSystems."/var".fsType = "ramfs";`, "allowVolatileState = true"},
		"no release key":                      {agent, "nixfleet.trust.ciReleaseKey.current = lib.mkForce null;", "set nixfleet.trust.ciReleaseKey.current to the public half that 'nixfleet keygen' printed"},
		"window without a time":               {agent, `services.nixfleet-agent.rebootPolicy.mode = "window";`, `window belongs to mode = "window"`},
		"time without a window":               {agent, `services.nixfleet-agent.rebootPolicy.window = "Sun 03:00";`, `window belongs to mode = "window"`},
		"plain http":                          {agent, `services.nixfleet-agent.controlPlaneUrl = lib.mkForce "http://cp";`, "must begin with https://"},
		"token in the store":                  {agent, `services.nixfleet-agent.bootstrapTokenFile = "${builtins.storeDir}/aaa-token";`, "give a path at run time"},
		"successor without a date":            {agent, `nixfleet.trust.ciReleaseKey.successor.public = "x";`, "successor and retireAt stand together"},
		"date without a successor":            {agent, `nixfleet.trust.orgRootKey.retireAt = "2027-01-01T00:00:00Z";`, "successor and retireAt stand together"},
		"previous without current":            {agent, `nixfleet.trust.orgRootKey = { current = lib.mkForce null; previous = "x"; };`, "move the key to current"},
		"control plane without a certificate": {cp, "services.nixfleet-control-plane.tls.cert = lib.mkForce null;", "'nixfleet keygen' makes both"},
		"org root beside it, agenix":          {cp, "age.secrets.org-root = { };", "Take this host out of its recipients"},
		"org root beside it, sops-nix":        {cp, `sops.secrets."fleet/org-root.key" = { };`, "Take this host out of its recipients"},
		"org root beside it, operator":        {cp, `nixfleet.operator = { enable = true; orgRootKeyFile = "/run/agenix/key"; };`, "Unset nixfleet.operator.orgRootKeyFile on this host"},
		"org root file in /etc":               {cp, `environment.etc."secrets/org-root.key".text = "x";`, "Take this host out of its recipients"},
		"key in the store":                    {cp, `services.nixfleet-control-plane.tls.key = lib.mkForce "${builtins.storeDir}/aaa-key";`, "give a path at run time"},
		"control plane without release key":   {cp, "nixfleet.trust.ciReleaseKey.current = lib.mkForce null;", "set nixfleet.trust.ciReleaseKey.current"},
		"half a TPM":                          {cp, `services.nixfleet-control-plane.tpmCaPubkeyRaw = "/etc/raw";`, "stand together; set both or neither"},
		"half a source":                       {cp, `services.nixfleet-control-plane.revocationsSource.artifactUrl = "https://x";`, "set both or neither"},
		"revocations without a database":      {cp, `services.nixfleet-control-plane = { dbPath = null; revocationsSource = { artifactUrl = "https://x"; signatureUrl = "https://y"; }; };`, "needs dbPath, for example"},
		"database elsewhere":                  {cp, `services.nixfleet-control-plane.dbPath = "/srv/state.db";`, "must lie in /var/lib/nixfleet-cp"},
		"strict without a client CA":          {cp, "services.nixfleet-control-plane = { strict = true; tls.clientCa = lib.mkForce null; };", "strict needs tls.clientCa"},
		"operator's key in the store":         {"operator", `nixfleet.operator.fleetRootKeyFile = lib.mkForce "${builtins.storeDir}/aaa-key";`, "give a path at run time"},
		"launchd agent without release key":   {"darwin", "nixfleet.trust.ciReleaseKey.current = lib.mkForce null;", "set nixfleet.trust.ciReleaseKey.current"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			var r rendered
			err := evaluate(t, fmt.Sprintf(`stub [
  (configurations + "/%s.nix")
  (root + "/roles/operator/module.nix")
  { options.age.secrets = lib.mkOption { default = { }; }; options.sops.secrets = lib.mkOption { default = { }; }; }
  ({ lib, ... }: { config = { %s }; })
]`, c.base, c.change), &r)
			if err != nil {
				t.Fatal(err)
			}
			if !slices.ContainsFunc(r.Failed, func(message string) bool { return strings.Contains(message, c.want) }) {
				t.Errorf("none of %q says %q", r.Failed, c.want)
			}
		})
	}
}

// What a person may well do is let through.
func TestAssertionsLetGoodConfigurationsThrough(t *testing.T) {
	nixpkgsLib(t)
	for name, c := range map[string][2]string{
		"persisted state on a tmpfs root":         {"agent", `fileSystems = { "/".fsType = "tmpfs"; "/var/lib/nixfleet-agent".fsType = "none"; "/var/lib/nixfleet".fsType = "none"; };`},
		"volatile, and meant":                     {"agent", `fileSystems."/".fsType = "tmpfs"; services.nixfleet-agent.allowVolatileState = true;`},
		"a trust file of one's own":               {"agent", `nixfleet.trust.ciReleaseKey.current = lib.mkForce null; services.nixfleet-agent.trustFile = "/etc/trust.json";`},
		"a trust file of the control plane's own": {"control-plane", `nixfleet.trust.ciReleaseKey.current = lib.mkForce null; services.nixfleet-control-plane.trustFile = "/etc/trust.json";`},
		"other secrets":                           {"control-plane", "age.secrets.issuing-ca = { };"},
		"an operator's command line":              {"control-plane", "nixfleet.operator.enable = true;"},
	} {
		t.Run(name, func(t *testing.T) {
			var r rendered
			err := evaluate(t, fmt.Sprintf(`stub [
  (configurations + "/%s.nix")
  (root + "/roles/operator/module.nix")
  { options.age.secrets = lib.mkOption { default = { }; }; }
  ({ lib, ... }: { config = { %s }; })
]`, c[0], c[1]), &r)
			if err != nil || len(r.Failed) > 0 {
				t.Errorf("%v, failed: %q", err, r.Failed)
			}
			// A trust.json of nobody in the closure would have the agent refuse it.
			for file, text := range r.Etc {
				if strings.HasSuffix(file, "trust.json") && strings.Contains(text, `"ciReleaseKey":{"current":null`) {
					t.Errorf("%s is %s", file, text)
				}
			}
		})
	}
}

// Types refuse what no assertion need look at.
func TestTypesRefuse(t *testing.T) {
	nixpkgsLib(t)
	for change, want := range map[string]string{
		"services.nixfleet-agent.pollInterval = 0;":                          "pollInterval",
		"services.nixfleet-agent.renewalThresholdFraction = 1.0;":            "renewalThresholdFraction",
		`services.nixfleet-agent.stateDir = "/var/lib/a b";`:                 "stateDir",
		`services.nixfleet-agent.complianceGate.mode = "enforced";`:          "complianceGate.mode",
		`services.nixfleet-agent.healthChecks.tcp = [ { name = "x"; } ];`:    "port",
		`services.nixfleet-agent.deferOn = [ "kernel-modules" ];`:            "deferOn",
		`nixfleet.trust.ciReleaseKey.rejectBefore = "yesterday";`:            "rejectBefore",
		`nixfleet.trust.ciReleaseKey.current.algorithm = lib.mkForce "rsa";`: "algorithm",
		"services.nixfleet-agent.controlPlaneURL = \"https://cp\";":          "does not exist",
	} {
		t.Run(want, func(t *testing.T) {
			err := evaluate(t, fmt.Sprintf(`stub [ (configurations + "/agent.nix") ({ lib, ... }: { %s }) ]`, change), nil)
			if err == nil || !strings.Contains(err.Error(), want) {
				t.Errorf("%s gives %v", change, err)
			}
		})
	}
}

// A configuration that admits nobody is allowed, and said.
func TestWarnings(t *testing.T) {
	nixpkgsLib(t)
	for change, want := range map[string]string{
		"nixfleet.trust.orgRootKey.current = lib.mkForce null;":          "no host can enrol until nixfleet.trust.orgRootKey.current",
		"services.nixfleet-control-plane.fleetCaKey = lib.mkForce null;": "set fleetCaCert and fleetCaKey",
	} {
		var r rendered
		if err := evaluate(t, fmt.Sprintf(`stub [ (configurations + "/control-plane.nix") ({ lib, ... }: { %s }) ]`, change), &r); err != nil {
			t.Fatal(err)
		}
		if !slices.ContainsFunc(r.Warnings, func(w string) bool { return strings.Contains(w, want) }) {
			t.Errorf("%q, want %q", r.Warnings, want)
		}
	}
}

// Firewall, cache keys and packages, where a NixOS looks for them.
func TestOptionsReachNixOS(t *testing.T) {
	read := func(name string) rendered {
		var r rendered
		nixpkgsLib(t)
		if err := evaluate(t, fmt.Sprintf(`stub [ (configurations + "/%s.nix") ]`, name), &r); err != nil {
			t.Fatal(err)
		}
		return r
	}
	if r := read("control-plane"); !slices.Equal(r.Ports, []int{8080}) {
		t.Errorf("open ports %v", r.Ports)
	}
	if r := read("control-plane-v1"); len(r.Ports) != 0 {
		t.Errorf("the firewall is open without being asked: %v", r.Ports)
	}
	full := read("agent-full")
	if len(full.Nix["trusted-public-keys"]) != 2 || !slices.Equal(full.Nix["substituters"], []string{"https://cache.example.com"}) {
		t.Errorf("nix.settings: %v", full.Nix)
	}
	if o := read("operator"); o.Variables["NIXFLEET_OPERATOR_ORG_ROOT_KEY"] != "/run/agenix/org-root" || !slices.Contains(o.Packages, "nixfleet") {
		t.Errorf("operator: %v, %v", o.Variables, o.Packages)
	}
}
