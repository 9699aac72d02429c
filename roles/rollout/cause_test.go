package rollout

import (
	"fmt"
	"testing"

	"nixfleet/roles/protocol"
)

// TestOnlyTheCauseDecides is made of the vocabulary: every cause is fed to the procedure in the events that carry one,
// with the text of today and with others. Nothing but the words may change, and what happens is what the cause's blame
// says.
func TestOnlyTheCauseDecides(t *testing.T) {
	texts := []string{"", "power was lost", "reworded: preflight: lock-held", "switch: by another name",
		"\tx\x00 release health-gate"}
	events := map[string]func(text string) Report{
		protocol.EventRollbackTriggered: func(text string) Report { return Report{Reason: text} },
		protocol.EventActivationFailed:  func(text string) Report { return Report{Phase: text} },
	}
	for _, cause := range protocol.Causes() {
		for event, report := range events {
			for _, text := range texts {
				b := start(t, pair())
				b.offered("a")
				b.report("a", Report{Event: protocol.EventActivationStarted})
				r := report(cause.With(text))
				r.Event = event
				b.report("a", r)
				state, quarantines := b.rollout("s").State, len(b.w.Quarantines())
				got := fmt.Sprintf("%s with %d quarantines, %s", state, quarantines, b.w.hosts.byName["a"].state())
				want := "Executing with 0 quarantines, Queued"
				if cause.Blame() == protocol.BlameRelease {
					want = "Halted with 1 quarantines, Failed"
					if event == protocol.EventRollbackTriggered {
						want = "Halted with 1 quarantines, Reverted"
					}
				}
				if got != want {
					t.Errorf("%s, %q: %s; want %s", event, cause.With(text), got, want)
				}
			}
		}
	}
}
