package machines

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/go-json-experiment/json"
)

// controlPlaneFiles are the credentials of the rendered unit, by their name below
// /run/agenix, and the file of `nixfleet keygen all` that each is here.
var controlPlaneFiles = map[string]string{
	"server.cert.pem": "server.cert.pem", "server.key.pem": "server.key.pem", "client-ca.pem": "client-ca.pem",
	"issuing-ca.cert.pem": "issuing-ca.cert.pem", "issuing-ca.key.pem": "issuing-ca.key.pem",
	"deploy-key": "release.key", "webhook-token": "webhook-token",
}

const secrets = "/var/lib/secrets/"

// bareMachine runs Debian's own systemd and, besides, units of its own.
func bareMachine(t *testing.T, n *network, name, base, binary string, units map[string]string,
	wanted ...string) *machine {
	t.Helper()
	m := newMachine(t, n, name, base, binary)
	m.write("/usr/local/sbin/stage-2", "#!/bin/sh\nexec /lib/systemd/systemd\n", 0o755)
	const dir = "/etc/static/systemd/system/"
	for unit, text := range units {
		m.write(dir+unit, text, 0o644)
	}
	for _, unit := range wanted {
		must(t, os.MkdirAll(m.path(dir+"multi-user.target.wants"), 0o755))
		must(t, os.Symlink("../"+unit, m.path(dir+"multi-user.target.wants/"+unit)))
	}
	return m
}

