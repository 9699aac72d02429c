package agent

import (
	"context"
	"strings"
	"testing"
	"time"

	"nixfleet/nixops"
	"nixfleet/nixops/sim"
	"nixfleet/pki"
	"nixfleet/roles/protocol"
)

// noisy is a machine whose units write what is not UTF-8.
type noisy struct{ nixops.Host }

const noise = "b\xfccher.service: \xff\xfe"

func (n noisy) UnitOutput(ctx context.Context, unit string) (string, error) {
	// A cut in the middle of a character is enough.
	return "…"[1:] + strings.Repeat("…", nixops.MaxOutput) + noise, nil
}

// What a switch prints is nobody's to choose: it may be no text, or be cut in the
// middle of a character, and neither keeps a step from being written ahead, nor a
// report from being sent.
func TestOutputThatIsNoText(t *testing.T) {
	for name, c := range map[string]struct {
		closure sim.Closure
		want    [3]string
	}{
		"good": {sim.Closure{}, all(target)},
		"bad":  {sim.Closure{Script: sim.Script{ExitCode: 2}}, all(before)},
	} {
		t.Run(name, func(t *testing.T) {
			bubble(t, func(t *testing.T) {
				p := newPlane(t)
				m := newMachine(t, p, with(c.closure))
				stop := m.start(noisy{m.sim})
				time.Sleep(10 * time.Minute)
				stop()
				if m.where() != c.want {
					t.Errorf("ended at %v", m.where())
				}
				failed := p.refusals(protocol.EventActivationFailed)
				if name == "bad" && (!strings.Contains(failed, "exit 2") || !strings.Contains(failed, "cher.service")) {
					t.Errorf("reported %q", failed)
				}
			})
		})
	}
}

func TestProbeThatPrintsNoText(t *testing.T) {
	for name, word := range map[string]string{"no UTF-8": `\377\376`, "cut": "…" + strings.Repeat("…", maxFailureReason)} {
		p := newProber(&healthChecks{Mode: "enforce", Exec: []execProbe{
			{Name: "site", Command: []string{"/bin/sh", "-c", `printf "$1"; exit 3`, "sh", word}},
		}}, nil, nil)
		p.once(context.Background(), p.probes[0])
		got := p.snapshot()
		if _, err := pki.Marshal(protocol.CheckinRequest{HealthProbes: got}); err != nil || got[0].FailureReason == nil ||
			len(*got[0].FailureReason) > maxFailureReason {
			t.Errorf("%s: %+v: %v", name, got, err)
		}
	}
}
