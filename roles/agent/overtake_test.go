package agent

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/urfave/cli/v2"

	"nixfleet/nixops/sim"
	"nixfleet/roles/agent/journal"
	"nixfleet/roles/protocol"
)

// The download of a release that is not wanted any more gives way to the newer one,
// also under a v1 control plane, which names that only once.
func TestNewerReleaseOvertakesADownload(t *testing.T) {
	for name, plane := range map[string]func(*testing.T) *plane{"ours": newPlane, "v1": newV1Plane} {
		t.Run(name, func(t *testing.T) {
			bubble(t, func(t *testing.T) {
				p := plane(t)
				m := newMachine(t, p, with(sim.Closure{Cache: sim.Cache{FetchTime: 5 * time.Hour}}))
				stop := m.start(m.sim)
				time.Sleep(2 * time.Minute)
				p.release(another, time.Now())
				time.Sleep(3 * time.Minute)
				stop()
				if m.where() != all(another) || m.fetches(target) != 0 || p.reported(protocol.EventRealiseFailed) ||
					p.reported(protocol.EventRollbackTriggered) {
					t.Errorf("at %v, reports %v", m.where(), p.said())
				}
			})
		})
	}
}

// A trust file that lies outside of every closure is not brought by a release, and
// cannot be spoilt by one; the file that a closure brings has to be in the next as well.
func TestTrustFileOutsideTheClosures_T16(t *testing.T) {
	bubble(t, func(t *testing.T) {
		p := newPlane(t)
		m := newMachine(t, p, good)
		m.must(sim.WriteClosure(filepath.Join(m.dir, "cache"), target, sim.Closure{Agent: "self"}))
		stop := m.start(m.sim)
		time.Sleep(2 * time.Minute)
		stop()
		if m.where() != all(target) {
			t.Errorf("at %v, reports %v", m.where(), p.said())
		}
	})
	if !inStore("/nix/store/0-x/etc/trust.json") || inStore("/etc/nixfleet/agent/trust.json") {
		t.Error("a file of a closure is not told from another")
	}
}

// What is over after too many tries without blame is shown as that.
func TestStatusShowsWhatIsNotTriedAgain(t *testing.T) {
	for failures, unreachable := range map[uint32]uint32{1: 0, 0: unreachableTries + 1} {
		var out bytes.Buffer
		l := localStatus{Quarantine: &quarantine{Closure: target, Reason: journal.Reason{Text: "why"}, Failures: failures,
			Unreachable: unreachable}}
		if err := l.print(&out, time.Now()); err != nil || !strings.Contains(out.String(), "quarantined") {
			t.Errorf("%d failures, %d undone: %q, %v", failures, unreachable, out.String(), err)
		}
	}
}

// Bounds of the renewal's threshold are refused, not replaced.
func TestThresholdOfRenewal(t *testing.T) {
	for value, ok := range map[string]bool{"0": false, "1": false, "-0.5": false, "NaN": false, "0.3": true} {
		var cfg Config
		app := &cli.App{Flags: runFlags(), Action: func(c *cli.Context) error {
			cfg = configOf(c, cfg.Log)
			return nil
		}}
		if err := app.Run([]string{"agent", "--control-plane-url", "https://cp", "--machine-id", "a",
			"--renewal-threshold-fraction=" + value}); err != nil {
			t.Errorf("%s: %v", value, err)
		}
		if err := cfg.complete(); (err == nil) != ok {
			t.Errorf("%s: %v", value, err)
		}
	}
}

// An offer that comes while this host waits by itself is kept: the control plane does not
// make it again before its lease is over.
func TestOfferDuringTheHostsOwnWaitIsKept(t *testing.T) {
	bubble(t, func(t *testing.T) {
		p := newPlane(t)
		m := newMachine(t, p, good)
		m.must(os.WriteFile(filepath.Join(m.dir, "cache/unreachable"), nil, 0o600))
		offers := 0
		p.set(func() {
			p.tamper = func(r *protocol.CheckinResponse) {
				if r.Target != nil {
					offers++
				}
				if offers > 2 {
					r.Target = nil
				}
			}
		})
		stop := m.start(m.sim)
		m.until(func() bool { return p.reported(protocol.EventRealiseFailed) })
		m.must(os.Remove(filepath.Join(m.dir, "cache/unreachable")))
		time.Sleep(4 * time.Minute)
		stop()
		if m.where() != all(target) {
			t.Errorf("at %v after %d offers, status %+v", m.where(), offers, m.local())
		}
	})
}

// What was said of an answer that did not verify is over soon after it is.
func TestRefusedAnswerIsForgottenSoon(t *testing.T) {
	bubble(t, func(t *testing.T) {
		p := newPlane(t)
		m := newMachine(t, p, good)
		stop := m.start(m.sim)
		time.Sleep(5 * time.Minute)
		p.set(func() {
			p.holds = true
			p.tamper = func(r *protocol.CheckinResponse) {
				r.Head = &protocol.HeadRef{Channel: "other", Hash: strings.Repeat("0", 64)}
			}
		})
		m.until(func() bool { return strings.Contains(m.local().Waiting, "refused the answer") })
		p.set(func() { p.tamper = nil })
		time.Sleep(30 * time.Second)
		if s := m.local(); strings.Contains(s.Waiting, "refused the answer") {
			t.Errorf("status says %q", s.Waiting)
		}
		stop()
	})
}
