package agent

import (
	"strings"
	"testing"
	"time"

	"nixfleet/nixops/sim"
	"nixfleet/roles/protocol"
)

const says = "stopping the following units: app.service\nstarting the following units: app.service, new.service\n"

// What a switch did to units is reported; what a staged generation would do as well.
func TestSwitchTellsWhatItDid(t *testing.T) {
	for name, c := range map[string]struct {
		target     sim.Closure
		kind, text string
	}{
		"switched": {sim.Closure{Script: sim.Script{Says: says}}, protocol.KindSwitched,
			"stopped app.service; started app.service new.service"},
		"staged": {sim.Closure{DBus: "dbus-broker", Script: sim.Script{Says: says}}, protocol.KindPreview,
			"would stop app.service; would start app.service new.service"},
	} {
		t.Run(name, func(t *testing.T) {
			bubble(t, func(t *testing.T) {
				p := newPlane(t)
				m := newMachine(t, p, with(c.target))
				stop := m.start(m.sim)
				time.Sleep(5 * time.Minute)
				stop()
				if acts := p.acts(); !strings.Contains(acts, c.kind) || !strings.Contains(acts, c.text) {
					t.Errorf("reports %s", acts)
				}
			})
		})
	}
}

// preview shows the newest closure that was told, and names one that it is given.
func TestPreviewChangesNothing(t *testing.T) {
	bubble(t, func(t *testing.T) {
		p := newPlane(t)
		m := newMachine(t, p, map[string]sim.Closure{before: {}, target: {Script: sim.Script{Says: says}},
			another: {Script: sim.Script{Says: "reloading the following units: dbus.service\n"}}})
		stop := m.start(m.sim)
		time.Sleep(5 * time.Minute)
		stop()
		m.must(m.sim.Realise(t.Context(), another, nil))
		for _, c := range []struct{ path, want string }{
			{"", "would stop app.service would start app.service new.service"},
			{"/nix/store/" + another, "would reload dbus.service"},
		} {
			args := []string{"preview"}
			if c.path != "" {
				args = append(args, c.path)
			}
			if words := strings.Join(strings.Fields(m.types(args...)), " "); !strings.Contains(words, c.want) {
				t.Errorf("preview %q says %q", c.path, words)
			}
		}
		if m.where() != all(target) {
			t.Errorf("at %v", m.where())
		}
	})
}
