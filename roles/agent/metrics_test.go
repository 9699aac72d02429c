package agent

import (
	"os"
	"strings"
	"testing"
	"time"

	"nixfleet/nixops/sim"
)

// Withholding, holds and quarantine are metrics of the host itself.
func TestMetricsFile_T17_C20(t *testing.T) {
	bubble(t, func(t *testing.T) {
		p := newPlane(t)
		p.pace = 20
		m := newMachine(t, p, with(sim.Closure{After: sim.After{FailedUnits: []string{"web.service"}}}))
		m.adjust = func(c *Config) { c.MetricsFile = m.path("nixfleet.prom") }
		shows := func(lines ...string) {
			t.Helper()
			text, err := os.ReadFile(m.path("nixfleet.prom"))
			m.must(err)
			for _, line := range lines {
				if !strings.Contains("\n"+string(text), "\nnixfleet_agent_"+line+"\n") {
					t.Errorf("lacks %q:\n%s", line, text)
				}
			}
		}
		stop := m.start(m.sim)
		time.Sleep(3 * time.Second)
		shows("release_stale 0", "quarantined 0", "held 0", "activating 1")
		time.Sleep(30 * time.Minute)
		m.types("pause")
		time.Sleep(time.Minute)
		shows("release_stale 0", "quarantined 1", "held 1", "activating 0")
		time.Sleep(3 * time.Hour)
		stop()
		shows("release_stale 1")
		if info, err := os.Stat(m.path("nixfleet.prom")); err != nil || info.Mode().Perm() != 0o644 {
			t.Errorf("%v, %v", info, err)
		}
	})
}
