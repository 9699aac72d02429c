package agent

import (
	"context"
	"errors"
	"net/http"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"nixfleet/nixops"
	"nixfleet/nixops/sim"
	"nixfleet/roles/agent/journal"
	"nixfleet/roles/protocol"
)

// stubborn is a machine that cannot take a deadline back.
type stubborn struct{ nixops.Host }

func (s stubborn) DisarmDeadline(ctx context.Context, unit string) error {
	return errors.New("systemctl does not answer")
}

// A deadline that could not be disarmed fires in the middle of the next activation
// and leaves it alone.
func TestDeadlineOfAnEarlierActivation_A9(t *testing.T) {
	bubble(t, func(t *testing.T) {
		p := newPlane(t)
		closures := with(sim.Closure{})
		closures[another] = sim.Closure{Script: sim.Script{SwitchTime: 2 * time.Minute}}
		m := newMachine(t, p, closures)
		stop := m.start(stubborn{m.sim})
		time.Sleep(5*time.Minute + 30*time.Second)
		if m.where() != all(target) {
			t.Fatalf("first at %v", m.where())
		}
		p.release(another, time.Now())
		time.Sleep(10 * time.Minute)
		stop()
		if m.where() != all(another) || p.reported(protocol.EventActivationFailed) {
			t.Errorf("ended at %v, reports %v", m.where(), p.said())
		}
	})
}

// An agent that is stopped between commit and confirm leaves a deadline that the
// next one takes back.
func TestDeadlineIsDisarmedByTheNextAgent(t *testing.T) {
	bubble(t, func(t *testing.T) {
		p := newPlane(t)
		m := newMachine(t, p, good)
		m.must(m.sim.Realise(context.Background(), target, nil))
		m.must(m.sim.Install(target))
		j := m.committed(target)
		m.must(m.sim.ArmDeadline(context.Background(),
			nixops.Deadline{Unit: j.Units.Deadline, After: time.Hour, Command: []string{"/bin/true"}}))
		stop := m.start(m.sim)
		time.Sleep(time.Minute)
		stop()
		if armed, err := m.sim.DeadlineArmed(context.Background(), j.Units.Deadline); armed || err != nil ||
			p.confirmed() != 1 {
			t.Errorf("armed %v, %v; %d confirms", armed, err, p.confirmed())
		}
	})
}

// committed is a journal that waits for its confirm.
func (m *machine) committed(closure string) *journal.Journal {
	m.t.Helper()
	dir, err := journal.Open(m.path("state"))
	m.must(err)
	j := anyJournal()
	j.Step, j.Closure, j.Before, j.BootID = journal.Committed, closure, journal.Recorded{Current: before,
		Profile: before, BootDefault: before}, m.boot()
	m.must(dir.Begin(j))
	return j
}

// Nothing but the target's own agent, with the target running, confirms it.
func TestOthersNeverConfirm(t *testing.T) {
	for name, c := range map[string]struct {
		agent   string
		running string
		waiting string
	}{
		"the generation before was chosen at the boot menu": {"self", before, "was not confirmed"},
		"somebody switched to a third":                      {"self", another, "was not confirmed"},
		"the target runs, this is another agent": {"/nix/store/elsewhere/bin/nixfleet", target,
			"own agent to confirm"},
	} {
		t.Run(name, func(t *testing.T) {
			bubble(t, func(t *testing.T) {
				p := newPlane(t)
				p.noTarget = true
				m := newMachine(t, p, good)
				m.must(sim.WriteClosure(filepath.Join(m.dir, "cache"), target,
					sim.Closure{Agent: c.agent, TrustJSON: string(p.trust)}))
				m.must(m.sim.Realise(context.Background(), target, nil))
				m.must(m.sim.Install(c.running))
				m.committed(target)
				stop := m.start(m.sim)
				time.Sleep(30 * time.Minute)
				stop()
				j, err := journal.Directory(m.path("state")).Journal()
				if p.confirmed() != 0 || err != nil || (j == nil) != (c.running != target) || m.where() != all(c.running) {
					t.Errorf("%d confirms, at %v, journal %+v, %v", p.confirmed(), m.where(), j, err)
				}
				if c.running != target {
					if s := m.local(); !strings.Contains(s.Held, holdByHand) ||
						!strings.Contains(p.acts(), protocol.KindThirdClosure) {
						t.Errorf("status %+v, reports %v", s, p.said())
					}
				} else if s := m.local(); !strings.Contains(s.Waiting, c.waiting) {
					t.Errorf("waits for %q", s.Waiting)
				}
			})
		})
	}
}

// A confirm names the boot it is sent from, and one that nobody answers gives way to
// the next release.
func TestConfirmThatIsNeverAnswered(t *testing.T) {
	bubble(t, func(t *testing.T) {
		p := newPlane(t)
		p.confirm = http.StatusInternalServerError
		m := newMachine(t, p, good)
		stop := m.start(m.sim)
		time.Sleep(3 * time.Minute)
		if m.where() != all(target) || p.confirmed() == 0 {
			t.Fatalf("at %v, %d confirms", m.where(), p.confirmed())
		}
		p.release(another, time.Now())
		time.Sleep(30 * time.Minute)
		p.set(func() { p.confirm = http.StatusNoContent })
		time.Sleep(30 * time.Minute)
		stop()
		var c confirmed
		m.must(journal.Directory(m.path("state")).Read(confirmedFile, &c))
		if m.where() != all(another) || c.Closure != another || p.seen().Held != nil {
			t.Errorf("at %v, confirmed %q, held %v", m.where(), c.Closure, p.seen().Held)
		}
	})
}

// A boot loader that lost with the power what it had been told boots what was before:
// that is a rollback like any other power cut, and tried again.
func TestBootLoaderThatForgot(t *testing.T) {
	bubble(t, func(t *testing.T) {
		p := newPlane(t)
		m := newMachine(t, p, good)
		m.must(m.sim.Realise(context.Background(), target, nil))
		m.must(m.sim.SetProfile(context.Background(), target))
		m.committed(target)
		m.must(m.sim.PowerCycle())
		m.must(m.undoer().Guard(context.Background()))
		stop := m.start(m.sim)
		time.Sleep(30 * time.Second)
		if m.where() != all(before) || p.confirmed() != 0 ||
			!strings.Contains(p.refusals(protocol.EventRollbackTriggered), "power was lost") {
			t.Errorf("at %v, reports %v", m.where(), p.said())
		}
		time.Sleep(10 * time.Minute)
		stop()
		if m.where() != all(target) || p.confirmed() != 1 {
			t.Errorf("afterwards at %v, %d confirms", m.where(), p.confirmed())
		}
	})
}
