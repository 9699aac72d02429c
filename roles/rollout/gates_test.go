package rollout

import (
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"nixfleet/roles/protocol"
)

// Each gate blocks with its own code, and passes when its cause is gone.
func TestGates(t *testing.T) {
	two := func() spec { return single("s", one(time.Minute, "a", "new-a"), one(time.Minute, "b", "new-b")) }
	for _, c := range []struct {
		name  string
		spec  spec
		cause func(b *bench)
		host  string
		code  string
		gate  string
		end   func(b *bench) // makes the host get its target; nil: nothing does
	}{
		{"undeclared", two(), func(*bench) {}, "zz", CodeNotDeclared, "release", nil},
		{"no closure", single("s", one(0, "a", "new-a", "b", "")), func(*bench) {}, "b", CodeNoClosure, "release", nil},
		{"stale", two(), func(b *bench) { b.pass(1441*time.Minute + time.Millisecond) }, "a", CodeStale, "freshness",
			func(b *bench) {
				s := two()
				s.signed, s.opened = b.now, epoch
				b.accept(s)
			}},
		{"paused", two(), func(b *bench) { b.hold(protocol.ActionPause) }, "a", CodePaused, "operator",
			func(b *bench) { b.hold(protocol.ActionResume) }},
		{"cancelled", two(), func(b *bench) { b.hold(protocol.ActionCancel) }, "a", CodeCancelled, "operator",
			func(b *bench) {
				s := single("s", one(time.Minute, "a", "newer-a"))
				s.signed = b.now
				b.accept(s)
			}},
		{"wave", two(), func(*bench) {}, "b", CodeWave, "wave",
			func(b *bench) { b.update("a"); b.pass(time.Minute); b.checkin("a") }},
		{"host edge", spec{
			channels: []channelSpec{{name: "s", waves: []waveSpec{one(time.Second, "a", "new-a", "b", "new-b")}}},
			edges:    [][2]string{{"a", "b"}},
		}, func(*bench) {}, "b", CodeHostEdge, "host-edge",
			func(b *bench) { b.update("a"); b.pass(time.Second); b.checkin("a") }},
		{"compliance", spec{channels: []channelSpec{{name: "s", mode: "enforce", waves: two().channels[0].waves}}},
			func(b *bench) {
				b.update("a")
				b.pass(time.Minute)
				b.checkin("a")
				b.state("a", Soaked)
				// Told after the wave was promoted, by a host that has converged in an earlier round.
				b.w.hosts.edit(b.w.hosts.byName["a"], b.now, func(r *record) { r.Failures = []string{"compliance:c"} })
			}, "b", CodeCompliance, "compliance", func(b *bench) { b.retry("a") }},
		{"fetch", two(), func(b *bench) {
			b.offered("a")
			b.box("a").fetch, b.box("a").fetchR = "verify-failed", b.id("a")
			b.checkin("a")
		}, "a", CodeFetchFailed, "fetch", func(b *bench) { b.pass(time.Minute) }},
		{"fetch without a name", two(), func(b *bench) {
			b.offered("a")
			b.box("a").fetch = "fetch-failed"
			b.checkin("a")
		}, "a", CodeFetchFailed, "fetch", func(b *bench) { b.pass(time.Minute) }},
		{"held", two(), func(b *bench) { b.box("a").held = "switched by hand" }, "a", CodeHeld, "host-hold",
			func(b *bench) { b.box("a").held = "" }},
		{"busy", two(), func(b *bench) { b.box("a").phase = &protocol.Phase{Name: "undoing"} }, "a", CodeHostBusy, "busy",
			func(b *bench) { b.box("a").phase = nil }},
		{"budget", spec{
			channels: []channelSpec{{name: "s", waves: []waveSpec{one(0, "a", "new-a", "b", "new-b", "c", "new-c")}}},
			budgets:  []budgetSpec{{tag: "x", hosts: []string{"a", "b"}, max: 1}},
		}, func(b *bench) { b.offered("a"); b.offered("c") }, "b", CodeBudget, "budget",
			func(b *bench) { b.box("a").running = "new-a"; b.confirm("a"); b.checkin("a") }},
		{"quarantine", single("s", one(time.Minute, "a", "same", "b", "same")), func(b *bench) {
			b.offered("a")
			b.report("a", Report{Event: "activation-failed", Phase: "switch"})
			b.hold(protocol.ActionResume)
		}, "b", CodeQuarantined, "quarantine", func(b *bench) { b.retry("b") }},
	} {
		t.Run(c.name, func(t *testing.T) {
			b := start(t, c.spec)
			c.cause(b)
			b.refused(c.host, c.code)
			r := b.checkin(c.host).Reason
			if r.Gate != c.gate {
				t.Errorf("gate %s, want %s", r.Gate, c.gate)
			}
			if strings.Contains(r.Text, "%!") {
				t.Errorf("text %q", r.Text)
			}
			if v, ok := b.w.Host(c.host, b.now); ok && !reflect.DeepEqual(v.Reason, r) {
				t.Errorf("explained %+v, told %+v", v.Reason, r)
			}
			if c.end != nil {
				c.end(b)
				b.offered(c.host)
			}
		})
	}
}

func (b *bench) hold(action string) {
	b.t.Helper()
	c, err := b.w.Hold(b.rollout("s").RolloutID, action, "op", "because", b.now)
	if err != nil {
		b.t.Fatal(err)
	}
	b.took(c)
}

func (b *bench) retry(h string) {
	b.t.Helper()
	c, err := b.w.Retry(h, "op", "because", b.now)
	if err != nil {
		b.t.Fatal(err)
	}
	b.took(c)
}

