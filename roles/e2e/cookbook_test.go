package e2e

import (
	"errors"
	"net/http"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"nixfleet/pki"
	"nixfleet/roles/protocol/client"
)

// standIns are the programs of the recipes that one machine does not have. They
// run the real sqlite3 and age and print the real logs.
var standIns = map[string]string{
	"ssh":            `[ "$1" = root@cp ] || export HOST="${1#root@}"; shift; exec bash -c "$*"`,
	"nix-shell":      `[ "$1 $2 $3" = "-p sqlite --run" ] || exit 64; exec bash -c "$4"`,
	"journalctl":     `case "$2" in nixfleet-control-plane.service) cat "$DIR/cp.log";; *) tail -n 50 "$DIR/hosts/$HOST/agent.log";; esac`,
	"systemctl":      `[ "$1 $2" = "is-active nixfleet-agent.service" ] || exit 64; if kill -0 "$(cat "$DIR/hosts/$HOST/agent.log.pid")"; then echo active; else echo inactive; exit 3; fi 2>/dev/null`,
	"readlink":       `[ "$1" = /run/current-system ] || exec command -p readlink "$@"; cd "$DIR/hosts/$HOST" && nixfleet agent status --json --state-dir "$PWD/state" --simulated-host "$PWD/machine" --simulated-cache "$DIR/cache" | sed -n 's|.*"current":"\([^"]*\)".*|/nix/store/\1|p'`,
	"nixos-anywhere": `[ "$1" = --flake ] || exit 64; echo "${2#.#} $3" >"$DIR/installed"`,
	"agenix":         `mkdir -p "$(dirname "$2")" && age -R "$DIR/hosts/newhost/key.pub" -o "$2" && git -C "$(dirname "$2")" add "$2"`,
	"nix":            `[ "$1 $2 $3 $4" = "flake update secrets -C" ] || exit 64; date +%s%N >"$5/flake.lock"`,
	"edit":           `date +%s%N >"${1%...}flake.lock"`,
}

// recipe is the text between one heading of the cookbook and the next.
func (f *simFleet) recipe(heading, next string) string {
	f.t.Helper()
	book, err := os.ReadFile("testdata/operator-cookbook.txt")
	f.must(err)
	_, text, found := strings.Cut(string(book), "\n"+heading+"\n")
	if next != "" && found {
		text, _, found = strings.Cut(text, "\n"+next+"\n")
	}
	if !found {
		f.t.Fatalf("the cookbook has no recipe %q before %q", heading, next)
	}
	return strings.NewReplacer("<fleet>", f.path("fleet"), "<secrets>", f.path("secrets"), "<your-name>", "jo",
		"<bootstrap-ip>", "192.0.2.7",
		"<SHA-256-base64-of-newhost-pubkey>", f.fingerprint("newhost"), "/run/agenix/org-root-key",
		f.path("keys/org-root.key"),
		"/var/lib/nixfleet-cp", f.path("cp")).Replace(text)
}

// shell runs a part of a recipe as it stands, stopping at the first failure.
func (f *simFleet) shell(script string) string {
	f.t.Helper()
	return f.run("bash", "-ec", script)
}

func (f *simFleet) split(text, at string) (before, after string) {
	f.t.Helper()
	before, after, found := strings.Cut(text, at)
	if !found {
		f.t.Fatalf("the recipe does not contain %q", at)
	}
	return before, at + after
}

