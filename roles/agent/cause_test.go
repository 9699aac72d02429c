package agent

import (
	"errors"
	"fmt"
	"strings"
	"testing"

	"nixfleet/nixops"
	"nixfleet/roles/agent/journal"
	"nixfleet/roles/agent/undo"
	"nixfleet/roles/protocol"
)

// The texts that v1 control planes know stay as they are, byte for byte, and none that says that the release is not to
// blame carries a cause that blames it.
func TestReasonsOfUndos(t *testing.T) {
	for got, want := range map[journal.Reason]string{
		undo.Unreachable:    "control-plane-unreachable: no check-in was answered within the window",
		undo.Locked:         "lock-held: another switch is running",
		undo.ConfirmRefused: "confirm-refused: the control plane answered 410",
		undo.PowerLost:      "preflight: power was lost before the new generation was proven",
		undo.Interrupted:    "preflight: interrupted before the switch",
	} {
		if got.String() != want {
			t.Errorf("%q is sent, want %q", got, want)
		}
		if got.BlamesRelease() {
			t.Errorf("%q blames the release", got)
		}
	}
}

// What keeps a generation from becoming the boot default blames it only when its own script failed.
func TestBlameOfBootTrouble(t *testing.T) {
	for _, c := range []struct {
		cause protocol.Cause
		err   error
		want  string
		blame bool
	}{
		{protocol.CauseBoot, errors.New("no such file"), "preflight: boot: no such file", false},
		{protocol.CausePreflight, errors.New("set profile: read-only file system"),
			"preflight: set profile: read-only file system", false},
		{protocol.CauseBoot, fmt.Errorf("of x: %w", &undo.ExitError{Exit: nixops.Exit{Code: 1}}), "boot: of x: exit 1", true},
		{protocol.CauseBoot, fmt.Errorf("x: %w", nixops.ErrLockHeld), "lock-held: another switch is running", false},
		{protocol.CauseBoot, fmt.Errorf("x: %w", nixops.ErrNoSpace), "no-space: boot: x: ", false},
	} {
		reason := trouble(c.cause, c.err)
		if !strings.HasPrefix(reason.String(), c.want) || reason.BlamesRelease() != c.blame {
			t.Errorf("%q, blames the release %t", reason, reason.BlamesRelease())
		}
	}
}
