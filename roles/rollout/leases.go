package rollout

import (
	"time"

	"nixfleet/pki"
	"nixfleet/roles/protocol"
)

// endLease closes the open dispatch. Unless it was confirmed the slot stays held until SlotUntil.
func (ls *leases) endLease(h *host, state string, now time.Time) {
	l := h.lease
	if l == nil {
		return
	}
	l.State, l.EndedAt = state, &now
	ls.w.changes.saveLease(l)
	h.lease, h.proof.stagedBoot = nil, ""
	switch state {
	case DispatchConfirmed:
		l.ConfirmedAt = &now
		h.past.done = l
		ls.w.budgets.release(h, now)
	default:
		h.past.ended = l
	}
	if h.past.prior != nil && (h.run == nil || l.Intent != h.run.Intent) {
		h.past.prior = nil
	}
}

// expire ends a dispatch that was not confirmed in time.
func (ls *leases) expire(h *host, now time.Time) {
	l := h.lease
	own := h.run != nil && l.Intent == h.run.Intent
	ls.endLease(h, DispatchRolledBack, now)
	ls.w.changes.log(protocol.Event{
		At: pki.At(now), Intent: l.Intent, RolloutID: l.RolloutID, Channel: l.Channel, Host: h.name,
		Kind: protocol.LogLeaseExpired, Reason: CodeLeaseExpired, Detail: "not confirmed by " + clockText(l.ConfirmDeadline),
	})
	if !own {
		ls.w.changes.wake(h)
		return
	}
	switch st := h.state(); st {
	case Dispatched, Activating, ConfirmWindow:
		switch {
		case st != Dispatched && ls.w.hosts.offline(h, now):
			ls.w.hosts.fail(h, silentFault, CodeLost, "silent since it started to activate", now)
		case st == Dispatched && ls.w.about(h, now).heldBack():
			ls.w.hosts.enter(h, Queued, CodeMissed, "", now)
			ls.w.hosts.edit(h, now, func(r *record) { r.Attempt = max(0, r.Attempt-1) })
		case ls.w.hosts.offline(h, now):
			ls.w.hosts.enter(h, Queued, CodeLeaseExpired, "", now)
		default:
			ls.w.hosts.retryOrFail(h, silentFault, CodeLeaseExpired, "", now)
		}
	}
}

// start notes that an activation has begun: its confirm window runs from now.
func (ls *leases) start(h *host, now time.Time) {
	l := h.lease
	if !l.pending() {
		return
	}
	l.ConfirmDeadline = now.Add(ls.w.limits.ConfirmWindow)
	l.SlotUntil = later(l.SlotUntil, l.ConfirmDeadline.Add(ls.w.limits.Margin))
	ls.w.budgets.hold(h, l.SlotUntil)
	ls.w.changes.saveLease(l)
	if h.run != nil && l.Intent == h.run.Intent && h.state() == Dispatched {
		ls.w.hosts.enter(h, Activating, "", "", now)
	}
}
