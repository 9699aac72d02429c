package agent

import (
	"context"
	"errors"
	"sync/atomic"
	"testing"
	"time"

	"nixfleet/nixops"
	"nixfleet/roles/agent/journal"
	"nixfleet/roles/agent/undo"
)

// hiccup is a machine that cannot set its profile for a while.
type hiccup struct {
	nixops.Host
	left atomic.Int32
}

func (h *hiccup) SetProfile(ctx context.Context, closure string) error {
	if h.left.Add(-1) >= 0 {
		return errors.New("nix-env: disk I/O error")
	}
	return h.Host.SetProfile(ctx, closure)
}

// The undo that the deadline begins is tried again by itself: no agent lives, and
// nobody boots the machine.
func TestDeadlineGoesOnByItself_A5_A9(t *testing.T) {
	for _, trouble := range []string{"foreign lock", "disk"} {
		t.Run(trouble, func(t *testing.T) {
			bubble(t, func(t *testing.T) {
				p := newPlane(t)
				m := newMachine(t, p, good)
				ill := &hiccup{Host: m.sim}
				u := m.undoer()
				u.Host = ill
				m.sim.OnDeadline(func(d nixops.Deadline) {
					if err := u.Insist(t.Context(), d.Unit); err != nil && t.Context().Err() == nil {
						t.Errorf("deadline: %v", err)
					}
				})
				stop := m.start(m.sim)
				for m.where()[0] != target {
					time.Sleep(100 * time.Millisecond)
				}
				stop()
				switch trouble {
				case "foreign lock":
					m.must(m.sim.HoldLock(true))
				case "disk":
					ill.left.Store(4)
				}
				time.Sleep(10 * time.Minute) // the window, and some attempts
				if trouble == "foreign lock" {
					if m.where()[0] != target {
						t.Errorf("undone under somebody else's lock: %v", m.where())
					}
					m.must(m.sim.HoldLock(false))
					time.Sleep(2*undo.Again + time.Second)
				}
				j, err := journal.Directory(m.path("state")).Journal()
				if err != nil || j == nil || j.Step != journal.Undone || m.where() != all(before) {
					t.Errorf("%+v, %v, at %v", j, err, m.where())
				}
			})
		})
	}
}

// underALock is a machine in the middle of an activation, of which somebody else has the
// switch lock.
func underALock(t *testing.T) (*machine, journal.Directory, *journal.Journal) {
	t.Helper()
	m := newMachine(t, newPlane(t), good)
	dir, err := journal.Open(m.path("state"))
	m.must(err)
	j := anyJournal()
	j.Step, j.Closure, j.Before, j.BootID = journal.Checking, target, journal.Recorded{Current: before, Profile: before,
		BootDefault: before}, m.boot()
	m.must(dir.Begin(j))
	m.must(m.sim.HoldLock(true))
	return m, dir, j
}

// An attempt that comes later finds what has happened meanwhile: what was committed
// stays, another activation is not its own, and the end of its context ends it.
func TestDeadlineLooksAtTheJournalEachTime(t *testing.T) {
	for meanwhile, want := range map[string]journal.Step{"committed": journal.Committed, "another": journal.Checking,
		"stopped": journal.Undoing} {
		t.Run(meanwhile, func(t *testing.T) {
			bubble(t, func(t *testing.T) {
				m, dir, j := underALock(t)
				ctx, cancel := context.WithCancel(t.Context())
				defer cancel()
				done := make(chan error, 1)
				go func() { done <- m.undoer().Insist(ctx, j.Units.Deadline) }()
				time.Sleep(undo.LockWait + undo.InsistFirst/2) // between the first attempt and the second
				now, err := dir.Journal()
				m.must(err)
				switch meanwhile {
				case "committed":
					now.Step = journal.Committed
				case "another":
					now.Step, now.Units = journal.Checking, journal.NewUnits("another")
				case "stopped":
					cancel()
				}
				m.must(dir.Write(journal.File, now))
				err = <-done
				if (err == nil) != (meanwhile != "stopped") {
					t.Errorf("it ends with %v", err)
				}
				after, err := dir.Journal()
				if err != nil || after == nil || after.Step != want {
					t.Errorf("the journal is %+v, %v", after, err)
				}
			})
		})
	}
}

// After an hour it leaves what it could not do to whoever runs it again.
func TestDeadlineEndsInTheEnd(t *testing.T) {
	bubble(t, func(t *testing.T) {
		m, _, j := underALock(t)
		began := time.Now()
		if err := m.undoer().Insist(t.Context(), j.Units.Deadline); !errors.Is(err, nixops.ErrLockHeld) {
			t.Errorf("it ends with %v", err)
		}
		if took := time.Since(began); took < undo.InsistFor/2 || took > undo.InsistFor+undo.Again+undo.LockWait {
			t.Errorf("it took %s", took)
		}
	})
}
