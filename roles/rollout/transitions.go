package rollout

import (
	"fmt"
	"slices"
	"strings"
	"time"
)

func (h *host) state() HostState {
	if h.rec == nil {
		return Queued
	}
	return h.rec.State
}

// record returns the host's row in its rollout, making it when needed.
func (w *World) record(h *host, now time.Time) *record {
	if h.rec == nil {
		h.rec = &record{HostRecord: HostRecord{
			Host: h.name, Intent: h.run.Intent, Channel: h.run.Channel, State: Queued, Wave: h.wave, Closure: h.closure, Since: now,
		}}
	}
	return h.rec
}

// count adds (sign 1) or removes (sign -1) a host in the counters of its rollout.
func (r *run) count(h *host, sign int) {
	st := h.state()
	wv := &r.waves[h.wave]
	wv.counts[st.index()] += sign
	if h.rec == nil {
		return
	}
	if h.rec.touched() {
		r.touched[st.index()] += sign
		if st == Skipped && h.rec.Reason != CodeTolerated {
			wv.silent += sign
		}
	}
	if len(h.rec.Failures) > 0 {
		wv.noncompliant += sign
	}
}

// edit changes a host's row and keeps every counter right.
func (w *World) edit(h *host, now time.Time, change func(*record)) {
	h.run.count(h, -1)
	change(w.record(h, now))
	h.run.count(h, 1)
	w.saveRecord(h.rec)
}

// enter moves a host to a state, for a reason, and lets its rollout and its neighbours notice.
func (w *World) enter(h *host, st HostState, code, detail string, now time.Time) {
	from := h.state()
	if from == st && h.rec != nil && h.rec.Reason == code {
		return
	}
	w.edit(h, now, func(r *record) {
		r.State, r.Reason, r.Since = st, code, now
		switch st {
		case Healthy, Soaked, Converged, Skipped:
		default:
			r.HealthySince = nil
		}
		if st != Healthy && st != Soaked {
			r.FailingSince = nil
		}
	})
	if st != Queued {
		h.waitsFor = nil
	}
	if from != st || code != "" {
		e := w.event(h.run, EventHost, code, now)
		e.Host, e.Detail = h.name, fmt.Sprintf("%s to %s", from, st)
		if detail != "" {
			e.Detail += ": " + detail
		}
		w.log(e)
	}
	w.move(h.run)
	w.passOn(h, from, st, now)
}

// passOn tells the hosts that come after this one by an edge.
func (w *World) passOn(h *host, from, to HostState, now time.Time) {
	for _, g := range h.before {
		if g.run != h.run {
			continue
		}
		switch {
		case to == Soaked && from != Converged:
			if g.state() == Skipped && g.rec.Reason == CodeHostEdge {
				w.enter(g, Queued, CodeReturned, "", now)
			}
			w.wake(g)
		case to == Skipped && g.state() == Queued:
			w.enter(g, Skipped, CodeHostEdge, "host "+h.name+", which comes first, is not waited for", now)
		case from == Skipped && g.state() == Skipped && g.rec.Reason == CodeHostEdge:
			w.enter(g, Queued, CodeReturned, "", now)
		}
	}
}

func (w *World) event(r *run, kind, code string, now time.Time) Event {
	return Event{At: now, Intent: r.Intent, RolloutID: r.RolloutID, Channel: r.Channel, Kind: kind, Reason: code}
}

// logRun notes something about the whole rollout.
func (w *World) logRun(r *run, kind, code, actor, detail string, now time.Time) {
	e := w.event(r, kind, code, now)
	e.Actor, e.Detail = actor, detail
	w.log(e)
	w.saveRun(r)
}

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
	if h.run != nil {
		w.settleInRun(h, now)
	}
	w.arm(h, now)
}

