package agent

import (
	"net/http"
	"testing"
	"testing/synctest"
	"time"

	"github.com/go-json-experiment/json"

	"nixfleet/nixops"
	"nixfleet/roles/protocol"
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

// A report that a control plane cannot digest holds up the others for a day at most.
func TestReportThatIsNeverTaken(t *testing.T) {
	bubble(t, func(t *testing.T) {
		p := newPlane(t)
		taken := 0
		p.set(func() {
			p.tamper = func(r *protocol.CheckinResponse) { r.NextCheckinSecs = 900 }
			p.routes = map[string]http.HandlerFunc{"/v1/agent/report": func(w http.ResponseWriter, r *http.Request) {
				var rep protocol.ReportRequest
				if err := json.UnmarshalRead(r.Body, &rep); err != nil {
					t.Error(err)
				}
				if rep.Event == protocol.EventActivationStarted {
					w.WriteHeader(http.StatusInternalServerError)
					return
				}
				taken++
				w.Write([]byte(`{"eventId":"e"}`))
			}}
		})
		m := newMachine(t, p, with(nixops.SimClosure{ExitCode: 2}))
		m.adjust = func(c *Config) { c.PollInterval = 15 * time.Minute }
		stop := m.start(m.sim)
		time.Sleep(20 * time.Hour)
		p.set(func() {
			if taken != 0 {
				t.Errorf("%d reports overtook the first", taken)
			}
		})
		time.Sleep(6 * time.Hour)
		stop()
		left, err := openOutbox(directory(m.path("state")))
		m.must(err)
		if first, ok := left.first(); taken < 3 || ok && first.Event == protocol.EventActivationStarted {
			t.Errorf("%d taken, first in the queue is %s", taken, first.Event)
		}
	})
}
