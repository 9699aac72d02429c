// Package lib holds the Nix functions of a fleet repository; its Go files only
// test them, with a real Nix.
package lib

import (
	"bytes"
	"context"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/go-json-experiment/json"

	"nixfleet/nixops/fleet"
	"nixfleet/pki"
)

var update = flag.Bool("update", false, "write the golden files anew")

// nix is the directory of a real Nix, as .ci/nix.sh makes it.
func nix(t testing.TB) string {
	dir := os.Getenv("NIXFLEET_TEST_NIX")
	if dir == "" {
		t.Skip("needs a real Nix: set NIXFLEET_TEST_NIX to the directory that .ci/nix.sh made")
	}
	return dir
}

// evaluate gives the value of a Nix expression as JSON, and what Nix said.
func evaluate(t testing.TB, expression string) (out []byte, said string, err error) {
	dir := nix(t)
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, filepath.Join(dir, "bin/nix-instantiate"),
		"--store", "dummy://", "--eval", "--strict", "--json", "--expr", expression)
	cmd.Env = append(os.Environ(), "NIX_CONF_DIR="+filepath.Join(dir, "etc"))
	cmd.WaitDelay = time.Second
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	err = cmd.Run()
	return stdout.Bytes(), stderr.String(), err
}

// fixture is the expression of a fixture's fleet, with what fixtures may use.
func fixture(t testing.TB, path string) string {
	dir, err := os.Getwd()
	if err != nil {
		t.Fatal(err)
	}
	return fmt.Sprintf("import %s/%s (import %s // { base = import %s/testdata/base.nix; })", dir, path, dir, dir)
}

func fixtures(t *testing.T, dir string) []string {
	paths, err := filepath.Glob(filepath.Join("testdata", dir, "*.nix"))
	if err != nil || len(paths) == 0 {
		t.Fatalf("no fixtures in %s: %v", dir, err)
	}
	return paths
}

func TestEveryNixFileParses(t *testing.T) {
	dir := nix(t)
	var files []string
	err := filepath.WalkDir("../..", func(path string, d os.DirEntry, err error) error {
		if err == nil && !d.IsDir() && strings.HasSuffix(path, ".nix") {
			files = append(files, path)
		}
		return err
	})
	if err != nil || len(files) < 20 {
		t.Fatalf("found %d files: %v", len(files), err)
	}
	cmd := exec.Command(filepath.Join(dir, "bin/nix-instantiate"),
		append([]string{"--store", "dummy://", "--parse"}, files...)...)
	cmd.Env = append(os.Environ(), "NIX_CONF_DIR="+filepath.Join(dir, "etc"))
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Errorf("parse: %v\n%s", err, out[max(0, len(out)-2000):])
	}
}

func TestGoodFleetsGiveTheirGoldenDocument(t *testing.T) {
	nix(t)
	for _, path := range fixtures(t, "good") {
		t.Run(filepath.Base(path), func(t *testing.T) {
			out, said, err := evaluate(t, fmt.Sprintf("{ inherit (%s) resolved revocations bootstrapNonces warnings; }",
				fixture(t, path)))
			if err != nil {
				t.Fatalf("evaluate: %v\n%s", err, said)
			}
			got, err := pki.Canonicalize(out)
			if err != nil {
				t.Fatal(err)
			}
			golden := strings.TrimSuffix(path, ".nix") + ".json"
			if *update {
				if err := os.WriteFile(golden, append(got, '\n'), 0o644); err != nil {
					t.Fatal(err)
				}
			}
			want, err := os.ReadFile(golden)
			if err != nil {
				t.Fatal(err)
			}
			if string(got) != strings.TrimSpace(string(want)) {
				t.Errorf("document differs from %s:\n got %s\nwant %s", golden, got, want)
			}
			f, err := fleet.ParseFleet(resolvedOf(t, out))
			if err != nil {
				t.Fatalf("our own reader refuses it: %v", err)
			}
			// What release would refuse mkFleet refuses first.
			for _, p := range fleet.Check(f) {
				if p.Fatal {
					t.Errorf("release refuses it: %v", p)
				}
			}
		})
	}
}

func resolvedOf(t testing.TB, out []byte) []byte {
	var doc struct {
		Resolved any `json:"resolved"`
	}
	if err := json.Unmarshal(out, &doc); err != nil {
		t.Fatal(err)
	}
	canonical, err := pki.Marshal(doc.Resolved)
	if err != nil {
		t.Fatal(err)
	}
	return canonical
}

// The worked example of the artifact contract: our evaluation, stamped as CI
// stamps it, has the very hash that the contract gives.
func TestContractExampleIsByteExact(t *testing.T) {
	out, said, err := evaluate(t, fmt.Sprintf("{ inherit (%s) resolved; }", fixture(t, "testdata/good/contract.nix")))
	if err != nil {
		t.Fatalf("evaluate: %v\n%s", err, said)
	}
	var doc map[string]any
	if err := json.Unmarshal(resolvedOf(t, out), &doc); err != nil {
		t.Fatal(err)
	}
	hosts := doc["hosts"].(map[string]any)
	for name, closure := range map[string]string{
		"web-01": "0a1b2c3d4f5g6h7i8j9k0l1m2n3p4q5r-nixos-system-web-01-25.11",
		"web-02": "1b2c3d4f5g6h7i8j9k0l1m2n3p4q5r6s-nixos-system-web-02-25.11",
		"db-01":  "2c3d4f5g6h7i8j9k0l1m2n3p4q5r6s7v-nixos-system-db-01-25.11",
	} {
		hosts[name].(map[string]any)["closureHash"] = closure
	}
	meta := doc["meta"].(map[string]any)
	meta["signedAt"] = "2026-03-01T12:00:00Z"
	meta["ciCommit"] = "4f1c0a9be27d5538c6a1f09d3b7e2460d8a5c913"
	meta["signatureAlgorithm"] = "ed25519"
	stamped, err := pki.Marshal(doc)
	if err != nil {
		t.Fatal(err)
	}
	if got, want := pki.HashHex(stamped), "551036413ab6cf917848cfb23ec08349f26e7adf73bb9c1e7f4a0914a2a899fc"; got != want {
		t.Errorf("hash %s, want %s\n%s", got, want, stamped)
	}
}

