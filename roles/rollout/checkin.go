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
	h := w.hosts.byName[hostname]
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
	w.hosts.observe(h, o, now)
	w.hosts.settle(h, now)
	w.rollouts.flush(now)
	d, why := w.leases.answer(h, now)
	if !w.changes.virtual { // a plan's hosts read nothing
		d.Reason = w.about(h, now).reason(why)
	}
	w.rollouts.flush(now)
	w.hosts.arm(h, now)
	w.timers.lookAgain(&h.timer, why, now)
	h.woken = false // it is being answered
	return d
}

// about is the subject of questions about a host.
func (w *World) about(h *host, now time.Time) subject { return subject{w, h, h.run, now} }

// Seen notes that a host is still there (its held request was answered without a new check-in, say).
func (w *World) Seen(hostname string, now time.Time) {
	if h := w.hosts.byName[hostname]; h != nil && h.contact.reported {
		h.seenAt(at(now))
		h.contact.until = later(h.contact.until, h.contact.seen)
	}
}

// Gone notes that a held request ended without an answer: the host no longer counts as present.
func (w *World) Gone(hostname string, now time.Time) {
	if h := w.hosts.byName[hostname]; h != nil && h.contact.reported && h.contact.until.After(at(now)) {
		h.contact.until = at(now)
		w.hosts.arm(h, at(now))
	}
}

// heard notes a sign of life. The first one after a start ends the doubt whether the host holds a slot.
func (hs *hosts) heard(h *host, now time.Time) {
	if !h.contact.reported {
		h.contact.reported = true
		for _, b := range h.decl.budgets {
			b.unheard--
			if now.Before(hs.w.budgets.unheard) {
				hs.w.budgets.wakeQueue(b, now)
			}
		}
	}
	h.seenAt(now)
	h.contact.until = later(h.contact.until, now)
}

// seenAt notes a sign of life. The agent of which the host spoke last has got older meanwhile: a request that it made
// before comes from its past.
func (h *host) seenAt(now time.Time) {
	if !now.After(h.contact.seen) {
		return
	}
	if h.said.Uptime > 0 {
		h.said.Uptime += now.Sub(h.contact.seen)
	}
	h.contact.seen = now
}

// observe copies an observation.
func (hs *hosts) observe(h *host, o *Observation, now time.Time) {
	hs.w.hears(h, o, now)
	hs.heard(h, now)
	h.contact.until = now.Add(max(0, o.Wait))
	h.said = *o
	h.said.Probes = nil // judged, and of the request's memory
	h.proof.health = judge(o.ProbeMode, o.Probes)
	h.proof.attested = time.Time{}
	if o.Attested && o.LastConfirmedAt != nil {
		// Rounded up: what is restored may not be a moment longer than what was.
		h.proof.attested = at(o.LastConfirmedAt.Add(time.Millisecond - 1))
	}
	if h.said.Closure == h.closure {
		h.proof.healthAt = now
		if h.run != nil {
			hs.settleHealth(h, now)
		}
	}
	hs.adopt(h, now)
	quarantined, _ := protocol.QuarantinedIn(h.said.Held)
	refuses := h.run != nil && quarantined == h.closure && h.lease == nil && !h.judged()
	waits := h.state() == Queued || h.state() == Skipped
	if refuses && waits && !h.doubled() && (h.dispatched() || now.Before(hs.w.budgets.unheard)) {
		hs.fail(h, releaseFault, CodeAgentQuarantine, h.said.Held, now)
	}
	if l := h.lease; l != nil && h.said.Fetch.Dispatch != "" && h.said.Fetch.Dispatch != l.Name() &&
		!broken(ruleFetchesNamed) {
		h.said.Fetch.Result, h.said.Fetch.Rollout = "", "" // it has not tried what it was given since
	}
	given := h.run != nil && h.lease.pending() && h.lease.Intent == h.run.Intent && h.state() == Dispatched
	if given && h.fetchFailed() && h.idle() {
		hs.w.leases.endLease(h, DispatchRolledBack, now)
		hs.retryOrFail(h, localFault, CodeFetchFailed, h.said.Fetch.Result, now)
	}
}

// adopt gives a slot to a host that works on a lease which the control plane does not remember.
func (hs *hosts) adopt(h *host, now time.Time) {
	if h.lease != nil || !h.slot.until.IsZero() {
		return
	}
	switch {
	case h.busy():
		hs.w.budgets.hold(h, now.Add(hs.w.limits.ConfirmWindow+hs.w.limits.Margin))
	case now.Before(hs.w.budgets.unheard) && h.fetching():
		hs.w.budgets.hold(h, now.Add(hs.w.limits.Lease+hs.w.limits.ConfirmWindow+hs.w.limits.Margin))
	}
}

