// Package machines runs the built executable on whole machines: systemd as PID 1, a
// store, a network namespace and a boot loader's files for each, the control plane in
// another namespace, a signed cache over http, and a git forge.
package machines

import (
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"nixfleet/nixops/testnix"
)

// Env names the directory where the root file system of the machines is kept; it is
// made there when it is missing, which takes debootstrap a minute.
const Env = "NIXFLEET_TEST_MACHINES"

func TestMain(m *testing.M) {
	flag.Parse()
	flag.Set("test.parallel", "1000") // but see atOnce
	os.Exit(m.Run())
}

// atOnce is how many scenarios are played at a time. They wait most of the time, for
// windows that have a floor of a minute. Many more machines at once would want more
// inotify instances than root has by default.
const atOnce = 16

// prerequisites skips, or gives what the machines are made of.
func prerequisites(t *testing.T) (base string, nix testnix.Nix) {
	t.Helper()
	dir := os.Getenv(Env)
	switch {
	case dir == "":
		t.Skipf("no machines: set %s to a directory for their root file system", Env)
	case os.Geteuid() != 0:
		t.Skip("no machines: not root")
	}
	for _, program := range []string{"systemd-nspawn", "debootstrap", "nsenter", "ip", "patchelf"} {
		if _, err := exec.LookPath(program); err != nil {
			t.Skipf("no machines: %v", err)
		}
	}
	nix = testnix.Find(t)
	return baseRoot(t, dir, nix), nix
}

// static builds the executable as it is shipped.
func static(t *testing.T) string {
	t.Helper()
	binary := filepath.Join(t.TempDir(), "nixfleet")
	cmd := exec.Command("go", "build", "-trimpath", "-tags",
		"sqlite_omit_load_extension nethttpomithttp2 urfave_cli_no_docs netgo osusergo",
		"-ldflags", "-s -w -linkmode external -extldflags -static", "-o", binary, "nixfleet")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=1", "CGO_CFLAGS=-Os")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("build nixfleet: %v\n%s", err, out)
	}
	return binary
}

func TestMachines(t *testing.T) {
	base, nix := prerequisites(t)
	g := newGround(t, static(t), base, nix)
	g.prepare()
	t.Run("all", func(t *testing.T) {
		// The long ones first, since they end last. Parallel tests by themselves begin in
		// any order.
		slices.SortStableFunc(scenarios,
			func(a, b scenario) int { return slices.Index(long, b.name) - slices.Index(long, a.name) })
		slots := make(chan struct{}, atOnce)
		var turns []chan struct{}
		for _, s := range scenarios {
			t.Run(s.name, func(t *testing.T) {
				turn := make(chan struct{})
				turns = append(turns, turn)
				t.Parallel()
				<-turn
				t.Cleanup(func() { <-slots })
				s.play(t, g)
			})
		}
		go func() {
			for _, turn := range turns {
				slots <- struct{}{}
				close(turn)
			}
		}()
	})
	t.Log("the table of docs/activation.md:\n" + g.table())
}

// scenario is one line of the list.
type scenario struct {
	name string // of the machine too
	play func(*testing.T, *ground)
}

// long are the scenarios of many parts, and those that wait out a window or a pause, the
// longest last.
var long = []string{"clock", "cache-bad", "masks-agent", "breaks-agent", "cuts-network", "hangs", "recall",
	"buses-gone", "user-part", "lock-held",
	"staged-bad", "cp-4", "power-3", "power-5",
	"exit-codes", "cp-3", "cp-2", "cp-1", "power-2", "power-1", "cache-slow", "cache-away", "power-fetching", "cp-away"}

// table is what happened, as Markdown.
func (g *ground) table() string {
	slices.SortFunc(g.rows, func(a, b row) int { return strings.Compare(a.scenario, b.scenario) })
	var b strings.Builder
	b.WriteString("| Scenario | The host ended up with | Took | What the operator saw |\n|---|---|---|---|\n")
	for _, r := range g.rows {
		fmt.Fprintf(&b, "| %s | %s | %s | %s |\n", r.scenario, r.runs, r.took.Round(time.Second), r.saw)
	}
	return b.String()
}
