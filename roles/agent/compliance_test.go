package agent

import (
	"testing"
	"time"

	"github.com/go-json-experiment/json"

	"nixfleet/nixops/fleet"
	"nixfleet/nixops/sim"
	"nixfleet/roles/protocol"
)

const failingControls = `{"host":"web-01","timestamp":"NOW","overall":"non-compliant","controls":[
	{"control":"ssh-keys-only","status":"non-compliant","framework_articles":["nis2:21"],"checks":{"passwords":true}},
	{"control":"firewall","status":"compliant","framework_articles":[],"checks":{}},
	{"control":"audit-log","status":"error","framework_articles":[]}]}`

func TestComplianceGate(t *testing.T) {
	for _, c := range []struct {
		name, mode string
		closure    sim.Closure
		want       string // closure
		failures   int    // reports of controls
		errors     int    // reports of the gate
	}{
		{"enforce sends failing controls back", fleet.ModeEnforce, sim.Closure{After: sim.After{Evidence: failingControls}},
			before, 2, 0},
		{"permissive reports them", fleet.ModePermissive, sim.Closure{After: sim.After{Evidence: failingControls}},
			target, 2, 0},
		{"auto leaves it to the signed mode, which is disabled", "auto",
			sim.Closure{After: sim.After{Evidence: failingControls}}, target, 0,
			0},
		{"disabled does not ask", fleet.ModeDisabled, sim.Closure{After: sim.After{Evidence: failingControls}}, target, 0, 0},
		{"compliant", fleet.ModeEnforce,
			sim.Closure{After: sim.After{Evidence: `{"timestamp":"NOW","controls":[{"control":"a","status":"compliant"}]}`}},
			target, 0, 0},
		{"enforce wants a collector", fleet.ModeEnforce, sim.Closure{}, before, 0, 1},
		{"permissive wants none", fleet.ModePermissive, sim.Closure{}, target, 0, 0},
		{"the collector fails", fleet.ModeEnforce, sim.Closure{After: sim.After{CollectorExit: 7}}, before, 0, 1},
		{"old evidence", fleet.ModeEnforce,
			sim.Closure{After: sim.After{Evidence: `{"timestamp":"1999-12-31T23:00:00Z","controls":[]}`}},
			before, 0, 1},
		{"evidence that is none", fleet.ModePermissive, sim.Closure{After: sim.After{Evidence: `{"controls":[]`}},
			target, 0, 1},
	} {
		t.Run(c.name, func(t *testing.T) {
			bubble(t, func(t *testing.T) {
				p := newPlane(t)
				p.pace = 20
				m := newMachine(t, p, with(c.closure))
				m.adjust = func(cfg *Config) { cfg.ComplianceMode = c.mode }
				stop := m.start(m.sim)
				time.Sleep(20 * time.Minute)
				stop()
				if m.where() != all(c.want) {
					t.Errorf("ended at %v", m.where())
				}
				failures, gate, activations := 0, 0, 0
				for _, r := range p.reports {
					var details struct {
						Signature *string `json:"signature"`
					}
					if err := json.Unmarshal(r.Details, &details); err != nil {
						t.Error(err)
					}
					switch r.Event {
					case protocol.EventComplianceFailure:
						failures++
					case protocol.EventRuntimeGateError:
						gate++
					case protocol.EventActivationStarted:
						activations++
						continue
					default:
						continue
					}
					if details.Signature == nil || r.Rollout == nil {
						t.Errorf("%s is unsigned or names no rollout", r.Event)
					}
				}
				// Once for each activation, however often the host checks in (C15).
				if failures != c.failures*activations || gate != c.errors*activations {
					t.Errorf("%d failures and %d errors reported by %d activations, want %d and %d by each", failures, gate,
						activations, c.failures, c.errors)
				}
			})
		})
	}
}
