//go:build mutants

package explore

import (
	"strconv"
	"testing"

	"nixfleet/roles/rollout"
)

// TestMutants breaks one rule after the other and wants the model checker to find it, in some fleet, within a bounded
// number of states. How deep it was found is logged: so many moves does the shortest story have.
//
// Six are not found within these states, and so are not in the table: without the gates failure, fetch, presence and
// compliance other gates say no; the rule of well waves takes a host that fails when its soak ends; and a confirm
// during a recall comes late in a long story.
func TestMutants(t *testing.T) {
	gate := func(name string) func() func() { return func() func() { return rollout.Without(name) } }
	rule := func(name string) func() func() {
		return func() func() { rollout.Broken = name; return func() { rollout.Broken = "" } }
	}
	for _, m := range []struct {
		name  string
		apply func() (restore func())
	}{
		{"no budget gate", gate("budget")},
		{"no wave gate", gate("wave")},
		{"no channel edges", gate("channel-edge")},
		{"no host edges", gate("host-edge")},
		{"waves do not wait for each other", gate("wave-soak")},
		{"no soak", gate("soak")},
		{"no health", gate("health")},
		{"no convergence", gate("convergence")},
		{"a target for each check-in", gate("lease")},
		{"busy hosts are disturbed", gate("busy")},
		{"nobody minds the window", gate("freshness")},
		{"no operator gate", gate("operator")},
		{"no halt gate", gate("halt")},
		{"no quarantine", gate("quarantine")},
		{"no pause between attempts", gate("backoff")},
		{"holds of hosts do not count", gate("host-hold")},
		{"unheard hosts take no slot", rule("unheard hosts count")},
		{"a slot is not held for the lease", rule("a lease holds its slot")},
		{"a halt is forgotten at a restart", rule("a halt is kept")},
		{"confirms are answered and forgotten", rule("a confirm is recorded")},
		{"slots are not given back", rule("slots come back")},
		{"gates that say nothing", rollout.Mute},
		{"nobody is woken", rule("hosts are woken")},
		{"nobody is woken by the host that comes first", rule("an edge wakes")},
		{"nobody is woken to go back", rule("a recall wakes")},
		{"v1 agents are told again", rule("a v1 agent is told once")},
		{"a lease that is over is told again", rule("a lease ends")},
		{"rows of hosts are not stored", rule("rows of hosts are stored")},
		{"dispatches are not stored", rule("dispatches are stored")},
		{"a pause is forgotten at a restart", rule("a pause is kept")},
	} {
		t.Run(m.name, func(t *testing.T) {
			defer m.apply()()
			all := 0
			for _, limit := range []int{500, 3_000, 15_000} {
				for _, s := range fleets {
					x := newSearch(s, limit)
					f := x.run()
					all += len(x.by)
					if f != nil {
						t.Logf("found in %q, %d moves deep, after %d states: %s", s.name, f.depth, all, f.what)
						return
					}
				}
			}
			t.Error("not found in " + strconv.Itoa(all) + " states")
		})
	}
}
