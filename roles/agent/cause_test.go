package agent

import (
	"errors"
	"fmt"
	"testing"

	"nixfleet/roles/protocol"
)

// The texts that v1 control planes know stay as they are, byte for byte, and none that says that the release is not to
// blame carries a cause that blames it.
func TestReasonsOfUndos(t *testing.T) {
	for got, want := range map[string]string{
		reasonUnreachable: "control-plane-unreachable: no check-in was answered within the window",
		reasonLocked:      "lock-held: another switch is running",
		reasonRefused:     "confirm-refused: the control plane answered 410",
		reasonPower:       "preflight: power was lost before the new generation was proven",
		reasonInterrupted: "preflight: interrupted before the switch",
	} {
		if got != want {
			t.Errorf("%q is sent, want %q", got, want)
		}
		if cause, _ := protocol.SplitCause(got); cause.Blame() == protocol.BlameRelease {
			t.Errorf("%q blames the release", got)
		}
	}
}

// What keeps a generation from becoming the boot default blames it only when its own script failed.
func TestBlameOfBootTrouble(t *testing.T) {
	for _, err := range []error{
		errors.New("boot: no such file"),
		errors.New("preflight: set profile: read-only file system"),
		errors.New(protocol.CauseThirdClosure.With("x-nixos-system")),
		fmt.Errorf("%s: %w", protocol.CauseBoot, &exitError{}),
	} {
		reason, blame := bootTrouble(err)
		cause, _ := protocol.SplitCause(reason)
		if (cause.Blame() == protocol.BlameRelease) != blame {
			t.Errorf("%q: blame %t, and its cause %q says another thing", reason, blame, cause)
		}
	}
}
