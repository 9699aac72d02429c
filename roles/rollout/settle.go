package rollout

import (
	"time"

	"nixfleet/roles/protocol"
)

// offlineAt is when a silent host starts to count as offline.
func (hs *hosts) offlineAt(h *host) time.Time {
	if !h.contact.reported {
		return hs.w.grace
	}
	return h.contact.until.Add(hs.w.limits.OfflineAfter)
}

func (hs *hosts) offline(h *host, now time.Time) bool { return !now.Before(hs.offlineAt(h)) }

// settle brings one host up to date with what it said and with the time, and arms its timer. It is idempotent.
func (hs *hosts) settle(h *host, now time.Time) {
	if l := h.lease; l.pending() && now.After(hs.w.leases.expiry(h)) && (h.contact.reported || hs.offline(h, now)) {
		hs.w.leases.expire(h, now)
	}
	if !h.slot.until.IsZero() && !now.Before(h.slot.until) {
		hs.w.budgets.release(h, now)
	}
	hs.w.leases.arrive(h, now)
	if h.run != nil {
		hs.settleInRun(h, now)
	}
	hs.arm(h, now)
}

// glance is what a host is judged by when it is settled.
type glance struct {
	now      time.Time
	onTarget bool // it says that it runs its target
	away     bool // it is silent
	own      bool // its open lease is of this rollout
	awaited  bool // its wave is open, and its rollout goes on
}

// settlers move a host on from the state that they stand for. Filled by init, since a host that is found well moves on
// from there at once.
var settlers [protocol.HostStateCount]func(hs *hosts, h *host, g glance)

func init() {
	settlers[Queued.Index()] = (*hosts).settleWaiting
	settlers[Skipped.Index()] = (*hosts).settleWaiting
	settlers[Dispatched.Index()] = (*hosts).settleDispatched
	settlers[Activating.Index()] = (*hosts).settleActivating
	settlers[ConfirmWindow.Index()] = (*hosts).settleConfirming
	settlers[Healthy.Index()] = (*hosts).settleSoaking
	settlers[Soaked.Index()] = (*hosts).settleSoaking
	settlers[Converged.Index()] = (*hosts).settleConverged
	settlers[Deferred.Index()] = (*hosts).settleDeferred
}

func (hs *hosts) settleInRun(h *host, now time.Time) {
	r := h.run
	g := glance{
		now:      now,
		onTarget: h.contact.reported && h.said.Closure == h.closure,
		away:     hs.offline(h, now),
		own:      h.lease != nil && h.lease.Intent == r.Intent,
		awaited:  h.wave <= r.Wave && r.State == Executing,
	}
	if h.doubled() {
		hs.w.settleDoubled(h, g)
		return
	}
	if move := settlers[h.state().Index()]; move != nil {
		move(hs, h, g)
	}
	hs.settleReverted(h, now)
}

func (hs *hosts) settleWaiting(h *host, g glance) {
	switch {
	case g.onTarget && !g.away && !h.busy() && !g.own && !h.leaving() && !h.run.recalled():
		hs.find(h, g.now)
	case h.state() == Skipped:
		hs.unskip(h, g.away, g.now)
	default:
		hs.skip(h, g.away, g.now)
	}
}

func (hs *hosts) settleDispatched(h *host, g glance) {
	switch {
	case g.onTarget && hs.attestedAlready(h, g):
	case !h.worksOn(h.lease): // but on an earlier one
	case g.onTarget:
		hs.enter(h, ConfirmWindow, "", "", g.now)
	case h.busy() && h.phaseIs(h.run.Intent, h.closure):
		hs.w.leases.start(h, g.now)
	}
}

func (hs *hosts) settleActivating(h *host, g glance) {
	if g.onTarget && !hs.attestedAlready(h, g) {
		hs.enter(h, ConfirmWindow, "", "", g.now)
	}
}

func (hs *hosts) settleConfirming(h *host, g glance) {
	if g.onTarget {
		hs.attestedAlready(h, g)
	}
}

// attestedAlready ends the dispatch of a host that was told its target by mistake: it does nothing, runs what is
// declared, and has signed that it confirmed this rollout. A request that came late had shown it on its old closure,
// say. It has nothing left to confirm, so its deadline would only pass and blame the release.
func (hs *hosts) attestedAlready(h *host, g glance) bool {
	if !g.own || g.away || h.proof.attested.IsZero() || !h.idle() || h.run.recalled() ||
		h.judged() && h.proof.health != well {
		return false
	}
	hs.find(h, g.now)
	hs.w.leases.endLease(h, DispatchConfirmed, g.now)
	return true
}

