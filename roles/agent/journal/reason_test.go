package journal

import (
	"testing"

	"nixfleet/roles/protocol"
)

// Whatever text a reason is read from, the same text is written again, and only a text of
// the form `cause: words` has a cause.
func TestReasonsKeepTheirText(t *testing.T) {
	for text, cause := range map[string]protocol.Cause{
		"": "", "words": "", "lock-held: another switch is running": protocol.CauseLockHeld,
		"third-closure: x":              protocol.CauseThirdClosure,
		"recalled by the control plane": protocol.CauseRecalled, "switched by hand": "", "realise-failed": "",
		"unknown: lock-held: x": "", "switch: ": "",
		"boot: of x: exit 1": protocol.CauseBoot,
	} {
		var r Reason
		if err := r.UnmarshalText([]byte(text)); err != nil || r.String() != text || r.Cause != cause {
			t.Errorf("%q is read as %+v, written as %q, %v", text, r, r, err)
		}
	}
	for _, cause := range protocol.Causes() {
		var r Reason
		if err := r.UnmarshalText([]byte(Because(cause, "words: more").String())); err != nil ||
			r != Because(cause, "words: more") {
			t.Errorf("%s is read as %+v, %v", cause, r, err)
		}
	}
}
