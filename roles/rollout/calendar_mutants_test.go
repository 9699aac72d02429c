//go:build mutants

package rollout

import (
	"testing"
	"time"

	"nixfleet/roles/protocol"
)

// TestCalendarMutants breaks what holds, cuts, wakes and stores by the calendar, one after the other, and wants the
// story below to notice each.
func TestCalendarMutants(t *testing.T) {
	rule := func(name string) func() func() {
		return func() func() { Broken = name; return func() { Broken = "" } }
	}
	gate := func(name string) func() func() { return func() func() { return Without(name) } }
	noticed := func() (what string) {
		defer func() {
			if v, is := recover().(violation); is {
				what = string(v)
			}
		}()
		calendarStory(caught{t})
		return ""
	}
	if what := noticed(); what != "" {
		t.Fatalf("with every rule: %s", what)
	}
	for name, apply := range map[string]func() func(){
		"no maintenance gate": gate("maintenance"), "no freeze gate": gate("freeze"),
		"a lease outlives its window": rule(ruleWindowCuts), "nobody is woken by a window": rule(ruleWindowsWake),
		"a freeze is forgotten at a restart": rule(ruleFreezesStored),
	} {
		t.Run(name, func(t *testing.T) {
			defer apply()()
			what := noticed()
			if what == "" {
				t.Fatal("not noticed")
			}
			t.Log(what)
		})
	}
}

// calendarStory is a night with a window, and a freeze over a restart.
func calendarStory(t testing.TB) {
	b := start(t, windowed(nightly, one(time.Minute, "a", "new-a", "b", "new-b")))
	for _, h := range []string{"a", "b"} {
		b.box(h).wait = 72 * time.Hour
		b.refused(h, CodeMaintenance)
	}
	if n := b.until(10*time.Hour+time.Second, "a"); n != 1 {
		t.Fatalf("woken %d times by the window", n)
	}
	b.until(12*time.Hour-time.Minute, "b")
	if target := b.offered("b"); target.StartBy > time.Minute {
		t.Fatalf("a minute before the window closes a host has %s to begin", target.StartBy)
	}
	b.freeze(48 * time.Hour)
	b.refused("a", CodeFrozen)
	b.w = New(b.disk.state(), DefaultLimits(), b.now)
	b.took(b.w.Accept(b.rel, b.now))
	b.box("b").phase = &protocol.Phase{Name: protocol.PhaseIdle}
	b.refused("a", CodeFrozen)
}
