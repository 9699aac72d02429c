package protocol

import (
	"strings"

	"nixfleet/pki"
)

// AsDeclared says of a host that there is nothing to say.
const AsDeclared = "as declared"

// NeverSeen reports whether nothing is known of a host but its declaration.
func (e *HostEntry) NeverSeen() bool { return e.LastCheckinAt == nil && e.CurrentClosureHash == nil }

// Revoked reports whether a host is shut out.
func (e *HostEntry) Revoked() bool { return e.Reason != nil && e.Reason.Code == "revoked" }

// Stands is how a host stands. A control plane of v1 does not say it, and it is then made of what it says.
func (e *HostEntry) Stands() Standing {
	state := HostState(e.Word())
	switch {
	case e.Standing != "":
		return e.Standing
	case state == HostFailed, state == HostReverted, e.QuarantinedClosure != nil, e.OutstandingHealthFailures > 0:
		return StandsFailed
	case e.NeverSeen(), e.Online != nil && !*e.Online:
		return StandsSilent
	case e.Converged:
		return StandsConverged
	case state == HostDispatched, state == HostActivating, state == HostConfirmWindow:
		return StandsMoving
	}
	return StandsWaiting
}

// Says is a host in a few words, the same in every view.
func (e *HostEntry) Says() string {
	state := HostState(e.Word())
	switch {
	case e.Revoked():
		return "revoked"
	case e.NeverSeen():
		return "never heard of"
	case e.Clone != nil:
		return "two machines answer"
	case e.Online != nil && !*e.Online:
		return "not heard of"
	case state == HostReverted:
		return "failed, and went back"
	case state == HostFailed:
		return "failed"
	case e.Converged:
		return e.arrived(state)
	case e.QuarantinedClosure != nil:
		return "waits: its new closure failed"
	case e.PendingReboot:
		return "waits for a reboot"
	case state != "" && state != HostQueued && state != HostSkipped:
		return strings.ToLower(string(state))
	case e.Reason != nil && waitsFor[e.Reason.Code] != "":
		return waitsFor[e.Reason.Code]
	case e.Reason != nil && e.Reason.Code != "":
		return "waits: " + e.Reason.Code
	}
	return "waits"
}

// arrived is a host that runs what is declared.
func (e *HostEntry) arrived(state HostState) string {
	switch {
	case e.OutstandingHealthFailures > 0:
		return "a probe fails"
	case e.PendingReboot:
		return "as declared, reboot pending"
	case state == HostHealthy:
		return "soaking"
	case state == HostDispatched, state == HostActivating, state == HostConfirmWindow:
		return "confirming"
	}
	return AsDeclared
}

// waitsFor are the commonest reasons in two or three words.
var waitsFor = map[string]string{
	"wave": "waits for its wave", "halted": "waits: rollout halted", "offered": "gets it next", "resent": "gets it next",
	"paused": "waits: rollout paused", "cancelled": "waits: rollout cancelled", "budget": "waits for a slot",
	"release-stale": "waits: release too old", "host-held": "waits: root holds it", "offline": "not heard of",
	"channel-edge": "waits for another channel", "host-edge": "waits for another host",
}

// HostClone is since when two machines answer under one name, and by which boots they are told apart. Held is true
// while neither is given a target, until a person acts.
type HostClone struct {
	Since   pki.Timestamp `json:"since" shape:"R"`
	BootIDs []string      `json:"bootIds" shape:"R"`
	Held    bool          `json:"held" shape:"R"`
}
