package rollout

import (
	"fmt"
	"slices"
	"time"

	"nixfleet/pki"
	"nixfleet/roles/protocol"
)

// failureCode keeps the code of an earlier failure, or takes the given one.
func (h *host) failureCode(code string) string {
	if h.state() == Failed {
		return h.rec.Reason
	}
	return code
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
func (hs *hosts) fail(h *host, f fault, code, detail string, now time.Time) {
	r := h.run
	if h.lease != nil && h.lease.Intent == r.Intent {
		hs.w.leases.endLease(h, DispatchRolledBack, now)
	}
	switch st := h.state(); {
	case h.rec != nil && h.rec.Reason == CodeTolerated:
		hs.enter(h, Skipped, CodeTolerated, detail, now) // an operator has gone on without it
		return
	case st == Failed && f == releaseFault && (h.rec.Reason == CodeLost || h.rec.Reason == CodeUnconfirmed):
		// Now it is known what the silence meant.
	case st == Failed || st == Reverted:
		return
	}
	hs.enter(h, Failed, code, detail, now)
	if f == releaseFault {
		hs.w.rollouts.quarantine(h, code, detail, now)
	}
	hs.w.rollouts.applyPolicy(h, f, code, detail, now)
}

// applyPolicy halts or recalls the rollout in which a host failed, while there is something to stop. It recalls when as
// many hosts have failed as the policy wants, and halts before.
func (rs *rollouts) applyPolicy(h *host, f fault, code, detail string, now time.Time) {
	r := h.run
	few := r.threshold > 1 && r.failed() < r.threshold
	recall := r.revert && f != silentFault && !few
	if r.State != Executing && r.State != Planning && !(r.State == Halted && recall) {
		return
	}
	r.HaltReason = fmt.Sprintf("host %s: %s", h.name, code)
	if detail != "" {
		r.HaltReason += " (" + detail + ")"
	}
	if few && r.revert {
		r.HaltReason += fmt.Sprintf("; %d of %d failures from which on the policy recalls", r.failed(), r.threshold)
	}
	switch {
	case recall:
		r.State = Reverting
		rs.logRun(r, protocol.LogReverting, code, "", r.HaltReason, now)
		rs.recall(r, h, now)
	case r.State != Halted:
		r.State = Halted
		rs.logRun(r, protocol.LogHalted, code, "", r.HaltReason, now)
	}
	rs.w.changes.move(r)
}

// failed counts the hosts that failed. Those that fell silent are not among them, nor those without which an operator
// went on.
func (r *run) failed() (n int) {
	for i := range r.waves {
		n += r.waves[i].failed
	}
	return n
}

// recall looks at every touched host of a rollout but the one that failed, so that each is asked to go back. The one
// that failed is asked too where it still runs its target, as after a failed probe or compliance control.
func (rs *rollouts) recall(r *run, but *host, now time.Time) {
	for i := range r.waves {
		for _, x := range r.waves[i].hosts {
			if !x.rec.touched() {
				continue
			}
			if x != but {
				rs.w.hosts.settle(x, now)
			}
			if !broken(ruleRecallWakes) {
				rs.w.changes.wake(x)
			}
		}
	}
}

// quarantine stops offering the closure of a host on its channel.
func (rs *rollouts) quarantine(h *host, code, detail string, now time.Time) {
	k := quarantineKey{h.run.Channel, h.closure}
	if rs.quarantines[k] != nil {
		return
	}
	reason := code + " on " + h.name
	if detail != "" {
		reason += ": " + detail
	}
	q := &quarantine{Quarantine: Quarantine{Channel: k.channel, Closure: k.closure, Reason: reason, Since: now}}
	rs.quarantines[k] = q
	rs.w.changes.saveQuarantine(q)
	e := rs.event(h.run, protocol.LogQuarantined, code, now)
	e.Host, e.Detail = h.name, k.closure
	rs.w.changes.log(e)
}

func (rs *rollouts) clearQuarantine(q *quarantine, why, actor string, now time.Time) {
	q.Cleared = true
	rs.w.changes.saveQuarantine(q)
	delete(rs.quarantines, quarantineKey{q.Channel, q.Closure})
	rs.w.changes.log(protocol.Event{
		At: pki.At(now), Channel: q.Channel, Kind: protocol.LogQuarantineCleared,
		Actor: actor, Reason: why, Detail: q.Closure,
	})
}

// retryOrFail ends an attempt: the host is queued again until its attempts are used up. One whose attempts end
// for reasons of its own is then not waited for any more, and still offered its target now and then [A20, C17].
func (hs *hosts) retryOrFail(h *host, f fault, code, detail string, now time.Time) {
	if h.rec != nil && h.rec.Attempt >= hs.w.limits.MaxAttempts {
		if f == localFault {
			hs.enter(h, Skipped, code, detail, now)
			return
		}
		if code == CodeLeaseExpired {
			code = CodeUnconfirmed
		}
		hs.fail(h, f, code, detail, now)
		return
	}
	hs.enter(h, Queued, code, detail, now)
}

// hostLocal reports whether one of an agent's texts says that the attempt ended for a reason that is not the release.
// Such attempts are repeated with back-off and quarantine nothing [A5, A25].
func hostLocal(texts ...string) bool {
	return slices.ContainsFunc(texts, func(text string) bool {
		cause, _ := protocol.SplitCause(text)
		return cause.Blame() != protocol.BlameRelease
	})
}

// retryAt is when the next attempt may start: at once after the first, then after 1, 2, 4, ... 15 minutes.
// A failed fetch always costs a minute at least.
func (h *host) retryAt() time.Time {
	if h.rec == nil || h.rec.Attempt == 0 {
		return time.Time{}
	}
	n := h.rec.Attempt - 2
	switch own := h.rec.Reason == CodeFetchFailed || h.rec.Reason == CodeHostLocal; {
	case own && (h.rec.State == Queued || h.rec.State == Skipped):
		n++
	case h.rec.State == Queued && (h.rec.Reason == CodeLeaseExpired || h.rec.Reason == CodeRebootFellBack):
	default:
		return time.Time{}
	}
	if n < 0 {
		return time.Time{}
	}
	return h.rec.Since.Add(min(time.Minute<<min(n, 8), 15*time.Minute))
}
