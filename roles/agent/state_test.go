package agent

import (
	"context"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"nixfleet/nixops"
	"nixfleet/nixops/sim"
	"nixfleet/roles/protocol"
)

// dying is a machine whose switch scripts end by a list of exits, each after it has
// changed the running system or before. When the list is over they work.
type dying struct {
	*sim.Host
	of    string // closure
	mu    sync.Mutex
	exits []death
	runs  []nixops.SwitchRequest
	down  []string // units that do not come up again
}

type death struct {
	code  int
	moved bool
}

func (d *dying) Switch(ctx context.Context, r nixops.SwitchRequest) (nixops.Exit, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if r.Closure != d.of || r.Action != nixops.ActionTest {
		return d.Host.Switch(ctx, r)
	}
	d.runs = append(d.runs, r)
	if len(d.exits) == 0 {
		return d.Host.Switch(ctx, r)
	}
	next := d.exits[0]
	d.exits = d.exits[1:]
	was, err := d.Host.CurrentSystem(ctx)
	if err != nil {
		return nixops.Exit{}, err
	}
	now := was
	if next.moved {
		if now = d.of; now == was {
			was = "another"
		}
		if err := d.Host.RestoreCurrent(ctx, d.of); err != nil {
			return nixops.Exit{}, err
		}
	}
	return nixops.Exit{Code: next.code}.After(was, now, "Error: I/O error"), nil
}

func (d *dying) StartAgain(ctx context.Context, ran []string) ([]string, error) { return d.down, nil }

// until waits for something that has to come.
func (m *machine) until(done func() bool) {
	m.t.Helper()
	for end := time.Now().Add(time.Hour); !done(); time.Sleep(100 * time.Millisecond) {
		if time.Now().After(end) {
			m.t.Fatal("waited for an hour")
		}
	}
}

// An exit is judged by what the run changed: a script that died in its middle is run once
// more, and goes on where it died; one that met an error before it changed anything is
// the host's trouble.
func TestSwitchScriptThatDies_A36(t *testing.T) {
	for name, c := range map[string]struct {
		exits  []death
		runs   int
		ends   [3]string
		blamed bool
	}{
		"bus lost, then well":     {[]death{{1, true}}, 2, all(target), false},
		"logind away, then well":  {[]death{{11, true}}, 2, all(target), false},
		"dies twice":              {[]death{{1, true}, {1, true}}, 2, all(before), true},
		"an error of the host":    {[]death{{21, false}}, 2, all(target), false}, // tried again by itself
		"refused":                 {[]death{{1, false}}, 1, all(before), true},
		"activation script fails": {[]death{{2, true}, {2, true}}, 2, all(before), true},
	} {
		t.Run(name, func(t *testing.T) {
			bubble(t, func(t *testing.T) {
				p := newPlane(t)
				m := newMachine(t, p, good)
				host := &dying{Host: m.sim, of: target, exits: c.exits}
				stop := m.start(host)
				m.until(func() bool { return p.confirmed() > 0 || p.reported(protocol.EventClosureQuarantined) })
				stop()
				if m.where() != c.ends || p.reported(protocol.EventClosureQuarantined) != c.blamed {
					t.Errorf("ended at %v, reports %v", m.where(), p.said())
				}
				if len(host.runs) != c.runs || c.exits[0].moved && !host.runs[1].Continues || host.runs[0].Continues {
					t.Errorf("runs %+v", host.runs)
				}
			})
		})
	}
}

// An undo promises units and not only links: one whose script dies is not done.
func TestUndoWhoseScriptDies_A34(t *testing.T) {
	for name, c := range map[string]struct {
		exits []death
		down  []string
		runs  int
		told  string // part of the report
	}{
		"dies twice, then well": {[]death{{1, true}, {143, true}}, nil, 3, "health-gate"},
		"unit does not come up": {nil, []string{"app.service"}, 1, "do not run: [app.service]"},
		"never ends well": {[]death{{1, true}, {1, true}, {1, true}, {1, true}, {1, true}, {1, true}}, nil, 5,
			"the previous closure's script: exit 1"},
	} {
		t.Run(name, func(t *testing.T) {
			bubble(t, func(t *testing.T) {
				p := newPlane(t)
				m := newMachine(t, p, with(sim.Closure{After: sim.After{FailedUnits: []string{"web.service"}}}))
				host := &dying{Host: m.sim, of: before, exits: c.exits, down: c.down}
				u := m.undoer()
				u.Host = host
				m.sim.OnDeadline(func(d nixops.Deadline) {
					if err := u.Insist(t.Context(), d.Unit); err != nil && t.Context().Err() == nil {
						t.Errorf("deadline: %v", err)
					}
				})
				stop := m.start(host)
				m.until(func() bool { return p.reported(protocol.EventRollbackTriggered) })
				stop()
				told := fmt.Sprint(p.refusals(protocol.EventRollbackTriggered))
				if m.where() != all(before) || len(host.runs) != c.runs || !strings.Contains(told, c.told) {
					t.Errorf("at %v after %d runs; told %s", m.where(), len(host.runs), told)
				}
			})
		})
	}
}

// An installer that exits 0 and has changed nothing is not a success; it is not the
// release's fault either.
func TestInstallerThatChangesNothing(t *testing.T) {
	bubble(t, func(t *testing.T) {
		p := newPlane(t)
		m := newMachine(t, p, with(sim.Closure{Script: sim.Script{BootSkips: true}}))
		stop := m.start(m.sim)
		time.Sleep(5 * time.Minute)
		stop()
		if m.where() != all(before) || p.confirmed() != 0 || p.reported(protocol.EventClosureQuarantined) {
			t.Errorf("at %v, %d confirms, reports %v", m.where(), p.confirmed(), p.said())
		}
		if told := fmt.Sprint(p.refusals(protocol.EventRollbackTriggered)); !strings.Contains(told, "changed nothing") {
			t.Errorf("told %s", told)
		}
	})
}

// The health check of a container has a new name each time.
func TestUnitsOfNobodyAreNotBlamed_A32(t *testing.T) {
	bubble(t, func(t *testing.T) {
		p := newPlane(t)
		m := newMachine(t, p, with(sim.Closure{After: sim.After{LateUnits: []string{
			"9f86d081884c7d65-0011223344556677.service", "run-u17.service",
		}, LateAfter: 3 * time.Second}}))
		stop := m.start(m.sim)
		time.Sleep(5 * time.Minute)
		stop()
		if m.where() != all(target) || p.confirmed() != 1 {
			t.Errorf("at %v, reports %v", m.where(), p.said())
		}
	})
}
