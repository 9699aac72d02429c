package modules

import (
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"
)

// Each mistake is caught when the configuration is evaluated, by a sentence that
// says how to mend it.
func TestAssertionsNameTheFix_A26_T13(t *testing.T) {
	nixpkgsLib(t)
	const agent, cp = "agent", "control-plane"
	const etcFixed = `system.etc.overlay = { enable = true; mutable = false; };`
	for name, c := range map[string]struct {
		base, change string // a module on top of a good configuration
		want         string // in one failed assertion
	}{
		"switch-to-configuration taken away": {agent, "system.switch.enable = false;", "system.switch.enable = true"},
		"state in a fixed /etc": {agent, etcFixed + `services.nixfleet-agent.stateDir = "/etc/nixfleet/state";`,
			"/etc/nixfleet/state must be writable, and with system.etc.overlay.mutable = false nothing in /etc is"},
		"certificate in a fixed /etc": {agent,
			etcFixed + `services.nixfleet-agent.tls.clientCert = "/etc/nixfleet/agent-cert.pem";`,
			"/etc/nixfleet/agent-cert.pem must be writable"},
		"host key in a fixed /etc": {agent, etcFixed,
			"keep it below /var/lib and name it in services.openssh.hostKeys"},
		"autoUpgrade": {agent, "system.autoUpgrade.enable = true;",
			"set system.autoUpgrade.enable = false"},
		"comin": {agent, "services.comin.enable = true;",
			"set services.comin.enable = false"},
		"state on a tmpfs root": {agent, `fileSystems."/".fsType = "tmpfs";`,
			"services.nixfleet-agent.stateDir (/var/lib/nixfleet-agent) is on a tmpfs"},
		"certificate on a tmpfs": {agent, `fileSystems."/var/lib/nixfleet".fsType = "tmpfs";`,
			"persist /var/lib/nixfleet, or set services.nixfleet-agent.allowVolatileState = true"},
		"state on a ramfs": {agent, `fileSystems."/var".fsType = "ramfs";`,
			"allowVolatileState = true"},
		"no release key": {agent, "nixfleet.trust.ciReleaseKey.current = lib.mkForce null;",
			"set nixfleet.trust.ciReleaseKey.current to the public half that 'nixfleet keygen' printed"},
		"window without a time": {agent, `services.nixfleet-agent.rebootPolicy.mode = "window";`,
			`window belongs to mode = "window"`},
		"time without a window": {agent, `services.nixfleet-agent.rebootPolicy.window = "Sun 03:00";`,
			`window belongs to mode = "window"`},
		"two probes of one name": {agent,
			`services.nixfleet-agent.healthChecks = { tcp = [ { name = "a"; port = 22; } ]; units = [ { name = "a"; unit = "sshd.service"; } ]; };`, "two probes have the name a; rename one"},
		"two probes of one name, launchd": {"darwin",
			`services.nixfleet-agent.healthChecks.tcp = [ { name = "a"; port = 22; } { name = "a"; port = 23; } ];`,
			"two probes have the name a; rename one"},
		"plain http": {agent,
			`services.nixfleet-agent.controlPlaneUrl = lib.mkForce "http://cp";`, "must begin with https://"},
		"token in the store": {agent,
			`services.nixfleet-agent.bootstrapTokenFile = "${builtins.storeDir}/aaa-token";`, "give a path at run time"},
		"successor without a date": {agent, `nixfleet.trust.ciReleaseKey.successor.public = "x";`,
			"successor and retireAt stand together"},
		"date without a successor": {agent, `nixfleet.trust.orgRootKey.retireAt = "2027-01-01T00:00:00Z";`,
			"successor and retireAt stand together"},
		"previous without current": {agent,
			`nixfleet.trust.orgRootKey = { current = lib.mkForce null; previous = "x"; };`, "move the key to current"},
		"control plane without a certificate": {cp, "services.nixfleet-control-plane.tls.cert = lib.mkForce null;",
			"'nixfleet keygen' makes both"},
		"org root beside it, agenix": {cp, "age.secrets.org-root = { };", "Take this host out of its recipients"},
		"org root beside it, sops-nix": {cp, `sops.secrets."fleet/org-root.key" = { };`,
			"Take this host out of its recipients"},
		"org root beside it, operator": {cp,
			`nixfleet.operator = { enable = true; orgRootKeyFile = "/run/agenix/key"; };`,
			"Unset nixfleet.operator.orgRootKeyFile on this host"},
		"org root file in /etc": {cp, `environment.etc."secrets/org-root.key".text = "x";`,
			"Take this host out of its recipients"},
		"org root under another name": {cp, `age.secrets.orgRoot = { };`,
			"(orgRoot). Take this host out of its recipients"},
		"org root behind another name": {cp, `age.secrets.x.file = "/secrets/org-root.key.age";`,
			"(org-root.key.age). Take this host out of its recipients"},
		"org root as another key of sops": {cp, `sops.secrets.x.key = "org_root";`,
			"(org_root). Take this host out of its recipients"},
		"deploy key in the store": {cp,
			`services.nixfleet-control-plane.source.sshKeyFile = lib.mkForce "${builtins.storeDir}/aaa-key";`,
			"give a path at run time"},
		"token in a URL": {cp,
			`services.nixfleet-control-plane.source.url = lib.mkForce "git+https://oauth2:glpat-1@forge.example.com/fleet.git";`,
			"write it into a file and name that as tokenFile"},
		"token alone in a URL": {cp,
			`services.nixfleet-control-plane.channelRefsSource = { artifactUrl = "https://ghp_1@forge.example.com/a"; signatureUrl = "https://forge.example.com/b"; };`, "write it into a file"},
		"token in a query": {cp,
			`services.nixfleet-control-plane.rolloutsSource.artifactUrlTemplate = "https://forge.example.com/{rolloutId}?private_token=x";`, "write it into a file"},
		"password for the cache": {cp,
			`services.nixfleet-control-plane.closureUpstream = "https://u:p@cache.example.com";`, "write it into a file"},
		"launchd agent over plain http": {"darwin", `services.nixfleet-agent.controlPlaneUrl = lib.mkForce "http://cp";`,
			"must begin with https://"},
		"launchd agent's token in the store": {"darwin",
			`services.nixfleet-agent.bootstrapTokenFile = lib.mkForce "${builtins.storeDir}/aaa-token";`,
			"give a path at run time"},
		"TPM without its group": {"control-plane-tpm", "users.groups = lib.mkForce { };",
			"set security.tpm2.enable = true"},
		"a webhook without its secret": {cp, `services.nixfleet-control-plane.notify.webhook.url = "https://x";`,
			"url and secretFile stand together"},
		"mail to nobody": {cp, `services.nixfleet-control-plane.notify.mail.server = "smtps://x";`,
			"server, from and to stand together"},
		"password in the mail server": {cp,
			`services.nixfleet-control-plane.notify.mail.server = "smtps://a:b@x";`, "write it into a file"},
		"half a template": {cp,
			`services.nixfleet-control-plane.rolloutsSource.artifactUrlTemplate = "https://x/{rolloutId}";`,
			"stand together, both with {rolloutId}"},
		"template of nothing": {cp,
			`services.nixfleet-control-plane.rolloutsSource = { artifactUrlTemplate = "https://x/{rolloutId}"; signatureUrlTemplate = "https://x/sig"; };`, "stand together, both with {rolloutId}"},
		"org root in sops beside its namesake": {cp,
			`age.secrets.x.file = "/secrets/org-root.key.age"; sops.secrets.x = { };`, "Take this host out of its recipients"},
		"release key cut short": {agent,
			`nixfleet.trust.ciReleaseKey.current.public = lib.mkForce "0EqyMnQrtKs6E2i9RhXk5tAiSrcaAWuvhSCjMsl3hzc";`,
			"nixfleet.trust.ciReleaseKey.current is not the base64 of an ed25519 key"},
		"release key of another kind": {agent,
			`nixfleet.trust.ciReleaseKey.previous = { algorithm = "ecdsa-p256"; public = "0EqyMnQrtKs6E2i9RhXk5tAiSrcaAWuvhSCjMsl3hzc="; };`, "nixfleet.trust.ciReleaseKey.previous is not the base64 of an ecdsa-p256 key"},
		"org root that is a PEM block": {agent,
			`nixfleet.trust.orgRootKey.current = lib.mkForce "-----BEGIN PUBLIC KEY-----";`,
			"nixfleet.trust.orgRootKey.current is not the base64"},
		"root that is the path of a certificate": {agent, `nixfleet.trust.rootCAPem = "/etc/nixfleet/root.pem";`,
			"nixfleet.trust.rootCAPem is not a certificate in PEM"},
		"issuing CA that is a path": {cp, `nixfleet.trust.issuanceCAPems = [ "secrets/issuing-ca.cert.pem" ];`,
			"nixfleet.trust.issuanceCAPems holds a text that is not a certificate"},
		"cache key without its name": {agent,
			`nixfleet.trust.cacheKeys = [ "0EqyMnQrtKs6E2i9RhXk5tAiSrcaAWuvhSCjMsl3hzc=" ];`,
			"is not a public key of a cache, NAME:BASE64"},
		"private half of a cache key": {agent,
			`nixfleet.trust.cacheKeys = [ "cache-1:R8rn7+h1C32o+upzHTUV1+5E/yY3GVj6theQ52c7HeE5JEgpY05bvxS6eX1VhTJd85NY1WP18OCGOOVwOLTe+A==" ];`, "nixfleet.trust.cacheKeys: 'cache-1…' is not a public key"},
		"cache that is not a key": {"agent-full", `services.nixfleet-cache.publicKey = lib.mkForce "cache:x";`,
			"services.nixfleet-cache.publicKey is not a public key"},
		"key in the store": {cp,
			`services.nixfleet-control-plane.tls.key = lib.mkForce "${builtins.storeDir}/aaa-key";`, "give a path at run time"},
		"control plane without release key": {cp, "nixfleet.trust.ciReleaseKey.current = lib.mkForce null;",
			"set nixfleet.trust.ciReleaseKey.current"},
		"half a TPM": {cp, `services.nixfleet-control-plane.tpmCaPubkeyRaw = "/etc/raw";`,
			"stand together; set both or neither"},
		"half a source": {cp,
			`services.nixfleet-control-plane.revocationsSource.artifactUrl = "https://x";`, "set both or neither"},
		"revocations without a database": {cp,
			`services.nixfleet-control-plane = { dbPath = null; revocationsSource = { artifactUrl = "https://x"; signatureUrl = "https://y"; }; };`, "needs dbPath, for example"},
		"database elsewhere": {cp, `services.nixfleet-control-plane.dbPath = "/srv/state.db";`,
			"must lie in /var/lib/nixfleet-cp"},
		"strict without a client CA": {cp,
			"services.nixfleet-control-plane = { strict = true; tls.clientCa = lib.mkForce null; };",
			"strict needs tls.clientCa"},
		"operator's key in the store": {"operator",
			`nixfleet.operator.fleetRootKeyFile = lib.mkForce "${builtins.storeDir}/aaa-key";`, "give a path at run time"},
		"launchd agent without release key": {"darwin", "nixfleet.trust.ciReleaseKey.current = lib.mkForce null;",
			"set nixfleet.trust.ciReleaseKey.current"},
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
		"persisted state on a tmpfs root": {"agent",
			`fileSystems = { "/".fsType = "tmpfs"; "/var/lib/nixfleet-agent".fsType = "none"; "/var/lib/nixfleet".fsType = "none"; };`},
		"a fixed /etc with keys elsewhere": {"agent", `system.etc.overlay = { enable = true; mutable = false; };
			services.openssh.hostKeys = [ { type = "rsa"; path = "/etc/ssh/rsa"; } { type = "ed25519"; path = "/var/lib/ssh/key"; } ];`},
		"a fixed /etc with a key in it": {"agent", `system.etc.overlay = { enable = true; mutable = false; };
			environment.etc."ssh/ssh_host_ed25519_key".source = "/run/keys/host";`},
		"a writable overlay": {"agent", `system.etc.overlay = { enable = true; mutable = true; };`},
		"volatile, and meant": {"agent",
			`fileSystems."/".fsType = "tmpfs"; services.nixfleet-agent.allowVolatileState = true;`},
		"a trust file of one's own": {"agent",
			`nixfleet.trust.ciReleaseKey.current = lib.mkForce null; services.nixfleet-agent.trustFile = "/etc/trust.json";`},
		"a trust file of the control plane's own": {"control-plane",
			`nixfleet.trust.ciReleaseKey.current = lib.mkForce null; services.nixfleet-control-plane.trustFile = "/etc/trust.json";`},
		"other secrets": {"control-plane", "age.secrets.issuing-ca = { };"},
		"certificates in the store": {"control-plane",
			`services.nixfleet-control-plane = { tls.cert = lib.mkForce "${builtins.storeDir}/aaa-cert"; tls.clientCa = lib.mkForce "${builtins.storeDir}/aaa-ca"; fleetCaCert = lib.mkForce "${builtins.storeDir}/aaa-issuing"; };`},
		"the public half of the org root": {"control-plane", `environment.etc."nixfleet/org-root.pub".text = "x";`},
		"a forge's user without a secret": {"control-plane",
			`services.nixfleet-control-plane.source.url = lib.mkForce "ssh://git@forge.example.com:2222/fleet.git#main";`},
		"defaults of v1": {"agent",
			`services.nixfleet-agent.tls = { clientCert = null; clientKey = null; };`},
		"an operator's command line": {"control-plane", "nixfleet.operator.enable = true;"},
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
		"services.nixfleet-agent.pollInterval = 0;":                                            "pollInterval",
		"services.nixfleet-agent.renewalThresholdFraction = 1.0;":                              "renewalThresholdFraction",
		"services.nixfleet-agent.settleTimeSeconds = 0;":                                       "settleTimeSeconds",
		`services.nixfleet-agent.maxManifestAge = "a day";`:                                    "maxManifestAge",
		`services.nixfleet-agent.stateDir = "/var/lib/a b";`:                                   "stateDir",
		`services.nixfleet-agent.complianceGate.mode = "enforced";`:                            "complianceGate.mode",
		`services.nixfleet-agent.healthChecks.tcp = [ { name = "x"; } ];`:                      "port",
		`services.nixfleet-agent.healthChecks.http = [ { name = "a"; url = "localhost"; } ];`:  "url' is not of type",
		`services.nixfleet-agent.healthChecks.units = [ { name = ""; unit = "a.service"; } ];`: "name' is not of type",
		`services.nixfleet-agent.healthChecks.tcp = [ { name = "x"; port = 0; } ];`:            "between 1 and 65535",
		`services.nixfleet-agent.deferOn = [ "kernel-modules" ];`:                              "deferOn",
		`nixfleet.trust.ciReleaseKey.rejectBefore = "yesterday";`:                              "rejectBefore",
		`nixfleet.trust.ciReleaseKey.current.algorithm = lib.mkForce "rsa";`:                   "algorithm",
		"services.nixfleet-agent.controlPlaneURL = \"https://cp\";":                            "does not exist",
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
	for change, c := range map[string]struct{ base, want string }{
		`age.secrets.other = { };`: {"control-plane", "/run/agenix/issuing-ca.key.pem, "},
		`age.secrets = { }; services.nixfleet-control-plane.fleetCaKey = lib.mkForce "/run/agenix/typo";`: {
			"control-plane", "status=243/CREDENTIALS"},
		`age.secrets.token = { }; services.nixfleet-agent.bootstrapTokenFile = lib.mkForce "/run/agenix/tokem";`: {"agent",
			"services.nixfleet-agent reads /run/agenix/tokem, which no secret of this host declares"},
		"nixfleet.trust.orgRootKey.current = lib.mkForce null;": {
			"control-plane", "no host can enrol until nixfleet.trust.orgRootKey.current"},
		"services.nixfleet-control-plane.fleetCaKey = lib.mkForce null;": {
			"control-plane", "set fleetCaCert and fleetCaKey"},
		`services.nixfleet-agent.complianceGate.mode = "enforce";`: {"darwin",
			"there is no collector of evidence under launchd"},
	} {
		var r rendered
		if err := evaluate(t, fmt.Sprintf(`stub [
  (configurations + "/%s.nix")
  { options.age.secrets = lib.mkOption { type = lib.types.attrsOf lib.types.anything; default = { }; }; }
  ({ lib, ... }: { %s })
]`, c.base, change), &r); err != nil {
			t.Fatal(err)
		}
		if !slices.ContainsFunc(r.Warnings, func(w string) bool { return strings.Contains(w, c.want) }) {
			t.Errorf("%q, want %q", r.Warnings, c.want)
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
	if len(full.Nix["trusted-public-keys"]) != 2 ||
		!slices.Equal(full.Nix["substituters"], []string{"https://cache.example.com"}) {
		t.Errorf("nix.settings: %v", full.Nix)
	}
	var named rendered
	err := evaluate(t,
		`stub [ (root + "/nixops/cache.nix") { nixfleet.cache = { enable = true; cacheUrl = "https://cache.example.com"; publicKey = "cache.example.com-1:AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA="; }; } ]`, &named)
	if err != nil || !slices.Equal(named.Nix["substituters"], []string{"https://cache.example.com"}) ||
		len(named.Nix["trusted-public-keys"]) != 1 {
		t.Errorf("nixfleet.cache: %v, %v", err, named.Nix)
	}
	if o := read("operator"); o.Variables["NIXFLEET_OPERATOR_ORG_ROOT_KEY"] != "/run/agenix/org-root" ||
		!slices.Contains(o.Packages, "nixfleet") {
		t.Errorf("operator: %v, %v", o.Variables, o.Packages)
	}
}

// What a unit reads only at its start and this configuration writes to /etc restarts it
// when it changes [A16].
func TestFilesInEtcRestartTheirReaders_A16(t *testing.T) {
	nixpkgsLib(t)
	trigger := func(base, unit, change string) string {
		t.Helper()
		var r rendered
		if err := evaluate(t, fmt.Sprintf(`stub [ (configurations + "/%s.nix") ({ lib, ... }: { %s }) ]`, base, change),
			&r); err != nil {
			t.Fatal(err)
		}
		if base == "darwin" {
			return string(r.Daemons[unit])
		}
		_, rest, _ := strings.Cut(r.Units[unit], "\nX-Restart-Triggers=")
		line, _, _ := strings.Cut(rest, "\n")
		return line
	}
	for _, c := range [][3]string{
		{"agent", "nixfleet-agent.service",
			`services.nixfleet-agent.tls.caCert = "/etc/nixfleet/ca.pem"; environment.etc."nixfleet/ca.pem".text = "%s";`},
		{"agent", "nixfleet-agent.service",
			`services.nixfleet-agent.trustFile = "/etc/own/trust.json"; environment.etc."own/trust.json".source = "${builtins.storeDir}/aaa-trust-%s";`},
		{"darwin", "nixfleet-agent", `environment.etc."nixfleet/fleet-root.cert.pem".text = "%s";`},
		{"darwin", "nixfleet-agent", `services.nixfleet-agent.healthChecks.tcp = [ { name = "%s"; port = 22; } ];`},
		// nix-darwin has the empty text where a file is given as its source.
		{"darwin", "nixfleet-agent",
			`services.nixfleet-agent.trustFile = "/etc/own/trust.json"; environment.etc."own/trust.json" = { text = ""; source = "${builtins.storeDir}/aaa-trust-%s"; };`},
		{"darwin", "nixfleet-agent", `nixfleet.trust.orgRootKey.previous = "%s";`},
		{"control-plane", "nixfleet-control-plane.service", `environment.etc."nixfleet/known_hosts".text = "%s";`},
		{"control-plane", "nixfleet-control-plane.service",
			`services.nixfleet-control-plane.tls.clientCa = lib.mkForce "/etc/nixfleet/ca.pem"; environment.etc."nixfleet/ca.pem".text = "%s";`},
	} {
		one, other := trigger(c[0], c[1], fmt.Sprintf(c[2], "one")), trigger(c[0], c[1], fmt.Sprintf(c[2], "other"))
		if one == "" || one == other {
			t.Errorf("%s has the triggers %q and %q with %s", c[1], one, other, c[2])
		}
	}
}

// The token of the fleet document serves the lists that name none of their own, also when
// the document itself is read from elsewhere.
func TestOneTokenForAllSources(t *testing.T) {
	nixpkgsLib(t)
	var r rendered
	err := evaluate(t, `stub [ (configurations + "/control-plane.nix") {
  services.nixfleet-control-plane = {
    channelRefsSource.tokenFile = "/run/agenix/forge";
    revocationsSource = { artifactUrl = "https://forge/r"; signatureUrl = "https://forge/r.sig"; };
    bootstrapNoncesSource = { artifactUrl = "https://forge/n"; signatureUrl = "https://forge/n.sig"; tokenFile = "/run/agenix/own"; };
    rolloutsSource = { artifactUrlTemplate = "https://forge/{rolloutId}"; signatureUrlTemplate = "https://forge/{rolloutId}.sig"; };
  };
} ]`, &r)
	if err != nil {
		t.Fatal(err)
	}
	unit := r.Units["nixfleet-control-plane.service"]
	for _, want := range []string{
		"--revocations-token-file=%d/channel-refs-token", "--bootstrap-nonces-token-file=%d/bootstrap-nonces-token",
		"--rollouts-source-token-file=%d/channel-refs-token", "LoadCredential=channel-refs-token:/run/agenix/forge",
	} {
		if !strings.Contains(unit, want) {
			t.Errorf("the unit has no %s:\n%s", want, unit)
		}
	}
}

// A directory that the operating system shares keeps its mode when a certificate is put
// into it.
func TestCertificateDirectoryIsMadeAndNotTaken(t *testing.T) {
	nixpkgsLib(t)
	var r rendered
	if err := evaluate(t,
		`stub [ (configurations + "/agent.nix") { services.nixfleet-agent.tls.clientCert = "/var/lib/agent-cert.pem"; } ]`,
		&r); err != nil {
		t.Fatal(err)
	}
	if !slices.Equal(r.Rules, []string{"d /var/lib :0700 :root :root -"}) {
		t.Errorf("tmpfiles: %q", r.Rules)
	}
	if unit := r.Units["nixfleet-agent.service"]; !strings.Contains(unit,
		"RequiresMountsFor=/var/lib/nixfleet-agent\nRequiresMountsFor=/var/lib\n") {
		t.Errorf("the agent may start before its directories are mounted:\n%s", unit)
	}
}

// A root of tokens that is only announced, or only closed, reaches trust.json as well.
func TestOrgRootWithoutCurrentIsKept_T10(t *testing.T) {
	nixpkgsLib(t)
	var r rendered
	err := evaluate(t, `stub [ (configurations + "/agent.nix") ({ lib, ... }: {
  nixfleet.trust.orgRootKey = { current = lib.mkForce null; rejectBefore = "2026-03-01T00:00:00Z"; };
}) ]`, &r)
	if err != nil {
		t.Fatal(err)
	}
	if text := r.Etc["nixfleet/agent/trust.json"]; !strings.Contains(text,
		`"orgRootKey":{"current":null,"previous":null,"rejectBefore":"2026-03-01T00:00:00Z"`) {
		t.Errorf("trust.json is %s", text)
	}
}

// Where the Nix daemon is not root, root has to go through it as everybody else, and only
// there: NixOS sets NIX_REMOTE for sessions, and a unit gets nothing of a session.
func TestNixRemoteFollowsTheDaemonsUser(t *testing.T) {
	nixpkgsLib(t)
	for user, want := range map[string]bool{"nix-daemon": true, "root": false, "": false} {
		change := ""
		if user != "" {
			change = fmt.Sprintf(`{ options.nix.daemonUser = lib.mkOption { type = lib.types.str; }; config.nix.daemonUser = "%s"; }`, user)
		}
		var r rendered
		if err := evaluate(t, fmt.Sprintf(`stub [ (configurations + "/agent.nix") %s ]`, change), &r); err != nil {
			t.Fatal(err)
		}
		for _, unit := range []string{"nixfleet-agent.service", "nixfleet-guard.service", "nixfleet-boot-complete.service"} {
			if has := strings.Contains(r.Units[unit], "Environment=\"NIX_REMOTE=daemon\"\n"); has != want {
				t.Errorf("the daemon is %q: %s has NIX_REMOTE: %t", user, unit, has)
			}
		}
	}
}

// The agent takes the key that sshd uses, wherever that is kept.
func TestHostKeyIsThatOfSshd(t *testing.T) {
	nixpkgsLib(t)
	var r rendered
	err := evaluate(t, `stub [ (configurations + "/agent.nix") {
  services.openssh.hostKeys = [ { type = "rsa"; path = "/persist/rsa"; } { type = "ed25519"; path = "/persist/ed25519"; } ];
} ]`, &r)
	if err != nil {
		t.Fatal(err)
	}
	unit := r.Units["nixfleet-agent.service"]
	for _, flag := range []string{"--client-key=/persist/ed25519", "--ssh-host-key-file=/persist/ed25519"} {
		if !strings.Contains(unit, flag) {
			t.Errorf("the unit has no %s:\n%s", flag, unit)
		}
	}
}

// The control plane's memory is bounded by the size of its fleet; the agent's is not, for
// what Nix uses in a download or a build would count as well. Neither dumps its memory.
func TestBoundsOfMemory(t *testing.T) {
	nixpkgsLib(t)
	for change, want := range map[string]string{
		"":                   "MemoryMax=1149M\n",
		"fleetSize = 40000;": "MemoryMax=6024M\n",
		"memoryMax = 512;":   "MemoryMax=512M\n",
		"memoryMax = null;":  "",
	} {
		var r rendered
		if err := evaluate(t,
			fmt.Sprintf(`stub [ (configurations + "/control-plane.nix") { services.nixfleet-control-plane = { %s }; } ]`,
				change), &r); err != nil {
			t.Fatal(err)
		}
		unit := r.Units["nixfleet-control-plane.service"]
		if !strings.Contains(unit, want) || !strings.Contains(unit, "LimitCORE=0\n") {
			t.Errorf("with %q the unit has no %q:\n%s", change, want, unit)
		}
		if bounded := strings.Contains(unit, "MemoryMax=") && strings.Contains(unit, "GOMEMLIMIT="); bounded != (want != "") {
			t.Errorf("with %q the unit is bounded: %t", change, bounded)
		}
	}
	for _, unit := range units(t, "service") {
		text, err := os.ReadFile(unit)
		if err != nil {
			t.Fatal(err)
		}
		agent := strings.Contains(unit, "agent.service") || strings.Contains(unit, "guard.service") ||
			strings.Contains(unit, "boot-complete.service")
		if agent && (strings.Contains(string(text), "MemoryMax=") || !strings.Contains(string(text), "\nLimitCORE=0\n")) {
			t.Errorf("%s:\n%s", unit, text)
		}
	}
}
