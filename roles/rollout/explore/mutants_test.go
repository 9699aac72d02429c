//go:build mutants

package explore

import (
	"path/filepath"
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
		{"reports are about the open dispatch, whatever they name", rule("events name their dispatch")},
		{"a fetch failure is about the open dispatch, whatever it names", rule("fetches name their dispatch")},
		{"only the newest wave has to be well", rule("every open wave is well")},
		{"a target is told again past an edge", rule("an edge is asked again")},
		{"skipped hosts are not woken", rule("skipped hosts are woken")},
		{"a release forgets who waits for the unheard", rule("hosts queue for the unheard")},
		{"a host's own word does not wake it", rule("a host's own word wakes it")},
		{"a host on its way to another closure is proven", rule("a host on its way is not proven")},
		{"a slot is free at the confirm", rule("a soak holds its slot")},
		{"a wave that nobody tried opens the next one", rule("a wave that nobody tried opens none")},
		{"rows of rollouts are not stored", rule("rows of rollouts are stored")},
		{"quarantines are not stored", rule("quarantines are stored")},
		{"half a soak is enough", rule("a soak is whole")},
		{"a window does not end", rule("a window ends")},
	} {
		t.Run(m.name, func(t *testing.T) {
			defer m.apply()()
			all := 0
			for _, limit := range []int{500, 3_000, 15_000} {
				if limit == 15_000 {
					if story, at, what := storyThatFinds(t); story != "" {
						t.Logf("found by the story %q, %d moves deep: %s", story, at, what)
						return
					}
				}
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

// storyThatFinds replays the stories that are kept, which lie deeper than the states that are searched here.
func storyThatFinds(t *testing.T) (story string, at int, what string) {
	t.Helper()
	files, err := filepath.Glob("testdata/*.txt")
	if err != nil {
		t.Fatal(err)
	}
	for _, file := range files {
		// A story whose next step is not possible goes another way without the rule.
		s, moves := storyOf(t, file)
		if last, broken := played(s, moves); broken != "" {
			return nameOf(file), last + 1, broken
		}
	}
	return "", 0, ""
}
