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
	if own && (h.run.recalled() || h.state() == Failed || h.state() == Reverted) {
		return
	}
	w.endLease(h, DispatchConfirmed, now)
	if own {
		w.becomeHealthy(h, now)
		h.healthAt = now // what runs was seen just now
		w.settleHealth(h, now)
	}
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
var settlers [protocol.HostStateCount]func(w *World, h *host, g glance)

func init() {
	settlers[Queued.Index()] = (*World).settleWaiting
	settlers[Skipped.Index()] = (*World).settleWaiting
	settlers[Dispatched.Index()] = (*World).settleDispatched
	settlers[Activating.Index()] = (*World).settleActivating
	settlers[Healthy.Index()] = (*World).settleSoaking
	settlers[Soaked.Index()] = (*World).settleSoaking
	settlers[Converged.Index()] = (*World).settleConverged
	settlers[Deferred.Index()] = (*World).settleDeferred
}

func (w *World) settleInRun(h *host, now time.Time) {
	r := h.run
	g := glance{
		now:      now,
		onTarget: h.reported && h.said.Closure == h.closure,
		away:     w.offline(h, now),
		own:      h.lease != nil && h.lease.Intent == r.Intent,
		awaited:  h.wave <= r.Wave && r.State == Executing,
	}
	if move := settlers[h.state().Index()]; move != nil {
		move(w, h, g)
	}
	w.settleReverted(h, now)
}

func (w *World) settleWaiting(h *host, g glance) {
	switch {
	case g.onTarget && !g.away && !h.busy() && !g.own && !h.run.recalled():
		w.find(h, g.now)
	case h.state() == Skipped:
		w.unskip(h, g.away, g.now)
	default:
		w.skip(h, g.away, g.now)
	}
}

func (w *World) settleDispatched(h *host, g glance) {
	switch {
	case g.onTarget:
		w.enter(h, ConfirmWindow, "", "", g.now)
	case h.busy() && h.phaseIs(h.run.Intent, h.closure):
		w.start(h, g.now)
	}
}

func (w *World) settleActivating(h *host, g glance) {
	if g.onTarget {
		w.enter(h, ConfirmWindow, "", "", g.now)
	}
}

func (w *World) settleSoaking(h *host, g glance) {
	switch {
	case h.reported && !g.onTarget:
		w.enter(h, Queued, CodeSoakVoided, "it runs "+h.said.Closure, g.now)
		return
	case w.probesFailed(h, g.now):
		w.fail(h, releaseFault, CodeProbesFailed, "health probes fail since "+clockText(*h.rec.FailingSince), g.now)
		return
	case h.state() == Soaked:
		return
	case g.away && g.awaited:
		w.enter(h, Skipped, h.tolerated(CodeOffline), "silent since "+clockText(h.seen), g.now)
		return
	}
	if why := w.about(h, g.now).blocked(soak); why.holds() {
		w.lookAgain(&h.timer, why.opens, g.now)
		return
	}
	w.enter(h, Soaked, h.tolerated(""), "", g.now)
	if h.run.State == RolloutConverged {
		w.enter(h, Converged, "", "", g.now)
	}
}

func (w *World) settleConverged(h *host, g glance) {
	if h.reported && !g.onTarget {
		w.enter(h, Queued, CodeSoakVoided, "it runs "+h.said.Closure, g.now)
	}
}

func (w *World) settleDeferred(h *host, g glance) {
	switch {
	case g.away && g.awaited:
		w.enter(h, Skipped, CodeOffline, "silent since "+clockText(h.seen), g.now)
	case h.reported && !g.onTarget && h.stagedBoot != "" && h.said.BootID != h.stagedBoot:
		w.endLease(h, DispatchRolledBack, g.now)
		w.retryOrFail(h, releaseFault, CodeRebootFellBack, "it rebooted into "+h.said.Closure, g.now)
	case h.reported && h.stagedBoot == "" && !g.onTarget:
		h.stagedBoot = h.said.BootID
	}
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
	if h.state() == Healthy {
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
	if !r.recalled() || !h.rec.touched() {
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

// lookAgain has the owner of a timer looked at when the gate that holds it opens, strictly after now, so that nothing
// spins. Zero means that no time is known: what opens that gate wakes.
func (w *World) lookAgain(t *timer, opens, now time.Time) {
	if opens.After(now) {
		w.schedule(t, opens)
	}
}

// arm schedules the next look at a host for the deadlines of its lease, slots and silence. What a gate waits for is
// armed by whoever asked the gate.
func (w *World) arm(h *host, now time.Time) {
	t := &h.timer
	if h.lease.pending() {
		w.lookAgain(t, w.expiry(h).Add(time.Millisecond), now)
		if !h.reported {
			w.lookAgain(t, w.grace, now)
		}
	}
	if !h.slotUntil.IsZero() {
		w.lookAgain(t, h.slotUntil, now)
	}
	if h.run == nil {
		return
	}
	if h.run.State == Reverting && h.rec.touched() && h.state() != Skipped {
		w.lookAgain(t, w.offlineAt(h), now)
	}
	switch h.state() {
	case Queued, Deferred, Healthy:
		if h.run.State == Executing && h.wave <= h.run.Wave {
			w.lookAgain(t, w.offlineAt(h), now)
		}
	}
	if h.rec != nil && h.rec.FailingSince != nil {
		w.lookAgain(t, h.rec.FailingSince.Add(w.limits.ProbeFailAfter), now)
		w.lookAgain(t, w.offlineAt(h), now)
	}
}

// await asks what holds a host whose state has changed without a check-in, and has it looked at again when that opens.
// One that stands in the queue of a budget is woken by that.
func (w *World) await(h *host, now time.Time) {
	if h.run == nil || !h.reported || h.waitsFor != nil || len(h.run.waves) == 0 {
		return
	}
	switch h.state() {
	case Queued, Skipped:
		w.lookAgain(&h.timer, w.about(h, now).blocked(offer).opens, now)
	case Healthy:
		w.lookAgain(&h.timer, w.about(h, now).blocked(soak).opens, now)
	}
}

// wakeRetry wakes a host whose back-off or old lease is over.
func (w *World) wakeRetry(h *host, now time.Time) {
	if h.run == nil || h.lease != nil || !h.reported || h.said.Closure == h.closure || w.offline(h, now) {
		return
	}
	if why := w.about(h, now).blocked(offer); why.holds() {
		w.lookAgain(&h.timer, why.opens, now)
		return
	}
	w.wake(h)
}
