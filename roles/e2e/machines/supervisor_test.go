package machines

import (
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

func init() { scenarios = append(scenarios, scenario{"supervisor", playSupervisor}) }

// playSupervisor runs nixops' own test of the supervisor where PID 1 is systemd.
func playSupervisor(t *testing.T, g *ground) {
	binary := filepath.Join(t.TempDir(), "nixops.test")
	if out, err := exec.Command("go", "test", "-c", "-o", binary, "nixfleet/nixops").CombinedOutput(); err != nil {
		t.Fatalf("build nixops.test: %v\n%s", err, out)
	}
	p := newPlay(t, g, g.main, "supervisor")
	command(t, "cp", binary, p.m.path("/usr/local/bin/nixops.test"))
	out, err := p.m.try("/usr/local/bin/nixops.test", "-test.run=^TestSystemdSupervisor$", "-test.v")
	if err != nil || strings.Contains(out, "SKIP") || !strings.Contains(out, "--- PASS: TestSystemdSupervisor") {
		t.Errorf("%v\n%s", err, out)
	}
}
