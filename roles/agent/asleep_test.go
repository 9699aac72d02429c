package agent

import (
	"testing"
	"time"

	"nixfleet/roles/agent/journal"
	"nixfleet/roles/protocol"
)

// A laptop that is closed in the middle of an activation: the deadline does not count the
// time asleep, and the agent undoes as soon as it is awake.
func TestWindowThatPassedAsleep_A27(t *testing.T) {
	bubble(t, func(t *testing.T) {
		p := newPlane(t)
		m := newMachine(t, p, good)
		stop := m.start(m.sim)
		defer stop()
		for m.where()[0] != target {
			time.Sleep(100 * time.Millisecond)
		}
		time.Sleep(sleepPoll + time.Second)
		if m.where()[0] != target {
			t.Fatalf("undone before it slept: %v", m.where())
		}
		j, err := journal.Directory(m.path("state")).Journal()
		m.must(err)
		m.must(m.sim.Suspend(time.Duration(j.WindowSecs) * time.Second * 10))
		time.Sleep(sleepPoll + 5*time.Second)
		if m.where() != all(before) {
			t.Errorf("at %v after it woke", m.where())
		}
		time.Sleep(time.Minute)
		if len(p.refusals(protocol.EventRollbackTriggered)) == 0 {
			t.Errorf("nothing was reported: %v", p.said())
		}
	})
}

// The time asleep before an activation counts for nothing.
func TestSleepBeforeAnActivation_A27(t *testing.T) {
	bubble(t, func(t *testing.T) {
		p := newPlane(t)
		m := newMachine(t, p, good)
		m.must(m.sim.Suspend(1000 * time.Hour))
		stop := m.start(m.sim)
		time.Sleep(2 * time.Minute)
		stop()
		if m.where() != all(target) {
			t.Errorf("ended at %v", m.where())
		}
	})
}
