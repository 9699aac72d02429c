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
func (w *World) fail(h *host, f fault, code, detail string, now time.Time) {
	r := h.run
	if h.lease != nil && h.lease.Intent == r.Intent {
		w.endLease(h, DispatchRolledBack, now)
	}
	switch st := h.state(); {
	case h.rec != nil && h.rec.Reason == CodeTolerated:
		w.enter(h, Skipped, CodeTolerated, detail, now) // an operator has gone on without it
		return
	case st == Failed && f == releaseFault && (h.rec.Reason == CodeLost || h.rec.Reason == CodeUnconfirmed):
		// Now it is known what the silence meant.
	case st == Failed || st == Reverted:
		return
	}
	w.enter(h, Failed, code, detail, now)
	if f == releaseFault {
		w.quarantine(h, code, detail, now)
	}
	w.applyPolicy(h, f, code, detail, now)
}

// applyPolicy halts or recalls the rollout in which a host failed, while there is something to stop.
func (w *World) applyPolicy(h *host, f fault, code, detail string, now time.Time) {
	r := h.run
	recall := r.revert && f != silentFault
	if r.State != Executing && r.State != Planning && !(r.State == Halted && recall) {
		return
	}
	r.HaltReason = fmt.Sprintf("host %s: %s", h.name, code)
	if detail != "" {
		r.HaltReason += " (" + detail + ")"
	}
	switch {
	case recall:
		r.State = Reverting
		w.logRun(r, protocol.LogReverting, code, "", r.HaltReason, now)
		w.recall(r, h, now)
	case r.State != Halted:
		r.State = Halted
		w.logRun(r, protocol.LogHalted, code, "", r.HaltReason, now)
	}
	w.move(r)
}

// recall looks at every touched host of a rollout but one, so that each is asked to go back.
func (w *World) recall(r *run, but *host, now time.Time) {
	for i := range r.waves {
		for _, x := range r.waves[i].hosts {
			if x != but && x.rec.touched() {
				w.settle(x, now)
				w.wake(x)
			}
		}
	}
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
	e := w.event(h.run, protocol.LogQuarantined, code, now)
	e.Host, e.Detail = h.name, k.closure
	w.log(e)
}

func (w *World) clearQuarantine(q *quarantine, why, actor string, now time.Time) {
	q.Cleared = true
	w.saveQuarantine(q)
	delete(w.quarantines, quarantineKey{q.Channel, q.Closure})
	w.log(protocol.Event{At: pki.At(now), Channel: q.Channel, Kind: protocol.LogQuarantineCleared, Actor: actor, Reason: why, Detail: q.Closure})
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

// hostLocal reports whether one of an agent's texts says that the attempt ended for a reason that is not the release.
// Such attempts are repeated with back-off and quarantine nothing [A5, A25].
func hostLocal(texts ...string) bool {
	return slices.ContainsFunc(texts, func(text string) bool {
		cause, _ := protocol.SplitCause(text)
		return cause.Blame() != protocol.BlameRelease
	})
}
