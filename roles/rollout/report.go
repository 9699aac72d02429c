package rollout

import (
	"slices"
	"strings"
	"time"

	"nixfleet/nixops/fleet"
)

// Report takes an agent's event. Events that are not about a rollout of this host, and those whose signature
// does not let them count, change nothing.
func (w *World) Report(hostname string, r Report, now time.Time) Change {
	now = at(now)
	h := w.hosts[hostname]
	if h == nil || !r.Counts {
		return Change{}
	}
	w.Seen(hostname, now)
	w.report(h, r, now)
	if h.run != nil {
		w.settleReverted(h, now)
	}
	w.flush(now)
	w.arm(h, now)
	return w.finish()
}

func (w *World) report(h *host, r Report, now time.Time) {
	l := h.lease
	if l != nil && !w.names(l, r.RolloutID) {
		l = nil
	}
	// own: about the rollout that the host is in now.
	own := h.run != nil && (slices.Contains(h.run.IDs, r.RolloutID) || (r.RolloutID == "" && r.Closure != "" && r.Closure == h.closure))
	if r.Closure != "" && own && r.Closure != h.closure {
		return
	}
	if !own && l == nil {
		return
	}
	switch r.Event {
	case "activation-started":
		if l != nil {
			w.start(h, now)
		}
	case "activation-deferred":
		w.park(h, l, own, r.Reboots, now)
	case "activation-failed":
		if hostLocal(r.Phase, r.Reason) {
			w.attemptEnded(h, l, own, words(r), now)
		} else {
			w.faulted(h, l, own, releaseFault, CodeActivationFailed, words(r), now)
		}
	case "closure-quarantined":
		// A quarantine that an operator's retry is about to test says nothing new.
		if !h.retried() && !h.lease.pending() {
			w.faulted(h, l, own, releaseFault, CodeAgentQuarantine, words(r), now)
		}
	case "rollback-triggered":
		w.rolledBack(h, l, own, r, now)
	case "realise-failed", "verify-mismatch", "closure-signature-mismatch", "stale-target",
		"manifest-missing", "manifest-verify-failed", "manifest-mismatch":
		w.attemptEnded(h, l, own, r.Event+": "+words(r), now)
	case "compliance-failure":
		w.noncompliant(h, own, "compliance:"+r.Reason, now)
	case "runtime-gate-error":
		w.noncompliant(h, own, "runtime-gate:"+r.Reason, now)
	}
}

// words is what a report says, short enough for one sentence.
func words(r Report) string {
	var parts []string
	for _, p := range []string{r.Phase, r.Reason} {
		if p != "" {
			parts = append(parts, p)
		}
	}
	return brief(strings.Join(parts, ": "))
}

// brief bounds what a host may put into rows and events, in bytes.
func brief(s string) string {
	if len(s) > 200 {
		s = strings.ToValidUTF8(s[:200], "") + "..."
	}
	return s
}

// maxFailures bounds the outstanding failures of a host that are told apart: it
// names them itself.
const maxFailures = 200

// park keeps a staged target until its host has rebooted: no deadline runs and no slot is held, since nothing
// is disrupted and people set the pace [A17]. A host that reboots at once is disrupted, and keeps its slot.
func (w *World) park(h *host, l *lease, own, reboots bool, now time.Time) {
	if !l.pending() {
		return
	}
	l.State, l.SlotUntil = DispatchDeferred, now
	h.stagedBoot = h.bootID
	if reboots {
		l.SlotUntil = now.Add(w.limits.Lease + w.limits.ConfirmWindow + w.limits.Margin)
		w.hold(h, l.SlotUntil)
	} else {
		w.release(h, now)
	}
	w.saveLease(l)
	if own && l.Intent == h.run.Intent {
		w.enter(h, Deferred, CodeDeferred, "", now)
	}
}

// attemptEnded ends an attempt that failed for reasons of this host.
func (w *World) attemptEnded(h *host, l *lease, own bool, detail string, now time.Time) {
	if l != nil {
		w.endLease(h, DispatchRolledBack, now)
	}
	if !own {
		return
	}
	switch h.state() {
	case Dispatched, Activating, ConfirmWindow, Deferred:
		w.retryOrFail(h, localFault, CodeHostLocal, detail, now)
	}
}

// faulted counts a failure that the release may have caused.
func (w *World) faulted(h *host, l *lease, own bool, f fault, code, detail string, now time.Time) {
	if l != nil {
		w.endLease(h, DispatchRolledBack, now)
	}
	// A failure of a superseded rollout counts for the current one when that wants the same closure.
	if own || (h.run != nil && l != nil && l.Closure == h.closure) {
		w.fail(h, f, code, detail, now)
	}
}

// rolledBack: the host went back, by itself or because it was asked to.
func (w *World) rolledBack(h *host, l *lease, own bool, r Report, now time.Time) {
	// What its last check-in said no longer holds.
	switch h.phase = ""; {
	case h.rec != nil && own:
		h.running = h.rec.Previous
	case l != nil && h.running == l.Closure:
		h.running = ""
	}
	recalled := own && h.rec.touched() && (h.run.State == Reverting || h.run.State == RolloutReverted)
	switch {
	case recalled || (own && h.state() == Failed):
		if !hostLocal(r.Reason) && !recalled {
			w.fail(h, releaseFault, CodeRolledBack, words(r), now)
		}
		if l != nil {
			w.endLease(h, DispatchRolledBack, now)
		}
		w.enter(h, Reverted, h.failureCode(CodeReverting), words(r), now)
	case hostLocal(r.Reason):
		w.attemptEnded(h, l, own, words(r), now)
	case l != nil:
		w.faulted(h, l, own, releaseFault, CodeRolledBack, words(r), now)
		if own {
			w.enter(h, Reverted, CodeRolledBack, "", now)
		}
	case own && (h.state() == Healthy || h.state() == Soaked):
		// It gave up what it had confirmed.
		w.fail(h, releaseFault, CodeRolledBack, words(r), now)
		w.enter(h, Reverted, CodeRolledBack, "", now)
	}
}

// noncompliant counts distinct outstanding failures, however often they are told [C15]. They are settled by a new
// intent or by a retry.
func (w *World) noncompliant(h *host, own bool, key string, now time.Time) {
	key = brief(key)
	if !own || (h.rec != nil && (len(h.rec.Failures) >= maxFailures || slices.Contains(h.rec.Failures, key))) {
		return
	}
	w.edit(h, now, func(r *record) {
		i, _ := slices.BinarySearch(r.Failures, key)
		r.Failures = slices.Insert(slices.Clone(r.Failures), i, key)
	})
	e := w.event(h.run, EventCompliance, CodeComplianceFailed, now)
	e.Host, e.Detail = h.name, key
	w.log(e)
	switch h.state() {
	case Converged, Queued, Skipped, Failed, Reverted:
	default:
		if h.run.complianceMode == fleet.ModeEnforce {
			w.fail(h, complianceFault, CodeComplianceFailed, key, now)
		}
	}
}