// answer decides for a host whose state is settled, and grants what it decides.
func (ls *leases) answer(h *host, now time.Time) (Decision, *hold) {
	d, why := ls.decide(h, now)
	switch {
	case d.Target == nil:
		if why.code == CodeBudget || why.code == CodeBudgetUnheard {
			ls.w.budgets.queueUp(h, now)
		}
		return d, why
	case d.Target.Resent:
		ls.renew(h, now)
	default:
		ls.grant(h, now)
	}
	d.Target.StartBy, d.Target.Dispatch = h.lease.StartBy.Sub(now), h.lease.Name()
	return d, why
}

// Decide answers what a check-in with the last observation would be answered now, and changes nothing.
func (w *World) Decide(hostname string, now time.Time) Decision {
	now = at(now)
	h := w.hosts.byName[hostname]
	if h == nil {
		return w.unknown(now)
	}
	d, why := w.leases.decide(h, now)
	d.Reason = w.about(h, now).reason(why)
	return d
}

// decide answers a host, and says why: what holds it, or what it is told.
func (ls *leases) decide(h *host, now time.Time) (Decision, *hold) {
	s := ls.w.about(h, now)
	if rb := ls.rollback(h); rb != nil {
		return Decision{Rollback: rb}, &hold{code: CodeRollback, gate: "halt", about: rb}
	}
	if ls.mayResend(h, now) {
		if why := s.blocked(resend); why != nil {
			return Decision{}, why
		}
		return Decision{Target: ls.target(h, now, true)}, heldResent
	}
	if why := s.blocked(offer); why != nil {
		return Decision{}, why
	}
	return Decision{Target: ls.target(h, now, false)}, heldOffered
}

// mayResend reports whether the host holds a lease that it can still use and shows that it has not started. Only
// agents that know leases are told twice; to others a target is sent once per dispatch.
func (ls *leases) mayResend(h *host, now time.Time) bool {
	l := h.lease
	if !l.pending() || h.run == nil || l.Intent != h.run.Intent || h.state() != Dispatched {
		return false
	}
	if !now.Before(l.StartBy) && !broken(ruleLeaseEnds) {
		return false
	}
	if (!l.KnowsLease || !h.said.KnowsLease) && !broken(ruleV1ToldOnce) {
		return false
	}
	return h.idle() || h.fetching() && h.phaseIs(l.Intent, l.Closure)
}

func (ls *leases) target(h *host, now time.Time, resent bool) *Target {
	r := h.run
	t := &Target{
		Closure: h.closure, RolloutID: r.RolloutID, Intent: r.Intent, Channel: r.Channel, ChannelRef: r.ChannelRef,
		Wave: h.wave, ConfirmWindow: r.confirmWindow, StartBy: r.lease, Freshness: r.freshness,
		ComplianceMode: r.complianceMode, SignedAt: r.signedAt, Resent: resent,
	}
	if h.lease.pending() && h.lease.Intent == r.Intent {
		t.StartBy, t.Dispatch = h.lease.StartBy.Sub(now), h.lease.Name()
	}
	return t
}

// grant dispatches: a lease, its slots and the host's row.
func (ls *leases) grant(h *host, now time.Time) {
	r := h.run
	if h.lease != nil {
		ls.endLease(h, DispatchCancelled, now)
	}
	l := &lease{retry: h.retried(), Dispatch: Dispatch{
		Host: h.name, RolloutID: r.RolloutID, Intent: r.Intent, Channel: r.Channel, Wave: h.wave, Closure: h.closure,
		ChannelRef: r.ChannelRef, State: DispatchPending, DispatchedAt: now, KnowsLease: h.said.KnowsLease,
	}}
	l.StartBy = r.startBy(l, now)
	l.ConfirmDeadline = now.Add(r.confirmWindow)
	if h.said.KnowsLease && !broken(ruleLeaseHoldsSlot) {
		l.ConfirmDeadline = l.StartBy.Add(r.confirmWindow)
	}
	l.SlotUntil = l.ConfirmDeadline.Add(ls.w.limits.Margin)
	h.lease = l
	ls.w.changes.saveLease(l)
	ls.w.budgets.hold(h, l.SlotUntil)
	h.slot.waitsFor, h.proof.healthAt = nil, time.Time{}
	ls.w.hosts.edit(h, now, func(x *record) {
		x.Attempt++
		if x.Previous == "" && h.said.Closure != h.closure {
			x.Previous = h.said.Closure
		}
	})
	ls.w.hosts.enter(h, Dispatched, "", h.closure, now)
	if ls.w.changes.virtual {
		return
	}
	e := ls.w.rollouts.event(r, protocol.LogDispatched, CodeOffered, now)
	e.Host, e.Detail = h.name, fmt.Sprintf("attempt %d, %s", h.rec.Attempt, h.closure)
	ls.w.changes.log(e)
}

