package rollout

import (
	"time"

	"nixfleet/roles/protocol"
)

// offlineAt is when a silent host starts to count as offline.
func (w *World) offlineAt(h *host) time.Time {
	if !h.reported {
		return w.grace
	}
	return h.until.Add(w.limits.OfflineAfter)
}

func (w *World) offline(h *host, now time.Time) bool { return !now.Before(w.offlineAt(h)) }

// settle brings one host up to date with what it said and with the time, and arms its timer. It is idempotent.
func (w *World) settle(h *host, now time.Time) {
	if l := h.lease; l.pending() && now.After(w.expiry(h)) && (h.reported || w.offline(h, now)) {
		w.expire(h, now)
	}
	if !h.slotUntil.IsZero() && !now.Before(h.slotUntil) {
		w.release(h, now)
	}
	w.arrive(h, now)
	if h.run != nil {
		w.settleInRun(h, now)
	}
	w.arm(h, now)
}

// arrive takes a host of v1 that runs the target it had staged as one that confirmed: its agent has forgotten the
// dispatch over the reboot, and says no more than what runs.
func (w *World) arrive(h *host, now time.Time) {
	l := h.lease
	if !l.deferred() || l.KnowsLease || h.said.KnowsLease || !h.reported || h.said.Closure != l.Closure || h.said.BootID == h.stagedBoot {
		return
	}
	own := h.run != nil && l.Intent == h.run.Intent
	if own && (h.run.State == Reverting || h.run.State == RolloutReverted || h.state() == Failed || h.state() == Reverted) {
		return
	}
	w.endLease(h, DispatchConfirmed, now)
	if own {
		w.becomeHealthy(h, now)
		h.healthAt = now // what runs was seen just now
		w.settleHealth(h, now)
	}
}

func (w *World) settleInRun(h *host, now time.Time) {
	r := h.run
	onTarget := h.reported && h.said.Closure == h.closure
	away := w.offline(h, now)
	own := h.lease != nil && h.lease.Intent == r.Intent
	switch st := h.state(); st {
	case Queued, Skipped:
		switch {
		case onTarget && !away && !h.busy() && !own && r.State != Reverting && r.State != RolloutReverted:
			w.find(h, now)
		case st == Skipped:
			w.unskip(h, away, now)
		default:
			w.skip(h, away, now)
		}
	case Dispatched:
		switch {
		case onTarget:
			w.enter(h, ConfirmWindow, "", "", now)
		case h.busy() && h.phaseIs(r.Intent, h.closure):
			w.start(h, now)
		}
	case Activating:
		if onTarget {
			w.enter(h, ConfirmWindow, "", "", now)
		}
	case Healthy, Soaked:
		switch {
		case h.reported && !onTarget:
			w.enter(h, Queued, CodeSoakVoided, "it runs "+h.said.Closure, now)
		case w.probesFailed(h, now):
			w.fail(h, releaseFault, CodeProbesFailed, "health probes fail since "+clockText(*h.rec.FailingSince), now)
		case st == Healthy && away && h.wave <= r.Wave && r.State == Executing:
			w.enter(h, Skipped, h.tolerated(CodeOffline), "silent since "+clockText(h.seen), now)
		case st == Healthy && w.quietBlocked(soak, h, now) == nil:
			w.enter(h, Soaked, h.tolerated(""), "", now)
			if r.State == RolloutConverged {
				w.enter(h, Converged, "", "", now)
			}
		}
	case Converged:
		if h.reported && !onTarget {
			w.enter(h, Queued, CodeSoakVoided, "it runs "+h.said.Closure, now)
		}
	case Deferred:
		switch {
		case away && h.wave <= r.Wave && r.State == Executing:
			w.enter(h, Skipped, CodeOffline, "silent since "+clockText(h.seen), now)
		case h.reported && !onTarget && h.stagedBoot != "" && h.said.BootID != h.stagedBoot:
			w.endLease(h, DispatchRolledBack, now)
			w.retryOrFail(h, releaseFault, CodeRebootFellBack, "it rebooted into "+h.said.Closure, now)
		case h.reported && h.stagedBoot == "" && !onTarget:
			h.stagedBoot = h.said.BootID
		}
	}
	w.settleReverted(h, now)
}

// quietBlocked is blocked without sentences.
func (w *World) quietBlocked(q question, h *host, now time.Time) *protocol.Reason {
	was := w.terse
	w.terse = true
	r := w.blocked(q, subject{h, h.run}, now)
	w.terse = was
	return r
}

