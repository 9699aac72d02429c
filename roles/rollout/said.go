package rollout

import (
	"nixfleet/roles/protocol"
)

// retried reports whether an operator asked for one more attempt that has not been given yet.
func (h *host) retried() bool {
	return h.rec != nil && h.rec.Reason == CodeRetry && h.rec.State == Queued
}

// fetchFailed reports whether the host's last fetch failed and was for this rollout, or it does not say for which.
func (h *host) fetchFailed() bool {
	if h.said.FetchResult != protocol.FetchVerifyFailed && h.said.FetchResult != protocol.FetchFailed {
		return false
	}
	return h.said.FetchRollout == "" || (h.run != nil && h.said.FetchRollout == h.run.RolloutID)
}

// busy reports whether the host is in a phase in which a new target would only disturb.
func (h *host) busy() bool {
	switch h.said.phase() {
	case protocol.PhaseActivating, protocol.PhaseChecking, protocol.PhaseCommitting, protocol.PhaseUndoing:
		return true
	}
	return false
}

// fetching reports whether the host prepares its target and has not begun to switch.
func (h *host) fetching() bool {
	phase := h.said.phase()
	return phase == protocol.PhaseFetching || phase == protocol.PhaseStaged
}

// idle reports whether the host does nothing with any target.
func (h *host) idle() bool {
	phase := h.said.phase()
	return phase == "" || phase == protocol.PhaseIdle
}

// phaseIs reports whether the host's phase is about this target.
func (h *host) phaseIs(intent, closure string) bool {
	p := h.said.Phase
	return p == nil || (p.Intent == "" || p.Intent == intent) && (p.ClosureHash == "" || p.ClosureHash == closure)
}

// holding is why the host takes no target by itself. A closure that it quarantined does not count once another one is
// wanted.
func (h *host) holding() string {
	if closure, ok := protocol.QuarantinedIn(h.said.Held); ok && closure != h.closure {
		return ""
	}
	return h.said.Held
}
