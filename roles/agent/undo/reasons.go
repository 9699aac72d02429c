package undo

import (
	"nixfleet/roles/agent/journal"
	"nixfleet/roles/protocol"
)

// Reasons of undos for which a release is not to blame.
var (
	Unreachable    = journal.Because(protocol.CauseUnreachable, "no check-in was answered within the window")
	Locked         = journal.Because(protocol.CauseLockHeld, "another switch is running")
	ConfirmRefused = journal.Because(protocol.CauseConfirmRefused, "the control plane answered 410")
	PowerLost      = journal.Because(protocol.CausePreflight, "power was lost before the new generation was proven")
	Interrupted    = journal.Because(protocol.CausePreflight, "interrupted before the switch")
)

// blames reports whether an undo for this reason is the release's fault.
func blames(r journal.Reason) bool {
	return r.BlamesRelease() || r.Cause == protocol.CauseUnreachable && journal.Breaks("outages are not blamed")
}
