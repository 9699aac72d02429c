package rollout

import (
	"fmt"
	"slices"
	"time"

	"nixfleet/roles/protocol"
)

// advance lets a rollout take the steps that are due.
func (rs *rollouts) advance(r *run, now time.Time) {
	if r.rel == nil || len(r.waves) == 0 {
		return
	}
	rs.keepTime(r, now)
	if r.State == Planning && rs.begin(r, now) {
		rs.openWave(r, now)
	}
	for r.State == Executing {
		if why := rs.whole(r, now).blocked(promote); why != nil {
			rs.w.timers.lookAgain(&r.timer, why, now)
			return
		}
		if r.Wave < len(r.waves)-1 {
			r.Wave++
			rs.openWave(r, now)
			continue
		}
		if r.working() {
			return
		}
		rs.converge(r, now)
	}
	if r.State == Reverting {
		rs.endRevert(r, now)
	}
}

// whole is the subject of questions about a whole rollout.
func (rs *rollouts) whole(r *run, now time.Time) subject { return subject{w: rs.w, run: r, now: now} }

// working reports whether late joiners of earlier waves are still on their way.
func (r *run) working() bool {
	for i := range r.waves {
		if r.waves[i].in(Queued, Dispatched, Activating, ConfirmWindow, Healthy, Deferred) > 0 {
			return true
		}
	}
	return false
}

// begin starts a planned rollout when the channels before it let it.
func (rs *rollouts) begin(r *run, now time.Time) bool {
	if r.Hold != nil || r.times.frozen(now) || rs.whole(r, now).channelEdge() != nil {
		return false
	}
	r.State = Executing
	return true
}

// openWave starts the clock of a wave, skips its absent hosts and wakes those that get their target.
func (rs *rollouts) openWave(r *run, now time.Time) {
	r.WaveSince = now
	if !rs.w.budgets.unheard.IsZero() && r.Wave == 0 && !r.OpenedAt.IsZero() {
		r.WaveSince = r.OpenedAt
	}
	opening := fmt.Sprintf("wave %d of %d, %s", r.Wave+1, len(r.waves), countText(len(r.waves[r.Wave].hosts), "host"))
	rs.logRun(r, protocol.LogWaveOpened, "", "", opening, now)
	for _, h := range r.waves[r.Wave].hosts {
		rs.w.hosts.settle(h, now)
	}
	rs.wakeOfferable(r, now)
	rs.w.changes.move(r)
}

// converge ends a rollout whose hosts have all soaked or are not waited for.
func (rs *rollouts) converge(r *run, now time.Time) {
	r.State = RolloutConverged
	r.TerminalAt = &now
	rs.logRun(r, protocol.LogConverged, "", "", "", now)
	for i := range r.waves {
		for _, h := range r.waves[i].hosts {
			if h.state() == Soaked {
				// The event above stands for them all.
				rs.w.hosts.edit(h, now, func(x *record) { x.State, x.Reason, x.Since, x.FailingSince = Converged, "", now, nil })
			}
		}
	}
	rs.passOn(r, now)
}

// passOn lets the channels that come after the one of this rollout notice that it is over.
func (rs *rollouts) passOn(r *run, now time.Time) {
	for _, ch := range sortedMap(rs.channels) {
		waits := slices.ContainsFunc(ch.after, func(e channelEdge) bool { return e.before.cur == r })
		switch {
		case !waits || ch.cur == nil:
		case ch.cur.State == Planning:
			rs.w.changes.move(ch.cur)
		default:
			rs.wakeOfferable(ch.cur, now)
		}
	}
}

// endRevert ends a recall when every touched host is back or absent.
func (rs *rollouts) endRevert(r *run, now time.Time) {
	for st, n := range r.touched {
		if n > 0 && st != Reverted.Index() && st != Skipped.Index() {
			return
		}
	}
	r.State = RolloutReverted
	r.TerminalAt = &now
	rs.logRun(r, protocol.LogReverted, "", "", r.HaltReason, now)
	rs.passOn(r, now)
}

// wakeOfferable wakes the hosts that would get a target now, as many as the budgets allow, and queues the rest
// at the budgets.
func (rs *rollouts) wakeOfferable(r *run, now time.Time) {
	if r.rel == nil || (r.State != Executing && r.State != RolloutConverged) {
		return
	}
	defer func() {
		for _, b := range rs.w.budgets.bySelector {
			b.planned = 0
		}
	}()
	last := r.Wave
	if r.State == RolloutConverged {
		last = len(r.waves) - 1
	}
	for i := range r.waves[:last+1] {
		if r.waves[i].in(Queued, Skipped) == 0 {
			continue
		}
		for _, h := range r.waves[i].hosts {
			if !h.offerable() || !h.contact.reported {
				continue
			}
			if rs.wakeOrQueue(h, now) {
				h.plan()
			}
		}
	}
}

// plan counts the slots that a host will take which was woken for its target.
func (h *host) plan() {
	for _, b := range h.decl.budgets {
		if !h.holds(b) {
			b.planned++
		}
	}
}

// offerable reports whether a host may be given its target: it waits for its turn, or is not waited for and gets it all
// the same when it can.
func (h *host) offerable() bool {
	switch h.state() {
	case Queued:
		return true
	case Skipped:
		return h.rec.Reason != CodeTolerated && !broken(ruleSkippedWoken)
	}
	return false
}

// wakeOrQueue wakes a host that would get its target now, or has it wait for what holds it.
func (rs *rollouts) wakeOrQueue(h *host, now time.Time) (woken bool) {
	why := rs.w.about(h, now).blocked(offer)
	switch {
	case why == nil:
		rs.w.changes.wake(h)
		return true
	case why.code == CodeBudget || why.code == CodeBudgetUnheard && !broken(ruleUnheardQueue):
		rs.w.budgets.queueUp(h, now)
	}
	rs.w.timers.lookAgain(&h.timer, why, now)
	return false
}

// queueUp lets a host wait at the first of its budgets that is full.
func (bs *budgets) queueUp(h *host, now time.Time) {
	for _, b := range h.decl.budgets {
		if b.full(bs.w, h, now) {
			bs.enqueue(h, b)
			return
		}
	}
}

// open is the highest open wave.
func (r *run) open() *wave { return &r.waves[min(r.Wave, len(r.waves)-1)] }

// in counts the hosts in any of the states.
func (v *wave) in(states ...HostState) int {
	n := 0
	for _, st := range states {
		n += v.counts[st.Index()]
	}
	return n
}

// failing counts the hosts of the waves that are open whose probes fail.
func (r *run) failing() (n int) {
	if broken(ruleAllWavesWell) {
		return r.open().failing
	}
	for i := range r.waves[:min(r.Wave+1, len(r.waves))] {
		n += r.waves[i].failing
	}
	return n
}

// proven reports whether at least one host of the rollout has soaked; without one it does not converge [C5].
func (r *run) proven() bool {
	for i := range r.waves {
		if r.waves[i].in(Soaked, Converged) > 0 {
			return true
		}
	}
	return false
}

func (rs *rollouts) absentUntil(r *run) time.Time {
	return r.WaveSince.Add(max(r.open().soak, rs.w.limits.OfflineAfter))
}

// soakEnd is when a host that became healthy at HealthySince has soaked.
func (r *run) soakEnd(h *host) time.Time {
	if broken(ruleSoakIsWhole) {
		return h.rec.HealthySince.Add(r.waves[h.wave].soak / 2)
	}
	return h.rec.HealthySince.Add(r.waves[h.wave].soak)
}
