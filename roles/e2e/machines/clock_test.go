package machines

import (
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"testing"
	"time"
)

func init() { scenarios = append(scenarios, scenario{"clock", playClock}) }

// skewed builds a nixfleet whose clock is a year back. A container shares the clock of
// its host, so the year is taken off in Go's own time.Now.
func skewed(t *testing.T) string {
	t.Helper()
	goroot, err := exec.Command("go", "env", "GOROOT").Output()
	must(t, err)
	file := filepath.Join(string(goroot[:len(goroot)-1]), "src/time/time.go")
	source, err := os.ReadFile(file)
	must(t, err)
	now := regexp.MustCompile(`(func Now\(\) Time \{\n\tsec, nsec, mono := \w+\(\)\n)`)
	if !now.Match(source) {
		t.Fatalf("time.Now of %s is not what it was", runtime.Version())
	}
	dir := t.TempDir()
	must(t, os.WriteFile(dir+"/time.go", now.ReplaceAll(source, []byte("${1}\tsec -= 365 * 24 * 60 * 60\n")), 0o644))
	overlay, err := json.Marshal(map[string]map[string]string{"Replace": {file: dir + "/time.go"}})
	must(t, err)
	must(t, os.WriteFile(dir+"/overlay.json", overlay, 0o644))
	cmd := exec.Command("go", "build", "-trimpath", "-ldflags", "-s -w", "-overlay", dir+"/overlay.json", "-o",
		dir+"/nixfleet", "nixfleet")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("build nixfleet: %v\n%s", err, out)
	}
	return dir + "/nixfleet"
}

// What is known to have passed stands for a clock that is behind it: the host goes on
// talking to its fleet and says what is wrong, but begins nothing (A22).
func playClock(t *testing.T, g *ground) {
	agent := agentOf(skewed(t))
	p := newPlay(t, g, g.main, "clock")
	next := p.next("next", agent)
	p.release(next)
	p.confirmed(next)
	p.m.reboot(nil)
	last := p.next("last", agent)
	p.first = next // where it stays
	p.release(last)
	p.stays("realise-failed", "clock")
	begun := time.Now()
	until(t, "the control plane goes on hearing of it", func() string {
		h, err := p.cp.host(p, p.m.name)
		if err != nil {
			return err.Error()
		}
		if h.LastCheckinAt == nil || h.LastCheckinAt.Before(begun) {
			return fmt.Sprintf("%+v", h)
		}
		return ""
	})
	p.tell("clock a year back, over a reboot", "the generation that it ran", "")
}
