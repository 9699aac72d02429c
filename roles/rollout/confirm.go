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
	return ok
}

func (w *World) takeConfirm(h *host, id, closure string, now time.Time) bool {
	l := h.lease
	if l != nil && !w.names(l, id) {
		l = nil
	}
	recalled := h.run != nil && (h.run.State == Reverting || h.run.State == RolloutReverted)
	if l != nil {
		own := h.run != nil && l.Intent == h.run.Intent
		refused := own && (recalled || h.state() == Failed)
		if closure == l.Closure && !refused && (l.deferred() || !now.After(l.ConfirmDeadline)) {
			if broken("a confirm is recorded") {
				return true
			}
			w.endLease(h, DispatchConfirmed, now)
			if own {
				w.becomeHealthy(h, now)
			}
			return true
		}
	}
	if h.done != nil && w.names(h.done, id) && closure == h.done.Closure && h.done.Intent != h.intent() {
		return true
	}
	if h.run != nil && closure == h.closure && slices.Contains(h.run.IDs, id) {
		switch st := h.state(); {
		case st == Healthy || st == Soaked || st == Converged:
			if h.done == nil || h.done.Intent != h.run.Intent {
				w.recover(h, id, now)
			}
			return true
		case recalled || st == Reverted || w.quarantines[quarantineKey{h.run.Channel, closure}] != nil:
		default:
			w.recover(h, id, now)
			w.becomeHealthy(h, now)
			return true
		}
	}
	if l != nil {
		w.endLease(h, DispatchRolledBack, now)
		if h.run != nil && l.Intent == h.run.Intent && h.state() != Failed {
			w.retryOrFail(h, silentFault, CodeLeaseExpired, "a confirm was refused", now)
		}
	}
	return false
}

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

// names: the id is one of the ids of the dispatch's rollout.
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
