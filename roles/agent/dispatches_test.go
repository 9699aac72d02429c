package agent

import (
	"testing"
	"testing/synctest"
	"time"

	"nixfleet/nixops/sim"
	"nixfleet/roles/agent/journal"
	"nixfleet/roles/protocol"
)

// Each event names the newest dispatch that the host had been given when it happened, over the agent's own replacement
// as well. One that renews what is under way counts from then on, and a name of another form is not repeated.
func TestEventsNameTheirDispatch(t *testing.T) {
	slow := sim.Closure{Cache: sim.Cache{FetchTime: 3 * time.Minute}}
	for name, c := range map[string]struct {
		given []string // one an answer with a target; the last one goes on
		want  string
	}{
		"one":        {[]string{"first"}, "first"},
		"renewed":    {[]string{"first", "second"}, "second"},
		"none":       {[]string{""}, ""},
		"misshapen":  {[]string{"no name/at all"}, ""},
		"and bounds": {[]string{"a1234567890123456789012345678901234567890"}, ""},
	} {
		synctest.Test(t, func(t *testing.T) {
			p := newPlane(t)
			m := newMachine(t, p, with(slow))
			answers := 0
			p.tamper = func(r *protocol.CheckinResponse) {
				if r.Target != nil {
					r.Target.Dispatch = c.given[min(answers, len(c.given)-1)]
					answers++
				}
			}
			stop := m.start(m.sim)
			time.Sleep(2 * time.Minute)
			phase, fetch := p.seen().Phase, p.seen().LastFetchOutcome
			time.Sleep(10 * time.Minute)
			stop()
			if phase.Name != protocol.PhaseFetching || phase.Dispatch != c.want || fetch.Dispatch != c.want {
				t.Errorf("%s: the check-in says %+v, %+v", name, phase, fetch)
			}
			began := false
			for _, r := range p.said() {
				if r.Event == protocol.EventActivationStarted {
					began = true
					if r.Dispatch != c.want {
						t.Errorf("%s: %s names dispatch %q", name, r.Event, r.Dispatch)
					}
				}
			}
			if !began {
				t.Errorf("%s: nothing began: %+v", name, p.said())
			}
			again := &dispatches{dir: journal.Directory(m.path("state"))}
			again.restore(func(err error) { t.Error(err) })
			if got := again.of(*p.said()[0].Rollout); got != c.want {
				t.Errorf("%s: the next agent knows dispatch %q", name, got)
			}
		})
	}
}