// TestControlPlaneUnit runs the control plane's unit as the module renders it, under a
// systemd: with a user that does not exist, its keys as credentials, every restriction,
// and a renewed key that restarts it.
func TestControlPlaneUnit(t *testing.T) {
	base, _ := prerequisites(t)
	binary, keys := static(t), filepath.Join(t.TempDir(), "keys")
	command(t, binary, "keygen", "all", "--dir", keys, "--suffix", suffix, "--server", "127.0.0.1")
	must(t, os.WriteFile(filepath.Join(keys, "webhook-token"), []byte("a-token-of-the-forge\n"), 0o600))

	units := map[string]string{}
	for _, name := range []string{"nixfleet-control-plane.service", "nixfleet-control-plane-credentials.path",
		"nixfleet-control-plane-credentials.service"} {
		text, err := os.ReadFile("../../../nixops/modules/testdata/rendered/control-plane/" + name)
		must(t, err)
		units[name] = strings.NewReplacer(
			stub+"nixfleet/bin/nixfleet", "/usr/local/bin/nixfleet", stub+"systemd/bin", systemdInside, "/run/agenix/", secrets,
			"--source=git+ssh://git@forge.example.com/fleet.git#main", "--source=/srv/fleet",
			"--agent-cn-suffix=fleet.example.com", "--agent-cn-suffix="+suffix,
		).Replace(string(text))
	}
	m := bareMachine(t, newNetwork(t), "cp", base, binary, units, "nixfleet-control-plane.service",
		"nixfleet-control-plane-credentials.path")
	file := func(inside, from string, mode os.FileMode) {
		t.Helper()
		data, err := os.ReadFile(filepath.Join(keys, from))
		must(t, err)
		m.write(inside, string(data), mode)
	}
	for name, from := range controlPlaneFiles {
		file(secrets+name, from, 0o400)
	}
	must(t, os.Chmod(m.path(secrets), 0o700))
	file("/etc/nixfleet/cp/trust.json", "trust.json", 0o644)
	for _, name := range []string{"fleet-root.cert.pem", "operator.pem", "operator.key"} {
		file("/root/"+name, name, 0o600)
	}
	_, public := newKey(t, "web-01")
	must(t, os.WriteFile(filepath.Join(keys, "fleet.json"), []byte(fmt.Sprintf(`{"schemaVersion":1,"hosts":{"web-01":{"system":"x86_64-linux","tags":[],"channel":"stable","closureHash":null,"pubkey":%q}},
"channels":{"stable":{"rolloutPolicy":"now","reconcileIntervalMinutes":30,"freshnessWindow":1440,"signingIntervalMinutes":60,"compliance":{"frameworks":[],"mode":"disabled"}}},
"rolloutPolicies":{"now":{"strategy":"all-at-once","healthGate":{},"onHealthFailure":"halt","waves":[]}},
"waves":{"stable":[]},"edges":[],"channelEdges":[],"disruptionBudgets":[],"meta":{"schemaVersion":1,"signedAt":null,"ciCommit":null}}`, public)), 0o644))
	must(t, os.WriteFile(filepath.Join(keys, "closures.json"),
		[]byte(`{"web-01":"/nix/store/0a1b2c3d4f5g6h7i8j9k0l1m2n3p4q5r-nixos-system-web-01-25.11"}`), 0o644))
	command(t, binary, "release", "--fleet-file", filepath.Join(keys, "fleet.json"), "--closures",
		filepath.Join(keys, "closures.json"),
		"--release-dir", m.path("/srv/fleet"), "--sign-key", filepath.Join(keys, "release.key"), "--trust-file",
		filepath.Join(keys, "trust.json"))

	m.boot()
	answers := func() string {
		out, err := m.try("nixfleet", "status", "--json", "--cp-url", "https://127.0.0.1:8080", "--ca-cert",
			"/root/fleet-root.cert.pem",
			"--client-cert", "/root/operator.pem", "--client-key", "/root/operator.key")
		if err != nil {
			return err.Error()
		}
		if !strings.Contains(out, `"hostname": "web-01"`) {
			return out
		}
		return ""
	}
	until(t, "the control plane answers", answers)

	show := func(property string) string {
		return strings.TrimSpace(m.run("systemctl", "show", "--value", "--property="+property,
			"nixfleet-control-plane.service"))
	}
	pid := show("MainPID")
	if uid := strings.TrimSpace(m.run("stat", "--format=%u", "/proc/"+pid)); uid == "0" {
		t.Error("it runs as root")
	}
	// The machine may not give all that the unit asks for, but more than systemd's default.
	for line := range strings.Lines(m.run("cat", "/proc/"+pid+"/limits")) {
		if rest, ok := strings.CutPrefix(line, "Max open files"); ok && strings.Fields(rest)[0] == "1024" {
			t.Error("it may have 1024 connections")
		}
	}
	m.run("test", "-s", "/var/lib/private/nixfleet-cp/state.db")
	if n := show("NRestarts"); n != "0" {
		t.Errorf("it was restarted %s times", n)
	}
	m.run("systemd-analyze", "security", "--no-pager", "--threshold=20", "nixfleet-control-plane.service")

	// All machines of this kernel share its inotify instances; when others have taken
	// them, no path unit can watch anything.
	if _, err := m.try("sh", "-c",
		"systemctl reset-failed nixfleet-control-plane-credentials.path; systemctl start "+
			"nixfleet-control-plane-credentials.path"); err != nil {
		if journal := m.journal(); strings.Contains(journal, "Failed to allocate inotify fd") {
			t.Skip("no inotify instance is left on this machine to watch the credentials with")
		}
		t.Fatal(err)
	}

	// A renewed certificate is there after a restart that nobody asks for.
	command(t, binary, "keygen", "server", "--force", "--dir", keys, "--server", "127.0.0.1",
		"--root-cert", filepath.Join(keys, "fleet-root.cert.pem"), "--root-key", filepath.Join(keys, "fleet-root.key.pem"))
	for _, name := range []string{"server.key.pem", "server.cert.pem"} {
		file(secrets+name+".new", name, 0o400)
		must(t, os.Rename(m.path(secrets+name+".new"), m.path(secrets+name)))
	}
	until(t, "the control plane is restarted", func() string {
		if now := show("MainPID"); now == pid || now == "0" {
			return "its process is " + now
		}
		return answers()
	})
	until(t, "it serves the new certificate", func() string {
		served, err := m.try("cat", "/run/credentials/nixfleet-control-plane.service/tls-cert")
		if err != nil {
			return err.Error()
		}
		want, err := os.ReadFile(filepath.Join(keys, "server.cert.pem"))
		must(t, err)
		if served != string(want) {
			return "its credential is the old one"
		}
		return answers()
	})
	var failed []any
	must(t, json.Unmarshal([]byte(m.run("systemctl", "list-units", "--failed", "--output=json", "nixfleet-*")), &failed))
	if len(failed) > 0 {
		t.Errorf("failed: %v", failed)
	}
}