func TestBudgetLimit(t *testing.T) {
	u := func(v int) *uint32 {
		if v < 0 {
			return nil
		}
		return ptr(uint32(v))
	}
	for _, c := range []struct{ max, pct, members, want int }{
		{-1, -1, 10, -1}, {3, -1, 10, 3}, {0, -1, 10, 0},
		{-1, 25, 10, 2}, {-1, 25, 3, 1}, {-1, 0, 10, 1}, {-1, 100, 7, 7}, {-1, 4294967295, 100000, 4294967295 * 1000},
		{5, 10, 20, 2}, {1, 50, 20, 1},
	} {
		if got := budgetLimit(u(c.max), u(c.pct), c.members); got != c.want {
			t.Errorf("max %d pct %d of %d: %d, want %d", c.max, c.pct, c.members, got, c.want)
		}
	}
}

// Two channels whose manifests name the same selector share the budget.
func TestBudgetIsSharedAcrossRollouts(t *testing.T) {
	b := start(t, spec{
		channels: []channelSpec{{name: "one", waves: []waveSpec{one(0, "a", "new-a")}},
			{name: "two", waves: []waveSpec{one(0, "b", "new-b")}}},
		budgets: []budgetSpec{{tag: "x", hosts: []string{"a", "b"}, max: 1}},
	})
	b.offered("a")
	b.refused("b", CodeBudget)
}

// A lease holds its slot until start-by, confirm window and margin have passed, whatever else is heard.
func TestSlotIsHeldUntilTheLeaseIsSurelyOver(t *testing.T) {
	b := start(t, spec{
		channels: []channelSpec{{name: "s", waves: []waveSpec{one(0, "a", "new-a", "b", "new-b")}}},
		budgets:  []budgetSpec{{tag: "x", hosts: []string{"a", "b"}, max: 1}},
	})
	b.pass(time.Hour) // the database is old enough to be believed
	b.offered("a")
	leased := b.now
	// A newer release does not free it, nor does a restart.
	b.accept(b.second())
	b.refused("b", CodeBudget)
	b.restart()
	for b.now.Before(leased.Add(690 * time.Second)) {
		b.refused("b", CodeBudget)
		b.pass(30 * time.Second)
	}
	b.now = leased.Add(720*time.Second - time.Millisecond)
	b.pass(0)
	b.refused("b", CodeBudget)
	b.pass(time.Millisecond)
	b.offered("b")
}

func (b *bench) second() spec {
	return spec{
		signed:   b.now,
		channels: []channelSpec{{name: "s", waves: []waveSpec{one(0, "a", "newer-a", "b", "newer-b")}}},
		budgets:  []budgetSpec{{tag: "x", hosts: []string{"a", "b"}, max: 1}},
	}
}

// After an empty start, who has not reported may be in flight for a lease and a confirm window.
func TestUnheardHostsCountAsInFlightAfterEmptyStart(t *testing.T) {
	s := spec{
		channels: []channelSpec{{name: "s", waves: []waveSpec{one(0, "a", "new-a", "b", "new-b", "c", "new-c")}}},
		budgets:  []budgetSpec{{tag: "x", hosts: []string{"a", "b", "c"}, max: 1}},
	}
	b := start(t, s)
	b.wipe()
	b.refused("a", CodeBudgetUnheard)
	b.refused("b", CodeBudgetUnheard)
	// The last one works on a lease nobody remembers: it is adopted.
	b.box("c").phase = &protocol.Phase{Name: "activating", ClosureHash: "new-c"}
	b.refused("c", CodeHostBusy)
	b.refused("a", CodeBudget)
	// A restart in between does not forget the doubt.
	b.restart()
	b.refused("a", CodeBudgetUnheard)
	b.pass(659 * time.Second)
	b.refused("a", CodeBudgetUnheard)
	b.pass(time.Second)
	b.offered("a")
}

// A host that waits because others may be in flight is woken by the first word of
// the last of them, not at the end of its held request.
func TestFirstWordOfTheUnheardWakesWhoWaitsForThem(t *testing.T) {
	b := start(t, spec{
		channels: []channelSpec{{name: "s", waves: []waveSpec{one(0, "a", "new-a"), one(0, "b", "new-b")}}},
		budgets:  []budgetSpec{{tag: "x", hosts: []string{"a", "b"}, max: 1}},
	})
	b.wipe()
	b.refused("a", CodeBudgetUnheard)
	woken := b.wakeups["a"]
	b.checkin("b")
	if b.wakeups["a"] == woken {
		t.Error("a is not woken by the first check-in of b")
	}
	b.offered("a")
}

func TestReasonsAreWholeSentences(t *testing.T) {
	b := start(t, single("s", one(time.Minute, "a", "new-a"), one(time.Minute, "b", "new-b")))
	b.update("a")
	d := b.checkin("b")
	want := "it gets its new closure in wave 2, after wave 1: of the 1 host in wave 1, 1 healthy and watched for the " +
		"soak time"
	if d.Reason.Text != want {
		t.Errorf("text %q, want %q", d.Reason.Text, want)
	}
	if d := b.checkin(
		"a"); d.Reason.Text != "it runs its declared closure: healthy and watched for its soak time, until 2026-03-01 "+
		"12:01:05 UTC" {
		t.Errorf("text %q", d.Reason.Text)
	}
}

func TestChangesAreSorted(t *testing.T) {
	b := start(t, single("s", one(0, "d", "x", "b", "x", "a", "x", "c", "x")))
	for _, h := range []string{"d", "a", "c", "b"} {
		b.offered(h)
	}
	b.pass(time.Hour)
	names := []string{}
	for _, h := range b.last.Hosts {
		names = append(names, h.Host)
	}
	if !slices.IsSorted(names) || len(names) == 0 {
		t.Errorf("rows in the order %v", names)
	}
}
