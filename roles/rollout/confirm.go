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
	h := w.hosts.byName[hostname]
	if h == nil {
		return false, Change{}
	}
	ok = w.leases.confirm(h, rolloutID, closure, now)
	return ok, w.finish()
}

func (ls *leases) confirm(h *host, id, closure string, now time.Time) bool {
	ok := ls.takeConfirm(h, id, closure, now)
	if ok {
		ls.w.hosts.heard(h, now)
		h.said.Closure, h.said.Phase = closure, nil
	}
	ls.w.rollouts.flush(now)
	ls.w.hosts.arm(h, now)
	if !ls.w.changes.virtual { // a plan asks its hosts next
		ls.w.hosts.await(h, now)
	}
	return ok
}

func (ls *leases) takeConfirm(h *host, id, closure string, now time.Time) bool {
	if h.doubled() && closure == h.closure && slices.Contains(h.run.IDs, id) {
		return true // it need not go back, and proves nothing of the other one
	}
	l := h.lease
	if l != nil && !ls.w.rollouts.names(l, id) {
		l = nil
	}
	done := h.past.done
	switch {
	case l != nil && ls.confirmLease(h, closure, now):
		return true
	case done != nil && ls.w.rollouts.names(done, id) && closure == done.Closure && done.Intent != h.intent():
		return true // said again, and the answer to the first may have been lost
	case h.run != nil && closure == h.closure && slices.Contains(h.run.IDs, id) && ls.confirmCurrent(h, id, now):
		return true
	}
	if l != nil {
		ls.endLease(h, DispatchRolledBack, now)
		if h.run != nil && l.Intent == h.run.Intent && h.state() != Failed {
			ls.w.hosts.retryOrFail(h, silentFault, CodeLeaseExpired, "a confirm was refused", now)
		}
	}
	return false
}

// confirmLease takes a confirm for the open dispatch, while its deadline is ahead or it is parked for a reboot.
func (ls *leases) confirmLease(h *host, closure string, now time.Time) bool {
	l := h.lease
	own := h.run != nil && l.Intent == h.run.Intent
	if own && (h.run.recalled() || h.state() == Failed) && !broken(ruleRecallRefuses) {
		return false
	}
	if closure != l.Closure || !l.deferred() && now.After(l.ConfirmDeadline) {
		return false
	}
	if broken(ruleConfirmCounts) {
		return true
	}
	if own { // first, since it may keep its slots until it has soaked
		ls.w.hosts.becomeHealthy(h, now)
	}
	ls.endLease(h, DispatchConfirmed, now)
	return true
}

// confirmCurrent takes a confirm without a dispatch that could take it, of a host that runs what is declared for it.
func (ls *leases) confirmCurrent(h *host, id string, now time.Time) bool {
	switch h.state() {
	case Healthy, Soaked, Converged:
		if h.past.done == nil || h.past.done.Intent != h.run.Intent {
			ls.recover(h, id, now)
		}
		return true
	case Reverted:
		return false
	}
	if h.run.recalled() || ls.w.rollouts.quarantines[quarantineKey{h.run.Channel, h.closure}] != nil {
		return false
	}
	ls.w.hosts.becomeHealthy(h, now)
	ls.recover(h, id, now)
	return true
}

// recover keeps what a confirm without a dispatch that could take it says: the dispatch ended before the host
// got through, or was lost with the database. Its answer may be lost, too, and the host then says it again when
// a newer release is in force.
func (ls *leases) recover(h *host, id string, now time.Time) {
	if l := h.lease; l != nil && l.Intent == h.run.Intent && l.Closure == h.closure {
		ls.endLease(h, DispatchConfirmed, now)
		return
	}
	ls.endLease(h, DispatchCancelled, now)
	ls.w.budgets.release(h, now)
	h.past.done = &lease{Dispatch: Dispatch{
		Host: h.name, RolloutID: id, Intent: h.run.Intent, Channel: h.run.Channel, Wave: h.wave, Closure: h.closure,
		ChannelRef: h.run.ChannelRef, State: DispatchConfirmed,
		DispatchedAt: now, StartBy: now, ConfirmDeadline: now, SlotUntil: now,
		ConfirmedAt: &now, EndedAt: &now, KnowsLease: h.said.KnowsLease,
	}}
	ls.w.changes.saveLease(h.past.done)
}

// becomeHealthy starts the soak clock of a host that confirmed.
func (hs *hosts) becomeHealthy(h *host, now time.Time) {
	h.proof.healthAt = time.Time{}
	hs.enter(h, Healthy, CodeConfirmed, "", now)
	hs.edit(h, now, func(r *record) {
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
func (rs *rollouts) names(l *lease, id string) bool {
	if l.RolloutID == id {
		return true
	}
	r := rs.runOf(l.Channel, l.Intent)
	return r != nil && slices.Contains(r.IDs, id)
}

// runOf finds a rollout that is still remembered.
func (rs *rollouts) runOf(channel, intent string) *run {
	ch := rs.channels[channel]
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
