package rollout

import (
	"fmt"
	"time"

	"nixfleet/roles/protocol"
)

// Checkin takes what a host says about itself and answers what it should do. Reading and dispatching are one
// step: an offer in the Decision is already leased in the Change, so two check-ins cannot both take the last
// slot of a budget. The caller sends the Decision only after the Change is stored. A check-in that changes
// nothing returns an empty Change.
func (w *World) Checkin(hostname string, o Observation, now time.Time) (Decision, Change) {
	now = at(now)
	h := w.hosts[hostname]
	if h == nil {
		return w.unknown(now), Change{}
	}
	d := w.checkin(h, &o, now)
	return d, w.finish()
}

// unknown is the answer to a host that the fleet does not have.
func (w *World) unknown(now time.Time) Decision {
	s := subject{w: w, now: now}
	return Decision{Reason: s.reason(s.blocked(offer))}
}

func (w *World) checkin(h *host, o *Observation, now time.Time) Decision {
	w.observe(h, o, now)
	w.settle(h, now)
	w.flush(now)
	d, why := w.answer(h, now)
	if !w.virtual { // a plan's hosts read nothing
		d.Reason = w.about(h, now).reason(why)
	}
	w.flush(now)
	w.arm(h, now)
	w.lookAgain(&h.timer, why.opens, now)
	h.woken = false // it is being answered
	return d
}

// about is the subject of questions about a host.
func (w *World) about(h *host, now time.Time) subject { return subject{w, h, h.run, now} }

// Seen notes that a host is still there (its held request was answered without a new check-in, say).
func (w *World) Seen(hostname string, now time.Time) {
	if h := w.hosts[hostname]; h != nil && h.reported {
		h.seen = later(h.seen, at(now))
		h.until = later(h.until, h.seen)
	}
}

// Gone notes that a held request ended without an answer: the host no longer counts as present.
func (w *World) Gone(hostname string, now time.Time) {
	if h := w.hosts[hostname]; h != nil && h.reported && h.until.After(at(now)) {
		h.until = at(now)
		w.arm(h, at(now))
	}
}

// heard notes a sign of life. The first one after a start ends the doubt whether the host holds a slot.
func (w *World) heard(h *host, now time.Time) {
	if !h.reported {
		h.reported = true
		for _, b := range h.budgets {
			b.unheard--
			if now.Before(w.unheard) {
				w.wakeQueue(b, now)
			}
		}
	}
	h.seen, h.until = now, later(h.until, now)
}

// observe copies an observation.
func (w *World) observe(h *host, o *Observation, now time.Time) {
	w.heard(h, now)
	h.until = now.Add(max(0, o.Wait))
	h.said = *o
	h.said.Probes = nil // judged, and of the request's memory
	h.health = judge(o.ProbeMode, o.Probes)
	h.attested = time.Time{}
	if o.Attested && o.LastConfirmedAt != nil {
		// Rounded up: what is restored may not be a moment longer than what was.
		h.attested = at(o.LastConfirmedAt.Add(time.Millisecond - 1))
	}
	if h.said.Closure == h.closure {
		h.healthAt = now
		if h.run != nil {
			w.settleHealth(h, now)
		}
	}
	w.adopt(h, now)
	quarantined, _ := protocol.QuarantinedIn(h.said.Held)
	refuses := h.run != nil && quarantined == h.closure && h.lease == nil && !h.judged()
	if st := h.state(); refuses && (st == Queued || st == Skipped) && (h.dispatched() || now.Before(w.unheard)) {
		w.fail(h, releaseFault, CodeAgentQuarantine, h.said.Held, now)
	}
	if h.run != nil && h.lease.pending() && h.lease.Intent == h.run.Intent && h.state() == Dispatched && h.fetchFailed() && h.idle() {
		w.endLease(h, DispatchRolledBack, now)
		w.retryOrFail(h, localFault, CodeFetchFailed, h.said.FetchResult, now)
	}
}

// adopt gives a slot to a host that works on a lease which nobody here remembers.
func (w *World) adopt(h *host, now time.Time) {
	if h.lease != nil || !h.slotUntil.IsZero() {
		return
	}
	switch {
	case h.busy():
		w.hold(h, now.Add(w.limits.ConfirmWindow+w.limits.Margin))
	case now.Before(w.unheard) && h.fetching():
		w.hold(h, now.Add(w.limits.Lease+w.limits.ConfirmWindow+w.limits.Margin))
	}
}

// answer decides for a host whose state is settled, and grants what it decides.
func (w *World) answer(h *host, now time.Time) (Decision, hold) {
	d, why := w.decide(h, now)
	switch {
	case d.Target == nil:
		if why.code == CodeBudget || why.code == CodeBudgetUnheard {
			w.queueUp(h, now)
		}
		return d, why
	case d.Target.Resent:
		w.renew(h, now)
	default:
		w.grant(h, now)
	}
	d.Target.StartBy = h.lease.StartBy.Sub(now)
	return d, why
}

// Decide answers what a check-in with the last observation would be answered now, and changes nothing.
func (w *World) Decide(hostname string, now time.Time) Decision {
	now = at(now)
	h := w.hosts[hostname]
	if h == nil {
		return w.unknown(now)
	}
	d, why := w.decide(h, now)
	d.Reason = w.about(h, now).reason(why)
	return d
}