func (hs *hosts) settleSoaking(h *host, g glance) {
	switch {
	case h.contact.reported && !g.onTarget:
		hs.enter(h, Queued, CodeSoakVoided, "it runs "+h.said.Closure, g.now)
		return
	case hs.probesFailed(h, g.now):
		hs.fail(h, releaseFault, CodeProbesFailed, "health probes fail since "+clockText(*h.rec.FailingSince), g.now)
		return
	case h.state() == Soaked:
		return
	case g.away && g.awaited:
		hs.enter(h, Skipped, h.tolerated(CodeOffline), "silent since "+clockText(h.contact.seen), g.now)
		return
	}
	if why := hs.w.about(h, g.now).blocked(soak); why != nil {
		hs.w.timers.lookAgain(&h.timer, why, g.now)
		return
	}
	hs.enter(h, Soaked, h.tolerated(""), "", g.now)
	if h.run.State == RolloutConverged {
		hs.enter(h, Converged, "", "", g.now)
	}
}

func (hs *hosts) settleConverged(h *host, g glance) {
	if h.contact.reported && !g.onTarget {
		hs.enter(h, Queued, CodeSoakVoided, "it runs "+h.said.Closure, g.now)
	}
}

func (hs *hosts) settleDeferred(h *host, g glance) {
	switch {
	case g.away && g.awaited:
		hs.enter(h, Skipped, CodeOffline, "silent since "+clockText(h.contact.seen), g.now)
	case h.contact.reported && !g.onTarget && h.proof.stagedBoot != "" && h.said.BootID != h.proof.stagedBoot:
		hs.w.leases.endLease(h, DispatchRolledBack, g.now)
		// An agent that knows why it was left says so. A person may have chosen what boots, or the report that it waits for
		// a boot may have come after that one.
		hs.retryOrFail(h, localFault, CodeRebootFellBack, "it rebooted into "+h.said.Closure, g.now)
	case h.contact.reported && h.proof.stagedBoot == "" && !g.onTarget:
		h.proof.stagedBoot = h.said.BootID
	}
}

