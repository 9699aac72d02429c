//go:build mutants

package sim

import (
	"runtime"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"

	"nixfleet/nixops/fleet"
	"nixfleet/roles/agent/journal"
	"nixfleet/roles/rollout"
)

// TestMutants breaks one rule after the other and wants the simulator to find
// it, by the invariant that it breaks, within a bounded number of seeds.
func TestMutants(t *testing.T) {
	gate := func(name string) func() func() { return func() func() { return rollout.Without(name) } }
	plane := func(rule string) func() func() {
		return func() func() { rollout.Broken = rule; return func() { rollout.Broken = "" } }
	}
	host := func(rule string) func() func() {
		return func() func() { journal.Broken = rule; return func() { journal.Broken = "" } }
	}
	both := func(a, b func() func()) func() func() {
		return func() func() {
			first, second := a(), b()
			return func() { second(); first() }
		}
	}
	for _, m := range []struct {
		name  string
		apply func() (restore func())
		shape func(*scenario) // nil: as drawn
		finds []string        // any of these invariants, first
	}{
		{"no budget gate", gate("budget"), nil, []string{invBudget}},
		{"unheard hosts take no slot", plane("unheard hosts count"), restarts, []string{invBudget}},
		{"a slot is not held for the lease", plane("a lease holds its slot"), absent, []string{invBudget}},
		{"leases without an end", host("the lease ends"), slow, []string{invBudget}},
		{"no wave gate", gate("wave"), nil, []string{invWaves}},
		{"no channel edges", gate("channel-edge"), nil, []string{invWaves}},
		{"no host edges", gate("host-edge"), nil, []string{invWaves}},
		{"waves do not wait for each other", gate("wave-soak"), nil, []string{invWaves, invSoak}},
		{"no soak", gate("soak"), nil, []string{invSoak}},
		{"failing hosts do not hold their wave", plane("the wave is well"), sick, []string{invSoak}},
		{"no halt gate", gate("halt"), nil, []string{invHalt}},
		{"no operator gate", gate("operator"), nil, []string{invHalt}},
		{"a halt is forgotten at a restart", plane("a halt is kept"), haltedOften, []string{invHalt}},
		{"no quarantine", both(gate("quarantine"), host("what failed is told")), movedOften, []string{invHalt}},
		{"nobody minds the window", both(gate("freshness"), host("the window")), unsigned, []string{invSigned}},
		{"confirms are answered and forgotten", plane("a confirm is recorded"), nil, []string{invAcknowledged}},
		{"slots are not given back", plane("slots come back"), nil, []string{invArrives}},
		{"gates that say nothing", rollout.Mute, nil, []string{invReason}},
		{"no mark", host("the mark"), lied, []string{invSigned}},
		{"entries of other hosts", host("whose entry it is"), lied, []string{invSigned}},
		{"no deadline", host("the deadline"), killed, []string{invExact}},
		{"outages are blamed", host("outages are not blamed"), severed, []string{invOutage}},
	} {
		t.Run(m.name, func(t *testing.T) {
			defer m.apply()()
			for seed := number(t, "NIXFLEET_SIM_FIRST", 1); seed <= 60; seed++ {
				s := draw(seed)
				if m.shape != nil {
					m.shape(s)
				}
				got := run(t, s, nil)
				if len(got) == 0 {
					continue
				}
				for _, name := range m.finds {
					if got[0].invariant == name {
						t.Logf("found by seed %d: %s", seed, got[0])
						return
					}
				}
				t.Logf("seed %d: %s", seed, got[0])
			}
			t.Error("not found by 60 seeds")
		})
	}
}

// absent has hosts of one budget vanish from the control plane's sight while
// they are at it.
func absent(s *scenario) {
	s.hosts, s.fetch = 6, 500*time.Second
	s.channels = []channelPlan{{waves: 1, soak: []time.Duration{0}, comply: fleet.ModeDisabled}}
	s.budgets, s.chained, s.edged, s.probed, s.events = []budgetPlan{{every: 1, max: 1}}, false, false, false, nil
	r := stream(s.seed, "absent")
	for at := time.Duration(0); at < 4*time.Hour; at += time.Hour {
		s.events = append(s.events, event{at: at, kind: release})
		for n := range 8 {
			s.events = append(s.events, event{
				at: at + time.Duration(30+240*n+r.IntN(240))*time.Second, kind: []kind{cut, cutDown}[r.IntN(2)],
				host: r.IntN(s.hosts),
				last: time.Duration(10+r.IntN(10)) * time.Minute,
			})
		}
	}
	s.sort()
}

// slow is absent with downloads that outlive every lease, and switches that take
// so long that two of them meet.
func slow(s *scenario) {
	absent(s)
	s.fetch, s.turn = 20*time.Minute, 4*time.Minute
	for i := range s.events {
		if s.events[i].kind != release {
			s.events[i].last += 20 * time.Minute
		}
	}
}

// sick has releases fail after their confirm, about when their soak ends.
func sick(s *scenario) {
	s.channels = []channelPlan{{waves: 3, soak: []time.Duration{150 * time.Second, 150 * time.Second, 150 * time.Second},
		comply: fleet.ModeDisabled}}
	s.budgets, s.chained, s.edged, s.probed, s.ill, s.events = nil, false, false, true, true, nil
	for at := time.Duration(0); at < 5*time.Hour; at += 30 * time.Minute {
		s.events = append(s.events, event{at: at, kind: badRelease, n: 4})
	}
}