// find takes a host that runs its target without a lease: restored from its signed confirm time when there is
// one, else healthy from the moment it is first seen well in this rollout.
func (w *World) find(h *host, now time.Time) {
	if h.judged() && h.health != well {
		return // an operator went on without it, and nothing speaks for it yet
	}
	switch {
	case h.state() == Skipped && h.rec.HealthySince != nil:
		w.enter(h, Healthy, h.tolerated(CodeReturned), "", now)
	case !h.attested.IsZero():
		since := later(h.attested, h.run.OpenedAt)
		if since.After(now) {
			since = now
		}
		w.enter(h, Healthy, h.tolerated(CodeAttested), "confirmed at "+clockText(h.attested), now)
		w.edit(h, now, func(r *record) {
			r.HealthySince = &since
			r.Attempt = max(r.Attempt, 1)
		})
	case h.health == well:
		w.enter(h, Healthy, h.tolerated(CodeFound), "", now)
		w.edit(h, now, func(r *record) { since := now; r.HealthySince = &since })
	case h.state() == Skipped && h.rec.Reason != CodeTolerated:
		w.enter(h, Queued, CodeReturned, "", now)
	}
	w.settleHealth(h, now)
	if h.state() == Healthy && w.quietBlocked(soak, h, now) == nil {
		w.settleInRun(h, now)
	}
}

// tolerated keeps the reason of a host without which an operator went on: its failure has been dealt with.
func (h *host) tolerated(code string) string {
	if h.rec != nil && h.rec.Reason == CodeTolerated {
		return CodeTolerated
	}
	return code
}

// skip stops waiting for a host of an open wave that is absent, or that refuses targets.
func (w *World) skip(h *host, away bool, now time.Time) {
	if h.run.State != Executing || h.wave > h.run.Wave {
		return
	}
	switch {
	case away && h.reported:
		w.enter(h, Skipped, CodeOffline, "silent since "+clockText(h.seen), now)
	case away:
		w.enter(h, Skipped, CodeOffline, "not heard of since the control plane started", now)
	case h.holding() != "":
		w.enter(h, Skipped, CodeHeld, h.holding(), now)
	default:
		for _, e := range h.after {
			if e.first.run == h.run && e.first.state() == Skipped {
				w.enter(h, Skipped, CodeHostEdge, "host "+e.first.name+", which comes first, is not waited for", now)
				return
			}
		}
	}
}

// unskip takes an absent host in again.
func (w *World) unskip(h *host, away bool, now time.Time) {
	switch h.rec.Reason {
	case CodeOffline, CodeHeld:
		if away || (h.rec.Reason == CodeHeld && h.holding() != "") {
			return
		}
		if h.lease.deferred() && h.lease.Intent == h.run.Intent {
			w.enter(h, Deferred, CodeReturned, "", now)
			return
		}
		w.enter(h, Queued, CodeReturned, "", now)
	}
}

// settleReverted notices touched hosts of a recalled rollout that are back on their previous closure.
func (w *World) settleReverted(h *host, now time.Time) {
	r := h.run
	if r.State != Reverting && r.State != RolloutReverted || !h.rec.touched() {
		return
	}
	if st := h.state(); st == Reverted || h.lease.pending() || h.busy() {
		return
	}
	switch away := w.offline(h, now); {
	case away && h.state() != Skipped:
		w.enter(h, Skipped, CodeOffline, "silent since "+clockText(h.seen), now)
	case h.reported && !away && h.said.Closure != h.closure:
		if h.lease != nil && h.lease.Intent == r.Intent {
			w.endLease(h, DispatchCancelled, now)
		}
		w.enter(h, Reverted, h.failureCode(CodeReverting), "it runs "+h.said.Closure, now)
	}
}

// arm schedules the next look at a host: strictly after now, so that nothing spins.
func (w *World) arm(h *host, now time.Time) {
	next := func(t time.Time) {
		if t.After(now) {
			w.schedule(&h.timer, t)
		}
	}
	if h.lease.pending() {
		next(w.expiry(h).Add(time.Millisecond))
		if !h.reported {
			next(w.grace)
		}
	}
	if !h.slotUntil.IsZero() {
		next(h.slotUntil)
	}
	if h.run == nil {
		return
	}
	if h.run.State == Reverting && h.rec.touched() && h.state() != Skipped {
		next(w.offlineAt(h))
	}
	open := h.run.State == Executing && h.wave <= h.run.Wave
	switch h.state() {
	case Queued:
		if open {
			next(w.offlineAt(h))
		}
		if h.rec != nil {
			next(w.retryAt(h))
		}
	case Skipped:
		next(w.retryAt(h))
	case Deferred:
		if open {
			next(w.offlineAt(h))
		}
	case Healthy, Soaked:
		if h.state() == Healthy {
			next(h.run.soakEnd(h))
			if open {
				next(w.offlineAt(h))
			}
		}
		if h.rec.FailingSince != nil {
			next(h.rec.FailingSince.Add(w.limits.ProbeFailAfter))
			next(w.offlineAt(h))
		}
	}
}

// wakeRetry wakes a host whose back-off or old lease is over.
func (w *World) wakeRetry(h *host, now time.Time) {
	if h.run != nil && h.lease == nil && h.reported && h.said.Closure != h.closure && !w.offline(h, now) && w.quietBlocked(offer, h, now) == nil {
		w.wake(h)
	}
}
