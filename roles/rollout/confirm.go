package rollout

import (
	"slices"
	"time"
)

// Confirm takes a host's word that it runs what it was given and is well. ok false means 410: the agent goes back.
//
// It counts for an open dispatch of that rollout (any id of its intent) whose deadline is ahead, or that is
// parked for a reboot; again for one that was confirmed already, so that a lost answer rolls nobody back; and
// without any, when the host runs what the current release declares for it and names its current rollout. The
// closure must be the dispatched one. A recalled rollout takes no confirms.
func (w *World) Confirm(hostname, rolloutID, closure string, now time.Time) (ok bool, c Change) {
	now = at(now)
	h := w.hosts[hostname]
	if h == nil {
		return false, Change{}
	}
	ok = w.confirm(h, rolloutID, closure, now)
	return ok, w.finish()
}

func (w *World) confirm(h *host, id, closure string, now time.Time) bool {
	ok := w.takeConfirm(h, id, closure, now)
	if ok {
		w.heard(h, now)
		h.said.Closure, h.said.Phase = closure, nil
	}
	w.flush(now)
	w.arm(h, now)
	w.await(h, now)
	return ok
}

func (w *World) takeConfirm(h *host, id, closure string, now time.Time) bool {
	l := h.lease
	if l != nil && !w.names(l, id) {
		l = nil
	}
	switch {
	case l != nil && w.confirmLease(h, closure, now):
		return true
	case h.done != nil && w.names(h.done, id) && closure == h.done.Closure && h.done.Intent != h.intent():
		return true // said again, and the answer to the first may have been lost
	case h.run != nil && closure == h.closure && slices.Contains(h.run.IDs, id) && w.confirmCurrent(h, id, now):
		return true
	}
	if l != nil {
		w.endLease(h, DispatchRolledBack, now)
		if h.run != nil && l.Intent == h.run.Intent && h.state() != Failed {
			w.retryOrFail(h, silentFault, CodeLeaseExpired, "a confirm was refused", now)
		}
	}
	return false
}

// confirmLease takes a confirm for the open dispatch, while its deadline is ahead or it is parked for a reboot.
func (w *World) confirmLease(h *host, closure string, now time.Time) bool {
	l := h.lease
	own := h.run != nil && l.Intent == h.run.Intent
	if own && (h.run.recalled() || h.state() == Failed) {
		return false
	}
	if closure != l.Closure || !l.deferred() && now.After(l.ConfirmDeadline) {
		return false
	}
	if broken(ruleConfirmCounts) {
		return true
	}
	w.endLease(h, DispatchConfirmed, now)
	if own {
		w.becomeHealthy(h, now)
	}
	return true
}

// confirmCurrent takes a confirm without a dispatch that could take it, of a host that runs what is declared for it.
func (w *World) confirmCurrent(h *host, id string, now time.Time) bool {
	switch h.state() {
	case Healthy, Soaked, Converged:
		if h.done == nil || h.done.Intent != h.run.Intent {
			w.recover(h, id, now)
		}
		return true
	case Reverted:
		return false
	}
	if h.run.recalled() || w.quarantines[quarantineKey{h.run.Channel, h.closure}] != nil {
		return false
	}
	w.recover(h, id, now)
	w.becomeHealthy(h, now)
	return true
}

// recalled reports whether the touched hosts of the rollout go back, or have done so.
func (r *run) recalled() bool { return r.State == Reverting || r.State == RolloutReverted }

// recover keeps what a confirm without a dispatch that could take it says: the dispatch ended before the host
// got through, or was lost with the database. Its answer may be lost, too, and the host then says it again when
// a newer release is in force.
func (w *World) recover(h *host, id string, now time.Time) {
	if l := h.lease; l != nil && l.Intent == h.run.Intent && l.Closure == h.closure {
		w.endLease(h, DispatchConfirmed, now)
		return
	}
	w.endLease(h, DispatchCancelled, now)
	w.release(h, now)
	h.done = &lease{Dispatch: Dispatch{
		Host: h.name, RolloutID: id, Intent: h.run.Intent, Channel: h.run.Channel, Wave: h.wave, Closure: h.closure,
		ChannelRef: h.run.ChannelRef, State: DispatchConfirmed, DispatchedAt: now, StartBy: now, ConfirmDeadline: now, SlotUntil: now,
		ConfirmedAt: &now, EndedAt: &now, KnowsLease: h.said.KnowsLease,
	}}
	w.saveLease(h.done)
}

// becomeHealthy starts the soak clock of a host that confirmed.
func (w *World) becomeHealthy(h *host, now time.Time) {
	h.healthAt = time.Time{}
	w.enter(h, Healthy, CodeConfirmed, "", now)
	w.edit(h, now, func(r *record) {
		since := now
		r.HealthySince = &since
		r.Attempt = max(r.Attempt, 1)
	})
}

func (h *host) intent() string {
	if h.run == nil {
		return ""
	}
	return h.run.Intent
}

// names reports whether the id is one of the ids of the dispatch's rollout.
func (w *World) names(l *lease, id string) bool {
	if l.RolloutID == id {
		return true
	}
	r := w.runOf(l.Channel, l.Intent)
	return r != nil && slices.Contains(r.IDs, id)
}

// runOf finds a rollout that is still remembered.
func (w *World) runOf(channel, intent string) *run {
	ch := w.channels[channel]
	if ch == nil {
		return nil
	}
	if ch.cur != nil && ch.cur.Intent == intent {
		return ch.cur
	}
	for _, r := range ch.past {
		if r.Intent == intent {
			return r
		}
	}
	return nil
}
