package nixops_test

import (
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"nixfleet/nixops"
	"nixfleet/nixops/testnix"
)

// countingFlake says in a warning that it was evaluated.
const countingFlake = `{
  outputs = _: builtins.warn "the outputs are evaluated" {
    nixosConfigurations = { web-1 = { }; "db.example" = { }; };
    darwinConfigurations.mac = { };
    fleet = builtins.warn "the fleet is evaluated" { resolved.schemaVersion = 1; "odd.list" = [ 7 ]; none = null; };
    legacyPackages.x86_64-linux.below = 3;
    broken = throw "never asked for";
  };
}
`

// TestOneEvaluationAnswersAll declares with a real Nix, which prints each warning once for each evaluation.
func TestOneEvaluationAnswersAll(t *testing.T) {
	nix := testnix.Find(t)
	dir := t.TempDir()
	must(t, os.WriteFile(filepath.Join(dir, "flake.nix"), []byte(countingFlake), 0o644))
	var mu sync.Mutex
	said := ""
	ci := nixops.CI{Nix: nix.Bin(), NixConfDir: nix.ConfDir(), Store: nix.NewStore(t).Dir, Progress: func(line string) {
		mu.Lock()
		defer mu.Unlock()
		said += line + "\n"
	}}
	ref := "path:" + dir
	d, err := ci.Declare(t.Context(), ref, []string{"fleet.resolved", `fleet."odd.list"`, "fleet.none"})
	must(t, err)
	for i, want := range []string{`{"schemaVersion":1}`, `[7]`, `null`} {
		if string(d.Values[i]) != want {
			t.Errorf("value %d is %s, want %s", i, d.Values[i], want)
		}
	}
	if len(d.Hosts) != 3 || d.Hosts[0].Name != "db.example" || d.Hosts[1].Kind != nixops.KindDarwin {
		t.Errorf("hosts %v", d.Hosts)
	}
	for _, warning := range []string{"the outputs are evaluated", "the fleet is evaluated"} {
		if n := strings.Count(said, warning); n != 1 {
			t.Errorf("Nix said %d times that %s:\n%s", n, warning, said)
		}
	}
	// A flake may keep the declaration where nix eval looks for packages.
	if d, err = ci.Declare(t.Context(), ref, []string{"below"}); err != nil ||
		strings.TrimSpace(string(d.Values[0])) != "3" {
		t.Errorf("below legacyPackages: %s, %v", d.Values, err)
	}
	if _, err := ci.Declare(t.Context(), ref, []string{"fleet.missing"}); err == nil ||
		!strings.Contains(err.Error(), "fleet.missing") {
		t.Errorf("what is missing: %v", err)
	}
	if _, err := ci.Declare(t.Context(), ref, []string{"broken"}); err == nil ||
		!strings.Contains(err.Error(), "never asked for") {
		t.Errorf("what cannot be evaluated: %v", err)
	}
}