// restarts has the control plane lose its memory again and again while hosts
// of one budget move.
func restarts(s *scenario) {
	s.hosts = 8
	s.channels = []channelPlan{{waves: 1, soak: []time.Duration{0}, comply: fleet.ModeDisabled}}
	s.budgets, s.chained, s.edged, s.probed, s.events = []budgetPlan{{every: 1, max: 1}}, false, false, false, nil
	r := stream(s.seed, "restarts")
	for at := time.Duration(0); at < 3*time.Hour; at += 30 * time.Minute {
		s.events = append(s.events, event{at: at, kind: release})
		for n := range 8 {
			k := []kind{wipe, kill}[n%2]
			s.events = append(s.events, event{at: at + time.Duration(60+120*n+r.IntN(100))*time.Second, kind: k,
				last: time.Duration(1+r.IntN(5)) * time.Second})
		}
		s.events = append(s.events, event{at: at + time.Duration(r.IntN(600))*time.Second, kind: cutDown,
			host: r.IntN(s.hosts), last: 10 * time.Minute})
	}
	s.sort()
}

// haltedOften has a host fail in each release while others of one budget wait,
// and the control plane restart all the time.
func haltedOften(s *scenario) {
	s.hosts = 8
	s.channels = []channelPlan{{waves: 1, soak: []time.Duration{0}, comply: fleet.ModeDisabled}}
	s.budgets, s.chained, s.edged, s.probed, s.events = []budgetPlan{{every: 1, max: 1}}, false, false, false, nil
	r := stream(s.seed, "halted often")
	for at := time.Duration(0); at < 3*time.Hour; at += 30 * time.Minute {
		s.events = append(s.events, event{at: at, kind: badRelease, n: 8})
		for n := range 6 {
			s.events = append(s.events, event{at: at + time.Duration(240+240*n+r.IntN(200))*time.Second, kind: kill,
				last: time.Duration(1+r.IntN(20)) * time.Second})
		}
	}
	s.sort()
}

// movedOften has channels begin again, by a host that comes or goes, with what
// failed on them before.
func movedOften(s *scenario) {
	s.hosts = 8
	plan := channelPlan{waves: 1, soak: []time.Duration{0}, comply: fleet.ModeDisabled}
	s.channels = []channelPlan{plan, plan}
	s.budgets, s.chained, s.edged, s.probed, s.events = nil, false, false, false, nil
	r := stream(s.seed, "moved often")
	for at := time.Duration(0); at < 3*time.Hour; at += time.Hour {
		s.events = append(s.events, event{at: at, kind: badRelease, n: 8})
		for n := range 3 {
			s.events = append(s.events, event{at: at + time.Duration(15*(n+1))*time.Minute, kind: move, host: r.IntN(s.hosts)})
		}
	}
	s.sort()
}

// unsigned has CI stand still while hosts are away, until the window of what they
// missed is over.
func unsigned(s *scenario) {
	s.budgets, s.chained, s.edged, s.probed, s.events = nil, false, false, false, nil
	r := stream(s.seed, "unsigned")
	for n := range s.hosts {
		s.events = append(s.events, event{at: 5 * time.Minute, kind: vanish, host: n,
			last: 5*time.Hour + time.Duration(r.IntN(3600))*time.Second})
	}
	s.events = append(s.events, event{at: 10 * time.Minute, kind: release}, event{at: 8 * time.Hour, kind: resign})
	s.sort()
}

// severed has hosts lose their network while they switch.
func severed(s *scenario) {
	s.probed, s.events = false, nil
	r := stream(s.seed, "severed")
	for at := time.Duration(0); at < 4*time.Hour; at += 30 * time.Minute {
		s.events = append(s.events, event{at: at, kind: release})
		for n := range s.hosts {
			s.events = append(s.events, event{at: at + time.Duration(30+r.IntN(180))*time.Second, kind: cut, host: n,
				last: 15 * time.Minute})
		}
	}
	s.sort()
}

// killed has agents die while they switch, for longer than they have for it.
func killed(s *scenario) {
	s.probed, s.events = false, nil
	r := stream(s.seed, "killed")
	for at := time.Duration(0); at < 4*time.Hour; at += 30 * time.Minute {
		s.events = append(s.events, event{at: at, kind: release})
		for n := range s.hosts {
			s.events = append(s.events, event{at: at, kind: crash, host: n, n: 3 + r.IntN(6), last: 20 * time.Minute})
		}
	}
	s.sort()
}

// lied has a control plane that was taken over tell every host something, release
// after release.
func lied(s *scenario) {
	s.probed, s.events = false, nil
	for at := time.Duration(0); at < 6*time.Hour; at += 30 * time.Minute {
		s.events = append(s.events, event{at: at, kind: release})
		for n := range s.hosts {
			s.events = append(s.events, event{at: at + 8*time.Minute, kind: lie, host: n, last: 20 * time.Minute})
		}
	}
	s.sort()
}

// TestShapesAloneBreakNothing: what the shapes of TestMutants find is what was
// broken on purpose.
func TestShapesAloneBreakNothing(t *testing.T) {
	var workers errgroup.Group
	workers.SetLimit(runtime.GOMAXPROCS(0))
	for name, shape := range map[string]func(*scenario){"restarts": restarts, "absent": absent, "slow": slow, "sick": sick,
		"lied": lied, "halted often": haltedOften, "moved often": movedOften, "unsigned": unsigned, "severed": severed,
		"killed": killed} {
		for seed := range uint64(8) {
			workers.Go(func() error {
				s := draw(seed + 1)
				shape(s)
				for _, v := range run(t, s, nil) {
					t.Errorf("%s, seed %d: %s", name, seed+1, v)
				}
				return nil
			})
		}
	}
	workers.Wait()
}
