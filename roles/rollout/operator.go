package rollout

import (
	"errors"
	"fmt"
	"slices"
	"time"

	"nixfleet/roles/protocol"
)

// Errors of operator actions. They are wrapped with what was asked for.
var (
	ErrNoRollout = errors.New("no such rollout")
	ErrNoHost    = errors.New("no such host in the current release")
	ErrAction    = errors.New("unknown action")
	ErrOver      = errors.New("the rollout is over")
	ErrRecalled  = errors.New("the rollout was rolled back; only a new release can replace it")
	ErrBusy      = errors.New("the host is activating")
)

// find a rollout by any of its ids.
func (rs *rollouts) byID(id string) *run {
	for _, ch := range sortedMap(rs.channels) {
		if ch.cur != nil && slices.Contains(ch.cur.IDs, id) {
			return ch.cur
		}
		for _, r := range ch.past {
			if slices.Contains(r.IDs, id) {
				return r
			}
		}
	}
	return nil
}

// IDs are all rollout ids of the rollout that has this one, oldest first; nil when none has.
func (w *World) IDs(id string) []string {
	if r := w.rollouts.byID(id); r != nil {
		return slices.Clone(r.IDs)
	}
	return nil
}

// Hold pauses, resumes or cancels a rollout. A paused one starts nothing and opens no wave; what is in flight
// ends, and soaks go on. Resuming a halted rollout means going on without the hosts that failed, and resuming
// one whose wave is unproven without those that fell silent. A cancelled one is over, unless it is resumed: while
// nothing newer has been released it is the only way on, since the same release again is the same rollout.
func (w *World) Hold(rolloutID, action, by, reason string, now time.Time) (Change, error) {
	now = at(now)
	r := w.rollouts.byID(rolloutID)
	if r == nil {
		return Change{}, fmt.Errorf("%s rollout %s: %w", action, rolloutID, ErrNoRollout)
	}
	again := r.State == Cancelled && action == protocol.ActionResume && w.rollouts.channel(r.Channel).cur == r
	switch r.State {
	case RolloutSuperseded, Cancelled, RolloutConverged:
		if again {
			break
		}
		return Change{}, fmt.Errorf("%s rollout %s (%s): %w", action, rolloutID, r.State, ErrOver)
	}
	switch action {
	case protocol.ActionPause:
		r.Hold = &Hold{Action: protocol.ActionPause, By: by, Reason: reason, At: now}
		w.rollouts.logRun(r, protocol.LogPaused, CodePaused, by, reason, now)
	case protocol.ActionCancel:
		r.State, r.HaltReason, r.Hold = Cancelled, reason, nil
		r.TerminalAt = &now
		w.rollouts.logRun(r, protocol.LogCancelled, CodeCancelled, by, reason, now)
		w.rollouts.passOn(r, now)
	case protocol.ActionResume:
		if r.State == Reverting || r.State == RolloutReverted {
			return Change{}, fmt.Errorf("resume rollout %s: %w", rolloutID, ErrRecalled)
		}
		w.rollouts.resume(r, by, reason, now)
	default:
		return Change{}, fmt.Errorf("%s rollout %s: %w", action, rolloutID, ErrAction)
	}
	w.changes.move(r)
	w.rollouts.flush(now)
	return w.finish(), nil
}

func (rs *rollouts) resume(r *run, by, reason string, now time.Time) {
	paused := r.Hold != nil
	r.Hold = nil
	rs.logRun(r, protocol.LogResumed, "", by, reason, now)
	if r.State == Halted || r.State == Cancelled {
		r.State, r.HaltReason, r.TerminalAt = Executing, "", nil
		if r.WaveSince.IsZero() { // it had not even begun
			r.State = Planning
		}
	} else if paused {
		rs.wakeOfferable(r, now)
		return
	}
	for i := range r.waves {
		if i > r.Wave {
			break
		}
		for _, h := range r.waves[i].hosts {
			st := h.state()
			if st == Failed || st == Reverted || (st == Skipped && h.rec.touched() && h.rec.Reason != CodeTolerated) {
				rs.w.hosts.enter(h, Skipped, CodeTolerated, "by "+by, now)
			} else {
				rs.w.hosts.settle(h, now)
			}
		}
	}
	rs.wakeOfferable(r, now)
}

// Revoked notes that no certificate of a host is accepted any more: what it does is not waited for, and it holds no
// slot for its soak. When it is heard of again it is taken in like another that was away.
func (w *World) Revoked(hostname string, now time.Time) Change {
	now = at(now)
	if h := w.hosts.byName[hostname]; h != nil {
		w.parted(h)
		w.forsake(h, now)
		w.rollouts.flush(now)
	}
	return w.finish()
}

// forsake ends the soak of a host that cannot prove it any more.
func (w *World) forsake(h *host, now time.Time) {
	if h.soaking() {
		w.hosts.enter(h, Skipped, CodeOffline, "its certificates are revoked", now)
		w.hosts.edit(h, now, func(r *record) { r.HealthySince = nil })
	}
}

// Retry gives one host one more attempt at its target: it clears its failure and the quarantine of its closure,
// and lets this host pass a halt. Nothing else starts because of it. A host that has not had its turn yet still
// waits for its wave.
func (w *World) Retry(hostname, by, reason string, now time.Time) (Change, error) {
	now = at(now)
	h := w.hosts.byName[hostname]
	switch {
	case h == nil || h.run == nil:
		return Change{}, fmt.Errorf("retry host %s: %w", hostname, ErrNoHost)
	case h.run.State == Reverting || h.run.State == RolloutReverted:
		return Change{}, fmt.Errorf("retry host %s: %w", hostname, ErrRecalled)
	case h.run.State == Cancelled:
		return Change{}, fmt.Errorf("retry host %s: %w", hostname, ErrOver)
	case h.lease.pending() && h.state() != Dispatched:
		return Change{}, fmt.Errorf("retry host %s: %w", hostname, ErrBusy)
	}
	w.parted(h)
	e := w.rollouts.event(h.run, protocol.LogRetry, CodeRetry, now)
	e.Host, e.Actor, e.Detail = h.name, by, reason
	w.changes.log(e)
	if q := w.rollouts.quarantines[quarantineKey{h.run.Channel, h.closure}]; q != nil {
		w.rollouts.clearQuarantine(q, CodeRetry, by, now)
	}
	switch st := h.state(); {
	case (st == Queued || st == Skipped) && h.wave > h.run.Wave:
		if h.rec != nil {
			w.hosts.edit(h, now, func(r *record) { r.Attempt, r.Failures = 0, nil })
		}
	case st == Healthy || st == Soaked || st == Converged || st == Dispatched || st == Deferred:
		if h.rec.Failures != nil {
			w.hosts.edit(h, now, func(r *record) { r.Failures = nil })
		}
	default:
		w.hosts.enter(h, Queued, CodeRetry, "by "+by, now)
		w.hosts.edit(h, now, func(r *record) { r.Attempt, r.Failures = 0, nil })
		h.said.Fetch.Result, h.said.Fetch.Rollout = "", ""
		w.changes.wake(h)
	}
	w.hosts.settle(h, now)
	w.rollouts.flush(now)
	return w.finish(), nil
}