// TestCookbook follows the recipes that can run on one machine from their own text.
func TestCookbook(t *testing.T) {
	t.Parallel()
	for _, tool := range []string{"sqlite3", "age"} {
		if _, err := exec.LookPath(tool); err != nil {
			t.Skipf("the cookbook needs %s on PATH", tool)
		}
	}
	f := newSimFleet(t, "stuckhost", "graced", "late")
	for name, script := range standIns {
		f.write("bin/"+name, "#!/usr/bin/env bash\n"+script+"\n")
		f.must(os.Chmod(f.path("bin/"+name), 0o700))
	}
	f.machine("stuckhost")
	f.machine("newhost")
	f.mint("stuckhost")
	for _, name := range []string{"graced", "late"} {
		f.machine(name)
		f.mint(name)
	}
	f.release(1)
	f.startControlPlane()
	stopAgent := f.startAgent("stuckhost")
	f.converged(1, "stuckhost")

	// Deploy a fleet change.
	edit, verify := f.split(f.recipe("Deploy a fleet change", "Mint a bootstrap token for a new host"), "# 3. CI runs")
	verify, _ = f.split(verify, "If cp gets stuck")
	// What the recipe's grep shows that it has not shown before.
	shown := ""
	grep := func(of string, messages ...string) {
		t.Helper()
		log := ""
		for _, message := range messages {
			f.until("the recipe's grep finds "+message+" for "+of, func() bool {
				log = strings.TrimPrefix(f.shell(verify), shown)
				return strings.Contains(log, `"message":"`+message+`"`)
			})
		}
		shown += log
	}
	grep("the first release", "snapshot refreshed", "dispatch", "confirm received")
	f.shell(edit)
	f.release(2)
	f.converged(2, "stuckhost")
	grep("a release", "snapshot refreshed", "dispatch", "confirm received")
	// CI's timer signs it again: one more snapshot, and nobody is told anything.
	taken := strings.Count(f.read("cp.log"), "snapshot refreshed")
	f.resign()
	f.until("the control plane has taken the new signatures",
		func() bool { return strings.Count(f.read("cp.log"), "snapshot refreshed") > taken })
	f.converged(2, "stuckhost")
	grep("a release signed again", "snapshot refreshed")
	if again := f.shell(verify); strings.Count(again, `"dispatch"`) != 2 {
		t.Errorf("a release that was signed again was dispatched again:\n%s", again)
	}

	// Mint a token and add the host, which reads the token sealed for its ssh key.
	mint := f.recipe("Mint a bootstrap token for a new host", "Revoke a host’s cert")
	deployToken := func() {
		t.Helper()
		f.shell(mint)
		f.write("hosts/newhost/token", f.read("secrets/agents/newhost-bootstrap-token.age"))
	}
	deployToken()
	f.names = append(f.names, "newhost")
	// Signed again before any host has seen it: the three words are there all the same.
	stopAgent()
	f.release(3)
	f.resign()
	stopAgent = f.startAgent("stuckhost")
	f.installed("newhost")
	f.startAgent("newhost")
	f.converged(3, "stuckhost", "newhost")
	grep("a release signed again before it arrived", "snapshot refreshed", "dispatch", "confirm received")

	// Revoke by SQL, twice, and enrol again.
	revoke := f.recipe("Revoke a host’s cert", "Rotate the org root key")
	old := f.asHost("newhost")
	enrolledAt := time.Now()
	f.until("the second of the enrolment is over", func() bool { return time.Since(enrolledAt) > 1100*time.Millisecond })
	for range 2 {
		f.shell(revoke)
	}
	var refused *client.Error
	if _, err := old.Whoami(t.Context()); !errors.As(err, &refused) || refused.Status != http.StatusUnauthorized {
		t.Errorf("a revoked certificate: got %v, want 401", err)
	}
	revokedAt := time.Now()
	// Tokens and rows count whole seconds; one of the same second predates the revocation.
	f.until("the second of the revocation is over", func() bool { return time.Since(revokedAt) > 1100*time.Millisecond })
	deployToken()
	f.until("newhost is back with a new certificate", func() bool {
		h := f.host("newhost")
		return h.LastCheckinAt != nil && h.LastCheckinAt.After(revokedAt)
	})

	// Diagnose a stuck agent.
	diagnosis := f.recipe("Diagnose a stuck agent", "Add a host to the fleet")
	onHost, onCP := f.split(diagnosis, "Then check what the CP saw last from this host:\n")
	_, onCP = f.split(onCP, "ssh root@cp")
	onCP, _ = f.split(onCP, "Look for:")
	if out := f.shell(onHost); !strings.Contains(out, "=== agent status ===\nactive\n") ||
		!strings.Contains(out, "confirmed") || !strings.HasSuffix(out, "\n"+simClosureName("stuckhost", 3)+"\n") {
		t.Errorf("the host's log and system: %s", out)
	}
	if out := f.shell(onCP); strings.Count(out, "|confirmed|") < 2 {
		t.Errorf("pending_confirms of stuckhost: %q", out)
	}
	// Now it is stuck: its switch does not end, and then its agent dies.
	f.switching = time.Hour
	f.build("stuckhost", 4)
	f.switching = 0
	f.release(4)
	f.until("stuckhost is in the middle of a switch", func() bool { return strings.Contains(f.shell(onCP), "|pending|") })
	f.until("its agent says so", func() bool {
		h := f.host("stuckhost")
		return h.RolloutState != nil && *h.RolloutState == "Activating"
	})
	if out := f.shell(onHost); !strings.Contains(out, "=== agent status ===\nactive\n") {
		t.Errorf("a host in the middle of a switch: %s", out)
	}
	stopAgent()
	if out := f.shell(onHost); !strings.Contains(out, "=== agent status ===\ninactive\n") ||
		strings.Contains(out, "\nactive\n") {
		t.Errorf("a host without its agent: %s", out)
	}

	f.rotation()

	// Tag a release.
	f.shell(f.recipe("Tag a release", ""))
	if out := f.run("git", "-C", f.path("fleet.git"), "tag"); !strings.Contains(out, "v0.2.0-rc1") {
		t.Errorf("the forge has no tag: %q", out)
	}

	// A host's certificate opens no operator's door.
	if _, err := f.asHost("stuckhost").Hosts(t.Context()); !errors.As(err, &refused) || refused.Status/100 != 4 {
		t.Errorf("a host read the list of hosts: %v", err)
	}
	// The view comes back after the database is gone, and the forge is not needed.
	f.stopCP()
	for _, suffix := range []string{"", "-wal", "-shm"} {
		if err := os.Remove(f.path("cp/state.db" + suffix)); err != nil && !errors.Is(err, os.ErrNotExist) {
			t.Fatal(err)
		}
	}
	f.must(os.Rename(f.path("fleet.git"), f.path("away.git")))
	f.startControlPlane()
	f.converged(4, "newhost", "graced", "late")
}

