package e2e

import (
	"errors"
	"net/http"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"nixfleet/nixops"
	"nixfleet/pki"
	"nixfleet/roles/protocol"
)

// standIns are the programs of the recipes that one machine does not have. They
// run the real sqlite3 and age and print the real logs.
var standIns = map[string]string{
	"ssh":        `[ "$1" = root@cp ] || export HOST="${1#root@}"; shift; exec bash -c "$*"`,
	"nix-shell":  `[ "$1 $2 $3" = "-p sqlite --run" ] || exit 64; exec bash -c "$4"`,
	"journalctl": `case "$2" in nixfleet-control-plane.service) cat "$DIR/cp.log";; *) tail -n 50 "$DIR/hosts/$HOST/agent.log";; esac`,
	"systemctl":  `echo active`,
	"readlink":   `[ "$1" = /run/current-system ] || exec command -p readlink "$@"; cat "$DIR/hosts/$HOST/current-system"`,
	"agenix":     `mkdir -p "$(dirname "$2")" && age -R "$DIR/hosts/newhost/key.pub" -o "$2" && git -C "$(dirname "$2")" add "$2"`,
	"nix":        `[ "$1 $2 $3 $4" = "flake update secrets -C" ] || exit 64; date +%s%N >"$5/flake.lock"`,
	"edit":       `date +%s%N >"${1%...}flake.lock"`,
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
		"<SHA-256-base64-of-newhost-pubkey>", f.fingerprint("newhost"), "/run/agenix/org-root-key", f.path("keys/org-root.key"),
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
	f.startAgent("stuckhost")
	f.converged(1, "stuckhost")

	// Deploy a fleet change.
	edit, verify := f.split(f.recipe("Deploy a fleet change", "Mint a bootstrap token for a new host"), "# 3. CI runs")
	verify, _ = f.split(verify, "If cp gets stuck")
	f.shell(edit)
	f.release(2)
	f.converged(2, "stuckhost")
	log := f.shell(verify)
	for _, message := range []string{"snapshot refreshed", "dispatch", "confirm received"} {
		if !strings.Contains(log, message) {
			t.Errorf("the recipe's grep does not find %q in:\n%s", message, log)
		}
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
	f.release(3)
	f.startAgent("newhost")
	f.converged(3, "stuckhost", "newhost")

	// Revoke by SQL, twice, and enrol again.
	revoke := f.recipe("Revoke a host’s cert", "Rotate the org root key")
	old := f.asHost("newhost")
	enrolledAt := time.Now()
	f.until("the second of the enrolment is over", func() bool { return time.Since(enrolledAt) > 1100*time.Millisecond })
	for range 2 {
		f.shell(revoke)
	}
	var refused *protocol.Error
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
	sim, err := nixops.NewSim(f.path("hosts/stuckhost/machine"), f.path("cache"))
	f.must(err)
	defer sim.Close()
	current, err := sim.CurrentSystem(t.Context())
	f.must(err)
	f.write("hosts/stuckhost/current-system", "/nix/store/"+current+"\n")
	if out := f.shell(onHost); !strings.Contains(out, "confirmed") || !strings.HasSuffix(out, "\n"+simClosureName("stuckhost", 3)+"\n") {
		t.Errorf("the host's log and system: %s", out)
	}
	if out := f.shell(onCP); strings.Count(out, "|confirmed|") < 2 {
		t.Errorf("pending_confirms of stuckhost: %q", out)
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
	f.converged(3, f.names...)
}

func (f *simFleet) mint(name string) {
	f.t.Helper()
	f.write("hosts/"+name+"/token", f.run(binary, "mint-token", "--hostname", name, "--host-pubkey", f.pubkeys[name], "--org-root-key", f.path("keys/org-root.key")))
}

// rotation does what the recipe about the org root key says in prose: a token of
// the previous key works until previous is removed.
func (f *simFleet) rotation() {
	f.t.Helper()
	fresh, err := pki.GenerateKey(pki.AlgorithmEd25519)
	f.must(err)
	private, err := fresh.MarshalPEM()
	f.must(err)
	f.write("keys/org-root.key", string(private))
	trust, _, err := pki.ParseTrust([]byte(f.read("keys/trust.json")))
	f.must(err)
	public := fresh.Public()
	deploy := func(previous *pki.PublicKey) {
		f.t.Helper()
		trust.OrgRootKey.Previous, trust.OrgRootKey.Current = previous, &public
		doc, err := trust.Marshal()
		f.must(err)
		f.write("trust.new", string(doc))
		f.must(os.Rename(f.path("trust.new"), f.path("keys/trust.json")))
	}
	deploy(trust.OrgRootKey.Current)
	f.startAgent("graced")
	f.converged(3, "graced")
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
	f.mint("late")
	f.converged(3, "late")
}