func TestBadFleetsFailWithTheirMessage(t *testing.T) {
	nix(t)
	for _, path := range fixtures(t, "bad") {
		t.Run(filepath.Base(path), func(t *testing.T) {
			t.Parallel()
			text, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			first, _, _ := strings.Cut(string(text), "\n")
			want, ok := strings.CutPrefix(first, "# expect: ")
			if !ok {
				t.Fatalf("%s does not begin with '# expect: '", path)
			}
			out, said, err := evaluate(t, fmt.Sprintf("(%s).resolved", fixture(t, path)))
			if err == nil {
				t.Fatalf("evaluated to %s", out)
			}
			// Nix folds nothing, but it may colour.
			if !strings.Contains(said, want) {
				t.Errorf("said %q\nwant %q", said, want)
			}
		})
	}
}

// large is a fleet of n hosts in ten channels, with waves, edges and budgets.
const large = `
let
  lib = (import %s) // { mod = a: b: a - b * (a / b); };
  n = %d;
  ids = builtins.genList toString n;
in
(lib.mkFleet {
  hosts = builtins.listToAttrs (map (i: {
    name = "host-${i}";
    value = {
      system = "x86_64-linux";
      channel = "channel-${toString (lib.mod (builtins.fromJSON i) 10)}";
      tags = [ "all" "tag-${toString (lib.mod (builtins.fromJSON i) 100)}" ];
      pubkey = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIA${builtins.substring 0 42 (builtins.hashString "sha256" i)}";
    };
  }) ids);
  channels = builtins.listToAttrs (map (c: {
    name = "channel-${toString c}";
    value.rolloutPolicy = "staged";
  }) (builtins.genList (x: x) 10));
  rolloutPolicies.staged.waves = [
    { selector.tags = [ "tag-1" ]; soakMinutes = 10; }
    { selector.not.tags = [ "tag-2" ]; soakMinutes = 10; }
    { selector.all = true; }
  ];
  edges = builtins.genList (i: { gated = "host-${toString (10 * (i + 1))}"; gates = "host-${toString (10 * i)}"; }) 50;
  disruptionBudgets = [
    { selector.tagsAny = [ "tag-7" "tag-8" ]; maxInFlight = 3; }
    { selector.all = true; maxInFlightPct = 10; }
  ];
}).resolved
`

func largeFleet(t testing.TB, hosts int) string {
	dir, err := os.Getwd()
	if err != nil {
		t.Fatal(err)
	}
	return fmt.Sprintf(large, dir, hosts)
}

func TestThousandHostsEvaluate(t *testing.T) {
	out, said, err := evaluate(t, largeFleet(t, 1000))
	if err != nil {
		t.Fatalf("evaluate: %v\n%s", err, said)
	}
	f, err := fleet.ParseFleet(out)
	if err != nil {
		t.Fatal(err)
	}
	if len(f.Hosts) != 1000 || len(f.Waves["channel-1"]) != 3 || len(f.Waves["channel-1"][0].Hosts) != 10 {
		t.Errorf("%d hosts, waves of channel-1: %v", len(f.Hosts), f.Waves["channel-1"])
	}
}

// BenchmarkEvaluate is the time of one evaluation by nix-instantiate, its
// start included.
func BenchmarkEvaluate(b *testing.B) {
	for _, hosts := range []int{1000, 10000} {
		b.Run(fmt.Sprintf("hosts=%d", hosts), func(b *testing.B) {
			for b.Loop() {
				if _, said, err := evaluate(b, largeFleet(b, hosts)); err != nil {
					b.Fatalf("evaluate: %v\n%s", err, said)
				}
			}
		})
	}
}

// The hash that buildGoModule wants is the NAR hash of what `go mod vendor`
// writes; a stale one would break every build with Nix.
func TestVendorHashIsFresh(t *testing.T) {
	dir := nix(t)
	vendor := filepath.Join(t.TempDir(), "vendor")
	cmd := exec.Command("go", "mod", "vendor", "-o", vendor)
	cmd.Dir = "../.."
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("go mod vendor: %v\n%s", err, out)
	}
	cmd = exec.Command(filepath.Join(dir, "bin/nix"), "hash", "path", vendor)
	cmd.Env = append(os.Environ(), "NIX_CONF_DIR="+filepath.Join(dir, "etc"))
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("nix hash path: %v", err)
	}
	const file = "../vendor-hash"
	if *update {
		if err := os.WriteFile(file, out, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if string(out) != string(want) {
		t.Errorf("nixops/vendor-hash is %swant %srun go test ./nixops/lib -update", want, out)
	}
}
