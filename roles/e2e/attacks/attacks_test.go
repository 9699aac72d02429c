package attacks

import (
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"runtime/debug"
	"strings"
	"testing"
)

// actors are all attackers, in the order of the table in docs/threat-model.md.
var actors = []struct {
	who     string
	attacks []attack
}{
	{"the git forge", forges()},
	{"the control plane", append(planes(), morePlanes()...)},
	{"a host", append(hosts(), requests()...)},
	{"a bootstrap token", append(thieves(), moreThieves()...)},
	{"a commit to the fleet's repository", commits()},
	{"a user of a host", locals()},
	{"an operator's certificate", append(operators(), moreOperators()...)},
	{"nothing but the network", append(strangers(), webhooks()...)},
}

// TestMain keeps the machines in memory where it can.
func TestMain(m *testing.M) {
	debug.SetGCPercent(400)
	if info, err := os.Stat("/dev/shm"); err == nil && info.IsDir() {
		os.Setenv("TMPDIR", "/dev/shm")
	}
	os.Exit(m.Run())
}

// TestChecksAreThere holds each attack to a check that stands where the attack says, once, so that TestMutants can
// leave it out.
func TestChecksAreThere(t *testing.T) {
	names := map[string]bool{}
	for _, actor := range actors {
		for _, a := range actor.attacks {
			if names[a.name] {
				t.Errorf("two attacks are called %q", a.name)
			}
			names[a.name] = true
			for _, l := range append(a.lack.behind, a.lack) {
				data, err := os.ReadFile(filepath.Join("../../..", l.file))
				if n := strings.Count(string(data), l.is); n != 1 || !strings.Contains(l.was, "LACKS") {
					t.Errorf("%s: its check is there %d times (%v); adapt the attack to the code: %s: %s", a.name, n, err, l.file,
						l.is)
				}
			}
		}
	}
}

var update = flag.Bool("update", false, "write the table of attacks into docs/threat-model.md")

const (
	tableBegin = "<!-- attacks: go test ./roles/e2e/attacks -run TestTable -update -->\n"
	tableEnd   = "<!-- end -->\n"
)

// TestTable keeps the table of docs/threat-model.md current.
func TestTable(t *testing.T) {
	var table strings.Builder
	count := 0
	for _, actor := range actors {
		fmt.Fprintf(&table, "\n| With %s | What stops it |\n|---|---|\n", actor.who)
		for _, a := range actor.attacks {
			fmt.Fprintf(&table, "| %s | %s |\n", a.name, a.stops)
			count++
		}
	}
	fmt.Fprintf(&table, "\n%d attacks in all.\n", count)
	const page = "../../../docs/threat-model.md"
	data, err := os.ReadFile(page)
	if err != nil {
		t.Fatal(err)
	}
	before, rest, ok := strings.Cut(string(data), tableBegin)
	_, after, ended := strings.Cut(rest, tableEnd)
	if !ok || !ended {
		t.Fatalf("%s has no place for the table", page)
	}
	whole := before + tableBegin + table.String() + tableEnd + after
	if whole == string(data) {
		return
	}
	if !*update {
		t.Fatalf("%s is not current: go test ./roles/e2e/attacks -run TestTable -update", page)
	}
	if err := os.WriteFile(page, []byte(whole), 0o644); err != nil {
		t.Fatal(err)
	}
}

func TestAttacks(t *testing.T) {
	for _, actor := range actors {
		t.Run(actor.who, func(t *testing.T) {
			for _, a := range actor.attacks {
				t.Run(a.name, func(t *testing.T) { play(t, a) })
			}
		})
	}
}