// renew prolongs the lease of a host that is still downloading, when less than half of it is left.
func (ls *leases) renew(h *host, now time.Time) {
	l, r := h.lease, h.run
	if !h.fetching() || l.StartBy.Sub(now) >= r.lease/2 || now.Sub(l.DispatchedAt) > ls.w.limits.FetchLimit {
		return
	}
	if by := r.startBy(l, now); by.After(l.StartBy) {
		l.StartBy = by
	} else {
		return
	}
	l.ConfirmDeadline = l.StartBy.Add(r.confirmWindow)
	l.SlotUntil = l.ConfirmDeadline.Add(ls.w.limits.Margin)
	ls.w.budgets.hold(h, l.SlotUntil)
	ls.w.changes.saveLease(l)
	e := ls.w.rollouts.event(r, protocol.LogLeaseRenewed, "", now)
	e.Host, e.Detail = h.name, h.said.phase()
	ls.w.changes.log(e)
}

// rollback asks a host to return. It was touched by a recalled rollout, or failed under
// rollback-and-halt, and still has the target.
func (ls *leases) rollback(h *host) *protocol.Rollback {
	r := h.run
	if r == nil || !r.revert || !h.rec.touched() || !h.contact.reported {
		return nil
	}
	if st := h.state(); st == Reverted || (st != Failed && !r.recalled()) {
		return nil
	}
	onItsWay := h.busy() && h.said.phase() != protocol.PhaseUndoing && h.phaseIs(r.Intent, h.closure)
	if h.said.Closure != h.closure && !onItsWay {
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

// arrive takes a host of v1 that runs the target it had staged as one that confirmed: its agent has forgotten the
// dispatch over the reboot, and says no more than what runs.
func (ls *leases) arrive(h *host, now time.Time) {
	l := h.lease
	if !l.deferred() || l.KnowsLease || h.said.KnowsLease {
		return
	}
	if !h.contact.reported || h.said.Closure != l.Closure || h.said.BootID == h.proof.stagedBoot {
		return
	}
	own := h.run != nil && l.Intent == h.run.Intent
	if own && (h.run.recalled() || h.state() == Failed || h.state() == Reverted) {
		return
	}
	if own {
		ls.w.hosts.becomeHealthy(h, now)
		h.proof.healthAt = now // what runs was seen just now
	}
	ls.endLease(h, DispatchConfirmed, now)
	if own {
		ls.w.hosts.settleHealth(h, now)
	}
}

// recalled reports whether the touched hosts of the rollout go back, or have done so.
func (r *run) recalled() bool { return r.State == Reverting || r.State == RolloutReverted }

// boot is a boot of a host that spoke before the present one. It is not changed once it is made.
type boot struct {
	id     string
	seen   time.Time
	uptime time.Duration // of its agent, when it was seen
	// turns are how often in a row the two had spoken in turn by then, each time the same live agent as before.
	turns int
}

// twinTurns are the turns that prove two machines. One late request may by chance look as old as a live agent would be
// by then, and the real agent's next one makes a second turn; a third takes another such chance.
const twinTurns = 3

// twinSlack is how much later a request may arrive than it was made and still prove that its maker is alive.
const twinSlack = 3 * time.Second

// alive reports whether a check-in was made just now by the same run of an agent as this boot's last one: the agent has
// got older by just as much time as has passed. A request that was on its way for long, one that is repeated, a
// snapshot that was restored, an agent that was started anew, and a request that is left of the run before it are none
// of that.
func (b *boot) alive(o *Observation, now time.Time) bool {
	if b == nil || b.id != o.BootID || o.Uptime <= b.uptime {
		return false
	}
	return (o.Uptime - b.uptime - now.Sub(b.seen)).Abs() <= twinSlack
}

// hears notes which boot of a host speaks, before the rest of its check-in is taken. Two machines are there when a
// boot speaks again after a newer one, that one again after it, and the first once more, all of them alive; or when two
// connections prove it.
func (w *World) hears(h *host, o *Observation, now time.Time) {
	last := h.said.BootID
	if o.Twin && last != "" {
		w.notice(h, [2]string{last, o.BootID}, o.KnowsLease, now)
		return
	}
	if last == "" || last == o.BootID || h.said.Uptime == 0 || o.Uptime == 0 {
		return
	}
	before := h.contact.other
	turns := 0
	if before.alive(o, now) {
		turns = before.turns + 1
	}
	if turns >= twinTurns {
		w.notice(h, [2]string{last, o.BootID}, o.KnowsLease, now)
	}
	h.contact.other = &boot{id: last, seen: h.contact.seen, uptime: h.said.Uptime, turns: turns}
}

// doubled reports whether nothing that is said in the name of the host counts.
func (h *host) doubled() bool { return h.contact.twins != nil && h.contact.twins.Held }

// twins gates both machines.
func (s subject) twins() *hold {
	if s.host.doubled() {
		return heldTwoMachines
	}
	return nil
}