// decide answers a host, and says why: what holds it, or what it is told.
func (w *World) decide(h *host, now time.Time) (Decision, hold) {
	s := w.about(h, now)
	if rb := w.rollback(h); rb != nil {
		return Decision{Rollback: rb}, hold{code: CodeRollback, gate: "halt", about: rb}
	}
	if w.mayResend(h, now) {
		if why := s.blocked(resend); why.holds() {
			return Decision{}, why
		}
		return Decision{Target: w.target(h, now, true)}, hold{code: CodeResent, gate: "lease"}
	}
	if why := s.blocked(offer); why.holds() {
		return Decision{}, why
	}
	return Decision{Target: w.target(h, now, false)}, hold{code: CodeOffered, gate: "dispatch"}
}

// mayResend reports whether the host holds a lease that it can still use and shows that it has not started. Only agents that
// know leases are told twice; to others a target is sent once per dispatch.
func (w *World) mayResend(h *host, now time.Time) bool {
	l := h.lease
	if !l.pending() || h.run == nil || l.Intent != h.run.Intent || !l.KnowsLease || !h.said.KnowsLease || h.state() != Dispatched || !now.Before(l.StartBy) {
		return false
	}
	return h.idle() || h.fetching() && h.phaseIs(l.Intent, l.Closure)
}

func (w *World) target(h *host, now time.Time, resent bool) *Target {
	r := h.run
	t := &Target{
		Closure: h.closure, RolloutID: r.RolloutID, Intent: r.Intent, Channel: r.Channel, ChannelRef: r.ChannelRef,
		Wave: h.wave, ConfirmWindow: r.confirmWindow, StartBy: r.lease, Freshness: r.freshness,
		ComplianceMode: r.complianceMode, SignedAt: r.signedAt, Resent: resent,
	}
	if h.lease.pending() && h.lease.Intent == r.Intent {
		t.StartBy = h.lease.StartBy.Sub(now)
	}
	return t
}

// grant dispatches: a lease, its slots and the host's row.
func (w *World) grant(h *host, now time.Time) {
	r := h.run
	if h.lease != nil {
		w.endLease(h, DispatchCancelled, now)
	}
	l := &lease{retry: h.retried(), Dispatch: Dispatch{
		Host: h.name, RolloutID: r.RolloutID, Intent: r.Intent, Channel: r.Channel, Wave: h.wave, Closure: h.closure,
		ChannelRef: r.ChannelRef, State: DispatchPending, DispatchedAt: now, StartBy: now.Add(r.lease), KnowsLease: h.said.KnowsLease,
	}}
	l.ConfirmDeadline = now.Add(r.confirmWindow)
	if h.said.KnowsLease && !broken(ruleLeaseHoldsSlot) {
		l.ConfirmDeadline = l.StartBy.Add(r.confirmWindow)
	}
	l.SlotUntil = l.ConfirmDeadline.Add(w.limits.Margin)
	h.lease = l
	w.saveLease(l)
	w.hold(h, l.SlotUntil)
	h.waitsFor, h.healthAt = nil, time.Time{}
	w.edit(h, now, func(x *record) {
		x.Attempt++
		if x.Previous == "" && h.said.Closure != h.closure {
			x.Previous = h.said.Closure
		}
	})
	w.enter(h, Dispatched, "", h.closure, now)
	if w.virtual {
		return
	}
	e := w.event(r, protocol.LogDispatched, CodeOffered, now)
	e.Host, e.Detail = h.name, fmt.Sprintf("attempt %d, %s", h.rec.Attempt, h.closure)
	w.log(e)
}

// renew prolongs the lease of a host that is still downloading, when less than half of it is left.
func (w *World) renew(h *host, now time.Time) {
	l, r := h.lease, h.run
	if !h.fetching() || l.StartBy.Sub(now) >= r.lease/2 || now.Sub(l.DispatchedAt) > w.limits.FetchLimit {
		return
	}
	l.StartBy = now.Add(r.lease)
	l.ConfirmDeadline = l.StartBy.Add(r.confirmWindow)
	l.SlotUntil = l.ConfirmDeadline.Add(w.limits.Margin)
	w.hold(h, l.SlotUntil)
	w.saveLease(l)
	e := w.event(r, protocol.LogLeaseRenewed, "", now)
	e.Host, e.Detail = h.name, h.said.phase()
	w.log(e)
}

// rollback is the request to return that a host gets: it was touched by a recalled rollout, or failed under
// rollback-and-halt, and still has the target.
func (w *World) rollback(h *host) *protocol.Rollback {
	r := h.run
	if r == nil || !r.revert || !h.rec.touched() || !h.reported {
		return nil
	}
	if st := h.state(); st == Reverted || (st != Failed && !r.recalled()) {
		return nil
	}
	if h.said.Closure != h.closure && !(h.busy() && h.said.phase() != protocol.PhaseUndoing && h.phaseIs(r.Intent, h.closure)) {
		return nil
	}
	rb := &protocol.Rollback{Rollout: r.RolloutID, TargetRef: h.rec.Previous, Reason: r.HaltReason}
	if rb.TargetRef == "" {
		rb.TargetRef = r.ChannelRef
	}
	if rb.Reason == "" {
		rb.Reason = h.rec.Reason
	}
	return rb
}
