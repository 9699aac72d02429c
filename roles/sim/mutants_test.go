//go:build mutants

package sim

import (
	"testing"

	"nixfleet/roles/agent"
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
		return func() func() { agent.Broken = rule; return func() { agent.Broken = "" } }
	}
	for _, m := range []struct {
		name  string
		apply func() (restore func())
		finds []string // any of these invariants, first
	}{
		{"no budget gate", gate("budget"), []string{invBudget}},
		{"unheard hosts take no slot", plane("unheard hosts count"), []string{invBudget}},
		{"slots are forgotten at a restart", plane("slots are kept"), []string{invBudget}},
		{"no wave gate", gate("wave"), []string{invWaves}},
		{"waves do not wait for each other", gate("wave-soak"), []string{invWaves, invSoak}},
		{"no soak", gate("soak"), []string{invSoak}},
		{"no halt gate", gate("halt"), []string{invHalt}},
		{"a halt is forgotten at a restart", plane("a halt is kept"), []string{invHalt}},
		{"gates that say nothing", rollout.Mute, []string{invReason}},
		{"no mark", host("the mark"), []string{invSigned}},
		{"entries of other hosts", host("whose entry it is"), []string{invSigned}},
		{"no deadline", host("the deadline"), []string{invExact}},
		{"outages are blamed", host("outages are not blamed"), []string{invOutage}},
	} {
		t.Run(m.name, func(t *testing.T) {
			defer m.apply()()
			for seed := number(t, "NIXFLEET_SIM_FIRST", 1); seed <= 60; seed++ {
				got := run(t, draw(seed), nil)
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
