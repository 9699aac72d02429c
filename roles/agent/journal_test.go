package agent

import (
	"context"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"nixfleet/nixops/sim"
	"nixfleet/pki"
	"nixfleet/roles/agent/journal"
	"nixfleet/roles/command"
)

func openDir(t testing.TB) journal.Directory {
	t.Helper()
	dir, err := journal.Open(filepath.Join(t.TempDir(), "state"))
	if err != nil {
		t.Fatal(err)
	}
	return dir
}

func anyJournal() *journal.Journal {
	return &journal.Journal{Step: journal.Fetching, Closure: "target",
		Before: journal.Recorded{Current: "before", Profile: "before"}, BootID: "boot",
		StartedAt: pki.At(time.Unix(1e9, 0)), Since: pki.At(time.Unix(1e9,
			0)), WindowSecs: 60, Units: journal.NewUnits("1"), FailedBefore: []string{}, Restarts: map[string]uint64{}}
}

func TestQuarantineHoldsUntilAnotherClosure_A12(t *testing.T) {
	now := time.Unix(2e9, 0)
	q := &quarantine{Closure: "bad", Failures: 1, Reason: journal.Reason{Text: "r"}, At: pki.At(now)}
	if q.blocked("bad", now.Add(1000*time.Hour)) == "" || q.blocked("good", now) != "" {
		t.Error("a failed closure must stay blocked and another must not be")
	}
	// An undo without blame is tried again, with patience, three times.
	q = &quarantine{Closure: "c", Unreachable: 1, At: pki.At(now)}
	if q.blocked("c", now) == "" || q.blocked("c", now.Add(time.Hour)) != "" {
		t.Error("no patience after an undo without blame (A25)")
	}
	if why := q.blocked("c", now.Add(-48*time.Hour)); why != "" {
		t.Errorf("after the clock was set back: %s", why)
	}
	q.Unreachable = unreachableTries + 1
	if q.blocked("c", now.Add(time.Hour)) == "" {
		t.Error("no end of tries")
	}
}

// A second agent on one state directory does not start, and leaves the activation of
// the first alone.
func TestOneAgentAtATime(t *testing.T) {
	bubble(t, func(t *testing.T) {
		p := newPlane(t)
		m := newMachine(t, p, with(sim.Closure{Cache: sim.Cache{FetchTime: time.Minute}}))
		stop := m.start(m.sim)
		time.Sleep(30 * time.Second)
		if err := Run(context.Background(), m.config(m.sim)); err == nil ||
			!strings.Contains(err.Error(), "another agent runs") || command.HintOf(err) == "" {
			t.Errorf("a second agent: %v", err)
		}
		time.Sleep(3 * time.Minute)
		stop()
		if m.where() != all(target) || m.fetches(target) != 1 {
			t.Errorf("at %v, fetched %d times", m.where(), m.fetches(target))
		}
		stop = m.start(m.sim)
		time.Sleep(time.Minute)
		stop()
	})
}