// installed runs the recipe's line that installs a host, and wants it to be that host.
func (f *simFleet) installed(name string) {
	f.t.Helper()
	_, line := f.split(f.recipe("Add a host to the fleet", "Tag a release"), "nixos-anywhere ")
	line, _ = f.split(line, ".- New host")
	f.shell("cd fleet; " + line)
	if got := f.read("installed"); got != name+" root@192.0.2.7\n" {
		f.t.Errorf("the recipe installs %q", got)
	}
}

func (f *simFleet) mint(name string) {
	f.t.Helper()
	f.write("hosts/"+name+"/token",
		f.run(binary, "mint-token", "--hostname", name, "--host-pubkey", f.pubkeys[name], "--org-root-key",
			f.path("keys/org-root.key")))
}

// rotation does what the recipe about the org root key says in prose: a token of
// the previous key works until previous is removed.
func (f *simFleet) rotation() {
	f.t.Helper()
	// A new keypair, of which the private half is encrypted to an operator; the
	// present key moves to previous.
	f.run("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", f.path("operator-ssh"))
	before, _, err := pki.ParseTrust([]byte(f.read("keys/trust.json")))
	f.must(err)
	f.write("trust.rotated", f.read("keys/trust.json"))
	f.run(binary, "keygen", "org-root", "--out", f.path("secrets/org-root-key.age"), "--recipients-file",
		f.path("operator-ssh.pub"), "--trust-file", f.path("trust.rotated"))
	trust, _, err := pki.ParseTrust([]byte(f.read("trust.rotated")))
	f.must(err)
	if trust.OrgRootKey.Previous == nil || *trust.OrgRootKey.Previous != *before.OrgRootKey.Current ||
		*trust.OrgRootKey.Current == *before.OrgRootKey.Current {
		f.t.Fatalf("the rotation made %+v of %+v", trust.OrgRootKey, before.OrgRootKey)
	}
	deploy := func(previous *pki.PublicKey) {
		f.t.Helper()
		trust.OrgRootKey.Previous = previous
		doc, err := trust.Marshal()
		f.must(err)
		f.write("trust.new", string(doc))
		f.must(os.Rename(f.path("trust.new"), f.path("keys/trust.json")))
	}
	deploy(trust.OrgRootKey.Previous)
	f.resign()
	f.startAgent("graced")
	f.converged(4, "graced")
	deploy(nil)
	f.startAgent("late")
	f.until("the token of the removed key is refused", func() bool {
		for line := range strings.Lines(f.read("cp.log")) {
			if strings.Contains(line, `"host":"late"`) && strings.Contains(line, `"enrolment refused"`) {
				return true
			}
		}
		return false
	})
	if _, err := os.Stat(f.path("hosts/late/cert.pem")); !errors.Is(err, os.ErrNotExist) {
		f.t.Errorf("a host enrolled with a token of a removed key: %v", err)
	}
	f.write("hosts/late/token", f.run(binary, "mint-token", "--hostname", "late", "--host-pubkey", f.pubkeys["late"],
		"--org-root-key",
		f.path("secrets/org-root-key.age"), "--identity", f.path("operator-ssh")))
	f.converged(4, "late")
}
