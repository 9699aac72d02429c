package rollout

import (
	"time"

	"nixfleet/pki"
	"nixfleet/roles/protocol"
)

// endLease closes the open dispatch. Unless it was confirmed the slot stays held until SlotUntil.
func (w *World) endLease(h *host, state string, now time.Time) {
	l := h.lease
	if l == nil {
		return
	}
	l.State, l.EndedAt = state, &now
	w.saveLease(l)
	h.lease, h.stagedBoot = nil, ""
	switch state {
	case DispatchConfirmed:
		l.ConfirmedAt = &now
		h.done = l
		w.release(h, now)
	default:
		h.ended = l
	}
	if h.prior != nil && (h.run == nil || l.Intent != h.run.Intent) {
		h.prior = nil
	}
}

// expiry is when a dispatch is over. One that has begun and whose host is silent gets the margin on top: an agent
// that undoes at its own deadline needs a moment to say why.
func (w *World) expiry(h *host) time.Time {
	if st := h.state(); (st == Activating || st == ConfirmWindow) && w.offline(h, h.lease.ConfirmDeadline) {
		return h.lease.ConfirmDeadline.Add(w.limits.Margin)
	}
	return h.lease.ConfirmDeadline
}

// expire ends a dispatch that was not confirmed in time.
func (w *World) expire(h *host, now time.Time) {
	l := h.lease
	own := h.run != nil && l.Intent == h.run.Intent
	w.endLease(h, DispatchRolledBack, now)
	e := protocol.Event{At: pki.At(now), Intent: l.Intent, RolloutID: l.RolloutID, Channel: l.Channel, Host: h.name, Kind: protocol.LogLeaseExpired, Reason: CodeLeaseExpired}
	e.Detail = "not confirmed by " + clockText(l.ConfirmDeadline)
	w.log(e)
	if !own {
		w.wake(h)
		return
	}
	switch st := h.state(); st {
	case Dispatched, Activating, ConfirmWindow:
		switch {
		case st != Dispatched && w.offline(h, now):
			w.fail(h, silentFault, CodeLost, "silent since it started to activate", now)
		case w.offline(h, now):
			w.enter(h, Queued, CodeLeaseExpired, "", now)
		default:
			w.retryOrFail(h, silentFault, CodeLeaseExpired, "", now)
		}
	}
}

// start notes that an activation has begun: its confirm window runs from now.
func (w *World) start(h *host, now time.Time) {
	l := h.lease
	if !l.pending() {
		return
	}
	l.ConfirmDeadline = now.Add(w.limits.ConfirmWindow)
	l.SlotUntil = later(l.SlotUntil, l.ConfirmDeadline.Add(w.limits.Margin))
	w.hold(h, l.SlotUntil)
	w.saveLease(l)
	if h.run != nil && l.Intent == h.run.Intent && h.state() == Dispatched {
		w.enter(h, Activating, "", "", now)
	}
}
