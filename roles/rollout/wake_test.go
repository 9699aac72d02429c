package rollout

import (
	"slices"
	"testing"
	"time"

	"nixfleet/nixops/fleet"
)

// woken checks whom the last call woke.
func (b *bench) woken(want ...string) {
	b.t.Helper()
	if !slices.Equal(b.last.Wake, want) {
		b.t.Fatalf("at %s %v were woken, want %v", b.now.Sub(epoch), b.last.Wake, want)
	}
}

// A slot that comes back goes to a host that can take it, not to one that waits for another budget as well.
func TestSlotWakesAHostThatCanTakeIt(t *testing.T) {
	s := single("s", one(0, "a", "new-a", "b", "new-b", "c", "new-c", "x", "new-x"))
	s.budgets = []budgetSpec{{tag: "left", hosts: []string{"a", "b", "c"}, max: 1},
		{tag: "right", hosts: []string{"b", "x"}, max: 1}}
	s.until = fleet.SlotConfirmed
	b := start(t, s)
	b.box("a").running = b.offered("a").Closure
	b.box("x").running = b.offered("x").Closure
	b.refused("b", CodeBudget)
	b.refused("c", CodeBudget)
	b.confirm("a")
	b.woken("c")
	b.offered("c")
	b.confirm("x")
	b.woken() // b cannot start: c has the slot of the left one
	b.box("c").running = "new-c"
	b.confirm("c")
	b.woken("b")
	b.offered("b")
}

// A host that holds its slot since the release before takes none from the others.
func TestWokenHostsKeepTheirOwnSlots(t *testing.T) {
	s := single("s", one(0, "a", "new-a", "b", "new-b", "c", "new-c"))
	s.budgets = []budgetSpec{{tag: "x", hosts: []string{"a", "b", "c"}, max: 2}}
	b := start(t, s)
	b.offered("a")
	b.offered("b")
	b.refused("c", CodeBudget)
	b.pass(time.Second)
	s.channels = single("s", one(0, "a", "newer-a", "b", "newer-b", "c", "newer-c")).channels
	s.signed = b.now
	b.accept(s)
	b.woken("a", "b")
	b.offered("a")
	b.offered("b")
	b.refused("c", CodeBudget)
}

// Slots that come back together wake as many hosts as there are slots.
func TestSlotsWakeNoMoreThanTheyHold(t *testing.T) {
	s := single("s", one(0, "a", "new-a", "b", "new-b", "c", "new-c", "d", "new-d", "e", "new-e"))
	s.budgets = []budgetSpec{{tag: "x", hosts: []string{"a", "b", "c", "d", "e"}, max: 2}}
	b := start(t, s)
	b.offered("a")
	b.offered("b")
	for _, h := range []string{"c", "d", "e"} {
		b.box(h).wait = time.Hour
		b.refused(h, CodeBudget)
	}
	b.pass(b.w.limits.Lease + b.w.limits.ConfirmWindow + time.Second) // the leases are over
	b.pass(b.w.limits.Margin)                                         // and so are their slots
	b.woken("c", "d")
}
