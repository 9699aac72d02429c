package agent

import (
	"testing"
	"testing/synctest"
	"time"
)

// A control plane that takes its time over reports delays neither the switch
// beyond a bound nor the check-ins: who waits for a delivery of somebody else's
// waits no longer than he may.
func TestSlowReportsDelayNoSwitch(t *testing.T) {
	bubble(t, func(t *testing.T) {
		p := newPlane(t)
		m := newMachine(t, p, good)
		p.set(func() { p.slow = 25 * time.Second })
		began := time.Now()
		var switched time.Duration
		m.sim.OnSwitched(func(string) { switched = time.Since(began) })
		stop := m.live(m.sim)
		time.Sleep(3 * time.Minute)
		stop()
		if switched == 0 || switched > time.Minute {
			t.Errorf("switched after %s", switched)
		}
		if m.where() != all(target) {
			t.Errorf("the host runs %v", m.where())
		}
		synctest.Wait()
		heard := map[string]int{}
		for _, r := range p.said() {
			heard[r.Event]++
		}
		if heard["activation-started"] == 0 {
			t.Errorf("the report was lost: %v", heard)
		}
	})
}
