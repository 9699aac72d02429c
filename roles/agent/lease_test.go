package agent

import (
	"testing"
	"testing/synctest"
	"time"

	"nixfleet/nixops/sim"
	"nixfleet/roles/protocol"
)

// A dispatch is a lease: whatever took its time before the switch, it does not
// begin when others may have the slot, unless a newer answer says that it is held.
func TestNothingBeginsAfterTheLease(t *testing.T) {
	for name, slow := range map[string]sim.Closure{
		"download": {Cache: sim.Cache{FetchTime: 10 * time.Minute}},
		"checks":   {Script: sim.Script{SwitchTime: 6 * time.Minute}},
	} {
		for _, renewed := range []bool{false, true} {
			synctest.Test(t, func(t *testing.T) {
				p := newPlane(t)
				m := newMachine(t, p, with(slow))
				answers, lease := 0, uint32(300)
				p.tamper = func(r *protocol.CheckinResponse) {
					if r.Target == nil {
						return
					}
					if answers++; answers > 1 && !renewed {
						r.Target = nil
						return
					}
					r.Target.StartBySecs = &lease
				}
				stop := m.start(m.sim)
				time.Sleep(14 * time.Minute)
				stop()
				if began := p.reported(protocol.EventActivationStarted); began != renewed {
					t.Errorf("slow %s, renewed %t: began %t", name, renewed, began)
				}
			})
		}
	}
}