// find takes a host that runs its target without a lease: restored from its signed confirm time when there is
// one, else healthy from the moment it is first seen well in this rollout.
func (hs *hosts) find(h *host, now time.Time) {
	if h.judged() && h.proof.health != well {
		return // an operator went on without it, and nothing speaks for it yet
	}
	switch {
	case h.state() == Skipped && h.rec.HealthySince != nil:
		hs.enter(h, Healthy, h.tolerated(CodeReturned), "", now)
	case !h.proof.attested.IsZero():
		since := later(h.proof.attested, h.run.OpenedAt)
		if since.After(now) {
			since = now
		}
		hs.enter(h, Healthy, h.tolerated(CodeAttested), "confirmed at "+clockText(h.proof.attested), now)
		hs.edit(h, now, func(r *record) {
			r.HealthySince = &since
			r.Attempt = max(r.Attempt, 1)
		})
	case h.proof.health == well:
		hs.enter(h, Healthy, h.tolerated(CodeFound), "", now)
		hs.edit(h, now, func(r *record) { since := now; r.HealthySince = &since })
	case h.state() == Skipped && h.rec.Reason != CodeTolerated:
		hs.enter(h, Queued, CodeReturned, "", now)
	}
	hs.settleHealth(h, now)
	if h.state() == Healthy {
		hs.settleInRun(h, now)
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
func (hs *hosts) skip(h *host, away bool, now time.Time) {
	if h.run.State != Executing || h.wave > h.run.Wave {
		return
	}
	switch {
	case away && h.contact.reported:
		hs.enter(h, Skipped, CodeOffline, "silent since "+clockText(h.contact.seen), now)
	case away:
		hs.enter(h, Skipped, CodeOffline, "not heard of since the control plane started", now)
	case h.holding() != "":
		hs.enter(h, Skipped, CodeHeld, h.holding(), now)
	default:
		for _, e := range h.decl.after {
			if e.first.run == h.run && e.first.state() == Skipped {
				hs.enter(h, Skipped, CodeHostEdge, "host "+e.first.name+", which comes first, is not waited for", now)
				return
			}
		}
	}
}

// unskip takes an absent host in again.
func (hs *hosts) unskip(h *host, away bool, now time.Time) {
	switch h.rec.Reason {
	case CodeOffline, CodeHeld, CodeTwoMachines:
		if away || (h.rec.Reason == CodeHeld && h.holding() != "") {
			return
		}
		if h.lease.deferred() && h.lease.Intent == h.run.Intent {
			hs.enter(h, Deferred, CodeReturned, "", now)
			return
		}
		hs.enter(h, Queued, CodeReturned, "", now)
	}
}

// settleReverted notices touched hosts of a recalled rollout that are back on their previous closure.
func (hs *hosts) settleReverted(h *host, now time.Time) {
	r := h.run
	if !r.recalled() || !h.rec.touched() {
		return
	}
	if st := h.state(); st == Reverted || h.lease.pending() || h.busy() {
		return
	}
	switch away := hs.offline(h, now); {
	case away && h.state() != Skipped:
		hs.enter(h, Skipped, CodeOffline, "silent since "+clockText(h.contact.seen), now)
	case h.contact.reported && !away && h.said.Closure != h.closure:
		if h.lease != nil && h.lease.Intent == r.Intent {
			hs.w.leases.endLease(h, DispatchCancelled, now)
		}
		hs.enter(h, Reverted, h.failureCode(CodeReverting), "it runs "+h.said.Closure, now)
	}
}

// lookAgain has the owner of a timer looked at when the gate that holds it opens. A gate without a time is opened by
// something that wakes.
func (ts *timers) lookAgain(t *timer, why *hold, now time.Time) {
	if why != nil && why.opens != 0 {
		ts.lookAt(t, why.opens.time(), now)
	}
}

// lookAt has the owner of a timer looked at, strictly after now, so that nothing spins.
func (ts *timers) lookAt(t *timer, due, now time.Time) {
	if due.After(now) {
		ts.schedule(t, due)
	}
}

// arm schedules the next look at a host for the deadlines of its lease, slots and silence. What a gate waits for is
// armed by the function that asked the gate.
func (hs *hosts) arm(h *host, now time.Time) {
	t := &h.timer
	if h.lease.pending() {
		hs.w.timers.lookAt(t, hs.w.leases.expiry(h).Add(time.Millisecond), now)
		if !h.contact.reported {
			hs.w.timers.lookAt(t, hs.w.grace, now)
		}
	}
	if !h.slot.until.IsZero() {
		hs.w.timers.lookAt(t, h.slot.until, now)
	}
	if h.run == nil {
		return
	}
	if h.run.State == Reverting && h.rec.touched() && h.state() != Skipped {
		hs.w.timers.lookAt(t, hs.offlineAt(h), now)
	}
	switch h.state() {
	case Queued, Deferred, Healthy:
		if h.run.State == Executing && h.wave <= h.run.Wave {
			hs.w.timers.lookAt(t, hs.offlineAt(h), now)
		}
	}
	if h.rec != nil && h.rec.FailingSince != nil {
		hs.w.timers.lookAt(t, h.rec.FailingSince.Add(hs.w.limits.ProbeFailAfter), now)
		hs.w.timers.lookAt(t, hs.offlineAt(h), now)
	}
}

// await asks what holds a host whose state has changed without a check-in, and has it looked at again when that opens.
// One that stands in the queue of a budget is woken by that.
func (hs *hosts) await(h *host, now time.Time) {
	if h.run == nil || !h.contact.reported || h.slot.waitsFor != nil || len(h.run.waves) == 0 {
		return
	}
	switch h.state() {
	case Queued, Skipped:
		if !broken(ruleWordsWake) {
			hs.w.rollouts.wakeOrQueue(h, now)
		}
	case Healthy:
		hs.w.timers.lookAgain(&h.timer, hs.w.about(h, now).blocked(soak), now)
	}
}

// wakeRetry wakes a host whose back-off or old lease is over.
func (hs *hosts) wakeRetry(h *host, now time.Time) {
	if h.run == nil || h.lease != nil || !h.contact.reported || h.said.Closure == h.closure || hs.offline(h, now) {
		return
	}
	if why := hs.w.about(h, now).blocked(offer); why != nil {
		hs.w.timers.lookAgain(&h.timer, why, now)
		return
	}
	hs.w.changes.wake(h)
}

// expiry is when a dispatch is over. One that has begun and whose host is silent gets the margin on top: an agent
// that undoes at its own deadline needs a moment to say why.
func (ls *leases) expiry(h *host) time.Time {
	if st := h.state(); (st == Activating || st == ConfirmWindow) && ls.w.hosts.offline(h, h.lease.ConfirmDeadline) {
		return h.lease.ConfirmDeadline.Add(ls.w.limits.Margin)
	}
	return h.lease.ConfirmDeadline
}