func (w *World) settleInRun(h *host, now time.Time) {
	r := h.run
	onTarget := h.reported && h.running == h.closure
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
			w.enter(h, Queued, CodeSoakVoided, "it runs "+h.running, now)
		case w.probesFailed(h, now):
			w.fail(h, releaseFault, CodeProbesFailed, "health probes fail since "+clockText(*h.rec.FailingSince), now)
		case st == Healthy && away && h.wave <= r.Wave && r.State == Executing:
			w.enter(h, Skipped, CodeOffline, "silent since "+clockText(h.seen), now)
		case st == Healthy && w.quietBlocked(soak, h, now) == nil:
			w.enter(h, Soaked, "", "", now)
			if r.State == RolloutConverged {
				w.enter(h, Converged, "", "", now)
			}
		}
	case Converged:
		if h.reported && !onTarget {
			w.enter(h, Queued, CodeSoakVoided, "it runs "+h.running, now)
		}
	case Deferred:
		switch {
		case away && h.wave <= r.Wave && r.State == Executing:
			w.enter(h, Skipped, CodeOffline, "silent since "+clockText(h.seen), now)
		case h.reported && !onTarget && h.stagedBoot != "" && h.bootID != h.stagedBoot:
			w.endLease(h, DispatchRolledBack, now)
			w.retryOrFail(h, releaseFault, CodeRebootFellBack, "it rebooted into "+h.running, now)
		case h.reported && h.stagedBoot == "" && !onTarget:
			h.stagedBoot = h.bootID
		}
	}
	w.settleReverted(h, now)
}

// quietBlocked is blocked without sentences.
func (w *World) quietBlocked(q question, h *host, now time.Time) *Reason {
	was := w.terse
	w.terse = true
	r := w.blocked(q, subject{h, h.run}, now)
	w.terse = was
	return r
}

// find takes a host that runs its target without a lease: restored from its signed confirm time when there is
// one, else healthy from the moment it is first seen well in this rollout.
func (w *World) find(h *host, now time.Time) {
	switch {
	case h.state() == Skipped && h.rec.HealthySince != nil:
		w.enter(h, Healthy, CodeReturned, "", now)
	case !h.attested.IsZero():
		since := later(h.attested, h.run.OpenedAt)
		if since.After(now) {
			since = now
		}
		w.enter(h, Healthy, CodeAttested, "confirmed at "+clockText(h.attested), now)
		w.edit(h, now, func(r *record) {
			r.HealthySince = &since
			r.Attempt = max(r.Attempt, 1)
		})
	case h.health == well:
		w.enter(h, Healthy, CodeFound, "", now)
		w.edit(h, now, func(r *record) { since := now; r.HealthySince = &since })
	case h.state() == Skipped && h.rec.Reason != CodeTolerated:
		w.enter(h, Queued, CodeReturned, "", now)
	}
	w.settleHealth(h, now)
	if h.state() == Healthy && w.quietBlocked(soak, h, now) == nil {
		w.settleInRun(h, now)
	}
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
	case h.held != "":
		w.enter(h, Skipped, CodeHeld, h.held, now)
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
		if away || (h.rec.Reason == CodeHeld && h.held != "") {
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
	case h.reported && !away && h.running != h.closure:
		if h.lease != nil && h.lease.Intent == r.Intent {
			w.endLease(h, DispatchCancelled, now)
		}
		w.enter(h, Reverted, h.failureCode(CodeReverting), "it runs "+h.running, now)
	}
}

