package rollout

import (
	"fmt"
	"slices"
	"time"

	"nixfleet/roles/protocol"
)

// advance lets a rollout take the steps that are due.
func (w *World) advance(r *run, now time.Time) {
	if r.rel == nil || len(r.waves) == 0 {
		return
	}
	if r.State == Planning && w.begin(r, now) {
		w.openWave(r, now)
	}
	for r.State == Executing {
		if why := w.whole(r, now).blocked(promote); why.holds() {
			w.lookAgain(&r.timer, why.opens, now)
			return
		}
		if r.Wave < len(r.waves)-1 {
			r.Wave++
			w.openWave(r, now)
			continue
		}
		if r.working() {
			return
		}
		w.converge(r, now)
	}
	if r.State == Reverting {
		w.endRevert(r, now)
	}
}

// whole is the subject of questions about a whole rollout.
func (w *World) whole(r *run, now time.Time) subject { return subject{w: w, run: r, now: now} }

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
func (w *World) begin(r *run, now time.Time) bool {
	if r.Hold != nil || w.whole(r, now).channelEdge().holds() {
		return false
	}
	r.State = Executing
	return true
}

// openWave starts the clock of a wave, skips its absent hosts and wakes those that get their target.
func (w *World) openWave(r *run, now time.Time) {
	r.WaveSince = now
	if !w.unheard.IsZero() && r.Wave == 0 && !r.OpenedAt.IsZero() {
		r.WaveSince = r.OpenedAt
	}
	w.logRun(r, protocol.LogWaveOpened, "", "", fmt.Sprintf("wave %d of %d, %s", r.Wave, len(r.waves), countText(len(r.waves[r.Wave].hosts), "host")), now)
	for _, h := range r.waves[r.Wave].hosts {
		w.settle(h, now)
	}
	w.wakeOfferable(r, now)
	w.move(r)
}

// converge ends a rollout whose hosts have all soaked or are not waited for.
func (w *World) converge(r *run, now time.Time) {
	r.State = RolloutConverged
	r.TerminalAt = &now
	w.logRun(r, protocol.LogConverged, "", "", "", now)
	for i := range r.waves {
		for _, h := range r.waves[i].hosts {
			if h.state() == Soaked {
				// The event above stands for them all.
				w.edit(h, now, func(x *record) { x.State, x.Reason, x.Since, x.FailingSince = Converged, "", now, nil })
			}
		}
	}
	for _, ch := range sortedMap(w.channels) {
		if ch.cur != nil && ch.cur.State == Planning && slices.ContainsFunc(ch.after, func(e channelEdge) bool { return e.before.cur == r }) {
			w.move(ch.cur)
		}
	}
}

// endRevert ends a recall when every touched host is back or absent.
func (w *World) endRevert(r *run, now time.Time) {
	for st, n := range r.touched {
		if n > 0 && st != Reverted.Index() && st != Skipped.Index() {
			return
		}
	}
	r.State = RolloutReverted
	r.TerminalAt = &now
	w.logRun(r, protocol.LogReverted, "", "", r.HaltReason, now)
}

// wakeOfferable wakes the hosts that would get a target now, as many as the budgets allow, and queues the rest
// at the budgets.
func (w *World) wakeOfferable(r *run, now time.Time) {
	if r.rel == nil || (r.State != Executing && r.State != RolloutConverged) {
		return
	}
	defer func() {
		for _, b := range w.budgets {
			b.planned = 0
		}
	}()
	last := r.Wave
	if r.State == RolloutConverged {
		last = len(r.waves) - 1
	}
	for i := range r.waves[:last+1] {
		if r.waves[i].counts[Queued.Index()] == 0 {
			continue
		}
		for _, h := range r.waves[i].hosts {
			if h.state() != Queued || !h.reported {
				continue
			}
			w.wakeOrQueue(h, now)
		}
	}
}

// wakeOrQueue wakes a host that would get its target now, or has it wait for what holds it.
func (w *World) wakeOrQueue(h *host, now time.Time) {
	why := w.about(h, now).blocked(offer)
	switch {
	case !why.holds():
		w.wake(h)
		for _, b := range h.budgets {
			if !h.holds(b) {
				b.planned++
			}
		}
	case why.code == CodeBudget:
		w.queueUp(h, now)
	default:
		w.lookAgain(&h.timer, why.opens, now)
	}
}

// queueUp lets a host wait at the first of its budgets that is full.
func (w *World) queueUp(h *host, now time.Time) {
	for _, b := range h.budgets {
		if b.full(w, h, now) {
			w.enqueue(h, b)
			return
		}
	}
}
