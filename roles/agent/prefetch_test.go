package agent

import (
	"context"
	"fmt"
	"maps"
	"testing"
	"time"

	"nixfleet/nixops/fleet"
	"nixfleet/nixops/sim"
)

func (m *machine) fetches(closure string) int {
	m.t.Helper()
	n, err := m.sim.Fetches(closure)
	m.must(err)
	return n
}

func (m *machine) roots() map[string]string {
	m.t.Helper()
	roots, err := m.sim.Roots(context.Background())
	m.must(err)
	return roots
}

// A closure is fetched at this host's turn and kept from collection, and its
// activation later asks no cache.
func TestFetchAhead(t *testing.T) {
	bubble(t, func(t *testing.T) {
		const over = 40 * time.Minute
		turn := spread(testHost, target, over)
		if turn < 2*time.Minute || turn > over-2*time.Minute {
			t.Fatalf("the turn of %s is %s; choose another host", testHost, turn)
		}
		p := newPlane(t)
		p.noTarget = true
		m := newMachine(t, p, good)
		m.adjust = func(c *Config) { c.PrefetchSpread = over }
		stop := m.start(m.sim)
		time.Sleep(turn - time.Minute)
		if n := m.fetches(target); n != 0 {
			t.Errorf("fetched %d times before its turn", n)
		}
		time.Sleep(2 * time.Minute)
		if n := m.fetches(target); n != 1 || m.where() != all(before) {
			t.Errorf("fetched %d times after its turn, at %v", n, m.where())
		}
		// Signed anew it is the same closure; another one takes its place.
		p.release(target, time.Now())
		time.Sleep(over)
		if gone, err := m.sim.CollectGarbage(); err != nil || len(gone) != 0 {
			t.Errorf("collected %v, %v", gone, err)
		}
		p.release(another, time.Now())
		time.Sleep(over + time.Minute)
		gone, err := m.sim.CollectGarbage()
		if err != nil || len(gone) != 1 || gone[0] != target {
			t.Errorf("collected %v, %v", gone, err)
		}
		p.release(another, time.Now())
		p.set(func() { p.noTarget = false })
		time.Sleep(5 * time.Minute)
		stop()
		if m.where() != all(another) || m.fetches(another) != 1 || m.fetches(target) != 1 {
			t.Errorf("at %v after %d fetches", m.where(), m.fetches(another))
		}
		if roots := m.roots(); !maps.Equal(roots, map[string]string{"current": another, "previous": before}) {
			t.Errorf("roots %v", roots)
		}
	})
}

func TestNothingIsFetchedAheadWithoutProof(t *testing.T) {
	for name, c := range map[string]struct {
		spread time.Duration
		lie    func(p *plane)
	}{
		"not asked for": {0, func(*plane) {}},
		"another's proof": {time.Minute,
			func(p *plane) { p.proof.Leaf = fleet.Leaf(fleet.HostEntry{Hostname: "web-02", TargetClosure: target}) }},
		"a lie": {time.Minute,
			func(p *plane) { p.proof.Leaf = fleet.Leaf(fleet.HostEntry{Hostname: testHost, TargetClosure: another}) }},
		"unsigned head": {time.Minute, func(p *plane) { p.headSig = make([]byte, 64) }},
	} {
		t.Run(name, func(t *testing.T) {
			bubble(t, func(t *testing.T) {
				p := newPlane(t)
				p.noTarget = true
				c.lie(p)
				m := newMachine(t, p, good)
				m.adjust = func(cfg *Config) { cfg.PrefetchSpread = c.spread }
				stop := m.start(m.sim)
				time.Sleep(10 * time.Minute)
				stop()
				if m.fetches(target)+m.fetches(another) != 0 || len(m.roots()) != 0 {
					t.Errorf("fetched %d and %d times", m.fetches(target), m.fetches(another))
				}
			})
		})
	}
}

// What cannot be fetched ahead is tried again, and is not a failure of anything.
func TestFetchAheadOutlivesItsCache_A20(t *testing.T) {
	bubble(t, func(t *testing.T) {
		p := newPlane(t)
		p.noTarget = true
		m := newMachine(t, p, good)
		m.adjust = func(c *Config) { c.PrefetchSpread = time.Minute }
		m.space(1<<20, 1<<30)
		stop := m.start(m.sim)
		time.Sleep(30 * time.Minute)
		if m.fetches(target) != 0 || len(p.said()) != 0 {
			t.Errorf("fetched into a full store, or reported %v", p.said())
		}
		m.space(1<<40, 1<<30)
		p.release(target, time.Now())
		time.Sleep(20 * time.Minute)
		stop()
		if m.fetches(target) != 1 {
			t.Errorf("fetched %d times", m.fetches(target))
		}
	})
}

// Turns of many hosts lie evenly and do not repeat from closure to closure.
func TestTurnsAreSpread_C19(t *testing.T) {
	const hosts, slots = 10000, 20
	var count [slots]int
	same := 0
	for i := range hosts {
		name := fmt.Sprintf("web-%04d", i)
		at := spread(name, target, slots*time.Second)
		if at != spread(name, target, slots*time.Second) || at < 0 || at >= slots*time.Second {
			t.Fatalf("turn of %s: %s", name, at)
		}
		count[at/time.Second]++
		if spread(name, another, slots*time.Second)/time.Second == at/time.Second {
			same++
		}
	}
	for _, n := range count {
		if n < hosts/slots*8/10 || n > hosts/slots*12/10 {
			t.Errorf("uneven: %v", count)
		}
	}
	if same > hosts/slots*12/10 {
		t.Errorf("%d hosts have the same turn for another closure", same)
	}
}

// A closure that failed here lets go of the store.
func TestFailedClosureIsLetGo(t *testing.T) {
	bubble(t, func(t *testing.T) {
		p := newPlane(t)
		m := newMachine(t, p, with(sim.Closure{After: sim.After{FailedUnits: []string{"web.service"}}}))
		stop := m.start(m.sim)
		time.Sleep(10 * time.Minute)
		stop()
		gone, err := m.sim.CollectGarbage()
		if err != nil || len(gone) != 1 || gone[0] != target {
			t.Errorf("collected %v, %v; roots %v", gone, err, m.roots())
		}
	})
}