// failureCode keeps the code of an earlier failure, or takes the given one.
func (h *host) failureCode(code string) string {
	if h.state() == Failed {
		return h.rec.Reason
	}
	return code
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

// Failures by whose fault they are.
type fault int

const (
	releaseFault    fault = iota // quarantines the closure and acts by the channel's policy
	silentFault                  // halts; silence does not say what is wrong
	complianceFault              // acts by the policy and quarantines nothing
	localFault                   // this host's own, which says nothing about the release
)

// fail records that the target did not work on this host and applies the failure policy.
func (w *World) fail(h *host, f fault, code, detail string, now time.Time) {
	r := h.run
	if h.lease != nil && h.lease.Intent == r.Intent {
		w.endLease(h, DispatchRolledBack, now)
	}
	switch st := h.state(); {
	case st == Failed && f == releaseFault && (h.rec.Reason == CodeLost || h.rec.Reason == CodeUnconfirmed):
		// Now it is known what the silence meant.
	case st == Failed || st == Reverted:
		return
	}
	w.enter(h, Failed, code, detail, now)
	if f == releaseFault {
		w.quarantine(h, code, detail, now)
	}
	if r.State != Executing && r.State != Planning && !(r.State == Halted && r.revert && f != silentFault) {
		return
	}
	r.HaltReason = fmt.Sprintf("host %s: %s", h.name, code)
	if detail != "" {
		r.HaltReason += " (" + detail + ")"
	}
	if r.revert && f != silentFault {
		r.State = Reverting
		w.logRun(r, EventReverting, code, "", r.HaltReason, now)
		for i := range r.waves {
			for _, x := range r.waves[i].hosts {
				if x != h && x.rec.touched() {
					w.settle(x, now)
					w.wake(x)
				}
			}
		}
	} else if r.State != Halted {
		r.State = Halted
		w.logRun(r, EventHalted, code, "", r.HaltReason, now)
	}
	w.move(r)
}

// quarantine stops offering the closure of a host on its channel.
func (w *World) quarantine(h *host, code, detail string, now time.Time) {
	k := quarantineKey{h.run.Channel, h.closure}
	if w.quarantines[k] != nil {
		return
	}
	reason := code + " on " + h.name
	if detail != "" {
		reason += ": " + detail
	}
	q := &quarantine{Quarantine: Quarantine{Channel: k.channel, Closure: k.closure, Reason: reason, Since: now}}
	w.quarantines[k] = q
	w.saveQuarantine(q)
	e := w.event(h.run, EventQuarantined, code, now)
	e.Host, e.Detail = h.name, k.closure
	w.log(e)
}

func (w *World) clearQuarantine(q *quarantine, why, actor string, now time.Time) {
	q.Cleared = true
	w.saveQuarantine(q)
	delete(w.quarantines, quarantineKey{q.Channel, q.Closure})
	w.log(Event{At: now, Channel: q.Channel, Kind: EventQuarantineCleared, Actor: actor, Reason: why, Detail: q.Closure})
}

// retryOrFail ends an attempt: the host is queued again until its attempts are used up. One whose attempts end
// for reasons of its own is then not waited for any more, and still offered its target now and then [A20, C17].
func (w *World) retryOrFail(h *host, f fault, code, detail string, now time.Time) {
	if h.rec != nil && h.rec.Attempt >= w.limits.MaxAttempts {
		if f == localFault {
			w.enter(h, Skipped, code, detail, now)
			return
		}
		if code == CodeLeaseExpired {
			code = CodeUnconfirmed
		}
		w.fail(h, f, code, detail, now)
		return
	}
	w.enter(h, Queued, code, detail, now)
}

// endLease closes the open dispatch. Unless it was confirmed or staged the slot stays held until SlotUntil.
func (w *World) endLease(h *host, state string, now time.Time) {
	l := h.lease
	if l == nil {
		return
	}
	l.State = state
	w.saveLease(l)
	h.lease, h.stagedBoot = nil, ""
	switch state {
	case DispatchConfirmed:
		l.ConfirmedAt = &now
		h.done = l
		w.release(h, now)
	default:
		h.ended = l
	}
	if h.prior != nil && (h.run == nil || l.Intent != h.run.Intent) {
		h.prior = nil
	}
}

// expiry is when a dispatch is over. One that has begun and whose host is silent gets the margin on top: an agent
// that undoes at its own deadline needs a moment to say why.
func (w *World) expiry(h *host) time.Time {
	if st := h.state(); (st == Activating || st == ConfirmWindow) && w.offline(h, h.lease.ConfirmDeadline) {
		return h.lease.ConfirmDeadline.Add(w.limits.Margin)
	}
	return h.lease.ConfirmDeadline
}

// expire ends a dispatch that was not confirmed in time.
func (w *World) expire(h *host, now time.Time) {
	l := h.lease
	own := h.run != nil && l.Intent == h.run.Intent
	w.endLease(h, DispatchRolledBack, now)
	e := Event{At: now, Intent: l.Intent, RolloutID: l.RolloutID, Channel: l.Channel, Host: h.name, Kind: EventLeaseExpired, Reason: CodeLeaseExpired}
	e.Detail = "not confirmed by " + clockText(l.ConfirmDeadline)
	w.log(e)
	if !own {
		w.wake(h)
		return
	}
	switch st := h.state(); st {
	case Dispatched, Activating, ConfirmWindow:
		switch {
		case st != Dispatched && w.offline(h, now):
			w.fail(h, silentFault, CodeLost, "silent since it started to activate", now)
		case w.offline(h, now):
			w.enter(h, Queued, CodeLeaseExpired, "", now)
		default:
			w.retryOrFail(h, silentFault, CodeLeaseExpired, "", now)
		}
	}
}

// start notes that an activation has begun: its confirm window runs from now.
func (w *World) start(h *host, now time.Time) {
	l := h.lease
	if !l.pending() {
		return
	}
	l.ConfirmDeadline = now.Add(w.limits.ConfirmWindow)
	l.SlotUntil = later(l.SlotUntil, l.ConfirmDeadline.Add(w.limits.Margin))
	w.hold(h, l.SlotUntil)
	w.saveLease(l)
	if h.run != nil && l.Intent == h.run.Intent && h.state() == Dispatched {
		w.enter(h, Activating, "", "", now)
	}
}

// advance lets a rollout take the steps that are due.
func (w *World) advance(r *run, now time.Time) {
	if r.rel == nil || len(r.waves) == 0 {
		return
	}
	if r.State == Planning && w.begin(r, now) {
		w.openWave(r, now)
	}
	for r.State == Executing {
		if p := w.blockedRun(r, now); p != nil {
			if p.Code == CodeWaveAbsent {
				if end := w.absentUntil(r); end.After(now) {
					w.schedule(&r.timer, end)
				}
			}
			return
		}
		if r.Wave < len(r.waves)-1 {
			r.Wave++
			w.openWave(r, now)
			continue
		}
		if w.working(r) {
			return
		}
		w.converge(r, now)
	}
	if r.State == Reverting {
		w.endRevert(r, now)
	}
}

func (w *World) blockedRun(r *run, now time.Time) *Reason {
	was := w.terse
	w.terse = true
	p := w.blocked(promote, subject{run: r}, now)
	w.terse = was
	return p
}

// working: late joiners of earlier waves are still on their way.
func (w *World) working(r *run) bool {
	for i := range r.waves {
		c := &r.waves[i].counts
		for _, st := range []HostState{Queued, Dispatched, Activating, ConfirmWindow, Healthy, Deferred} {
			if c[st.index()] > 0 {
				return true
			}
		}
	}
	return false
}

// begin starts a planned rollout when the channels before it let it.
func (w *World) begin(r *run, now time.Time) bool {
	was := w.terse
	w.terse = true
	held := gateChannelEdge(w, subject{run: r}, now) != nil
	w.terse = was
	if held || r.Hold != nil {
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
	w.logRun(r, EventWaveOpened, "", "", fmt.Sprintf("wave %d of %d, %s", r.Wave, len(r.waves), countText(len(r.waves[r.Wave].hosts), "host")), now)
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
	w.logRun(r, EventConverged, "", "", "", now)
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
		if n > 0 && st != Reverted.index() && st != Skipped.index() {
			return
		}
	}
	r.State = RolloutReverted
	r.TerminalAt = &now
	w.logRun(r, EventRolloutReverted, "", "", r.HaltReason, now)
}

// wakeOfferable wakes the hosts that would get a target now, as many as the budgets allow, and queues the rest
// at the budgets.
func (w *World) wakeOfferable(r *run, now time.Time) {
	if r.rel == nil || (r.State != Executing && r.State != RolloutConverged) {
		return
	}
	was := w.terse
	w.terse = true
	defer func() {
		w.terse = was
		for _, b := range w.budgets {
			b.planned = 0
		}
	}()
	last := r.Wave
	if r.State == RolloutConverged {
		last = len(r.waves) - 1
	}
	for i := range r.waves[:last+1] {
		if r.waves[i].counts[Queued.index()] == 0 {
			continue
		}
		for _, h := range r.waves[i].hosts {
			if h.state() != Queued || !h.reported {
				continue
			}
			p := w.blocked(offer, subject{h, r}, now)
			switch {
			case p == nil:
				w.wake(h)
				for _, b := range h.budgets {
					b.planned++
				}
			case p.Code == CodeBudget:
				w.queueUp(h, now)
			}
		}
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

// wakeRetry wakes a host whose back-off or old lease is over.
func (w *World) wakeRetry(h *host, now time.Time) {
	if h.run != nil && h.lease == nil && h.reported && h.running != h.closure && !w.offline(h, now) && w.quietBlocked(offer, h, now) == nil {
		w.wake(h)
	}
}

// hostLocal: the agent's words say that the attempt ended for a reason of the host, not of the release.
func hostLocal(words ...string) bool {
	for _, word := range words {
		for _, l := range hostLocalWords {
			if strings.HasPrefix(word, l) {
				return true
			}
		}
	}
	return false
}
