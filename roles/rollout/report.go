package rollout

import (
	"slices"
	"strings"
	"time"

	"nixfleet/nixops/fleet"
	"nixfleet/roles/protocol"
)

// Report takes an agent's event. Events that are not about a rollout of this host, and those whose signature
// does not let them count, change nothing.
func (w *World) Report(hostname string, r Report, now time.Time) Change {
	now = at(now)
	h := w.hosts.byName[hostname]
	if h == nil || !r.Counts || h.doubled() {
		return Change{}
	}
	w.Seen(hostname, now)
	w.hosts.report(h, r, now)
	if h.run != nil {
		w.hosts.settleReverted(h, now)
	}
	w.rollouts.flush(now)
	w.hosts.arm(h, now)
	w.hosts.await(h, now)
	return w.finish()
}

// told is a report with what it is about.
type told struct {
	Report
	// lease is the open dispatch that it names; nil when it names none.
	lease *lease
	// own says that it is about the rollout that the host is in now.
	own bool
	// earlier says that another dispatch has followed the one that it is about.
	earlier bool
	// fault says that it counts as a failure of the release, when it is one.
	fault bool
}

// asked reports whether the host did what the control plane asked it to.
func (t told) asked() bool {
	cause, _ := protocol.SplitCause(t.Reason)
	return cause == protocol.CauseRecalled
}

// toldBy finds what a report is about.
func (rs *rollouts) toldBy(h *host, r Report) told {
	t := told{Report: r, lease: h.lease}
	if t.lease != nil && !rs.names(t.lease, r.RolloutID) {
		t.lease = nil
	}
	declared := r.Closure != "" && r.Closure == h.closure
	t.own = h.run != nil && (slices.Contains(h.run.IDs, r.RolloutID) || (r.RolloutID == "" && declared))
	if r.Dispatch != "" && !broken(ruleEventsNamed) {
		newest := t.lease
		if t.own {
			newest = h.newest()
		}
		if newest != nil && newest.Name() != r.Dispatch {
			t.lease, t.earlier = nil, true
		}
	}
	return t
}

func (hs *hosts) report(h *host, r Report, now time.Time) {
	t := hs.w.rollouts.toldBy(h, r)
	if !t.own && t.lease == nil || r.Closure != "" && t.own && r.Closure != h.closure {
		return
	}
	t.fault = hs.believes(h, t, now)
	if t.earlier && !t.fault {
		return // what the host is at now, it says of its own dispatch
	}
	switch r.Event {
	case protocol.EventActivationStarted:
		if t.lease != nil {
			hs.w.leases.start(h, now)
		}
	case protocol.EventActivationDeferred:
		hs.w.leases.park(h, t, now)
	case protocol.EventActivationFailed:
		if hostLocal(r.Phase, r.Reason) {
			hs.attemptEnded(h, t, words(r), now)
		} else {
			hs.faulted(h, t, CodeActivationFailed, now)
		}
	case protocol.EventVerifyMismatch:
		// A v1 agent says so when the switch ended on a third closure: it has gone back and quarantined its target.
		hs.faulted(h, t, CodeActivationFailed, now)
	case protocol.EventClosureQuarantined:
		if t.fault && !t.asked() {
			hs.faulted(h, t, CodeAgentQuarantine, now)
		}
	case protocol.EventRollbackTriggered:
		hs.rolledBack(h, t, now)
	case protocol.EventRealiseFailed, protocol.EventClosureSignatureMismatch, protocol.EventStaleTarget,
		protocol.EventManifestMissing, protocol.EventManifestVerifyFailed, protocol.EventManifestMismatch:
		hs.attemptEnded(h, t, r.Event+": "+words(r), now)
	case protocol.EventComplianceFailure:
		hs.noncompliant(h, t, "compliance:"+r.Reason, now)
	case protocol.EventRuntimeGateError:
		hs.noncompliant(h, t, "runtime-gate:"+r.Reason, now)
	}
}

// believes reports whether a failure that a host tells counts against the release. It does for a host that is known to
// have been dispatched in this rollout, or that runs its target, and once for each dispatch: neither a resumed rollout
// nor a retry is stopped by a report of what happened before. Right after the database was lost nobody's dispatch is
// known, and a host's word about its declared closure counts for a while, so that halts come back.
func (hs *hosts) believes(h *host, t told, now time.Time) bool {
	switch {
	case t.Unsigned:
		return false
	case t.earlier && !h.blames(t, now.Before(hs.w.budgets.unheard)):
		return false
	case t.lease != nil && t.Event == protocol.EventClosureQuarantined:
		// Our agents tell it after the failure, and it may come late: an operator's retry is to test the closure again.
		// A v1 agent refuses an offer with it.
		return t.Closure == t.lease.Closure && !(t.lease.retry && t.lease.KnowsLease)
	case t.lease != nil:
		return true
	}
	return t.own && !h.judged() && (h.dispatched() || now.Before(hs.w.budgets.unheard))
}

// blames reports whether what happened in an earlier dispatch still speaks against the release: the host has not
// proven since that the closure works, and nobody has asked for one more attempt. After the database was lost, the
// first dispatch that is known is not the first one either.
func (h *host) blames(t told, lost bool) bool {
	switch h.state() {
	case Healthy, Soaked, Converged:
		return t.Event == protocol.EventComplianceFailure || t.Event == protocol.EventRuntimeGateError
	}
	return lost || h.rec != nil && h.rec.Attempt > 1
}

// dispatched reports whether the host is known to have got its target in this rollout, or to run it.
func (h *host) dispatched() bool {
	switch h.state() {
	case Healthy, Soaked, Converged:
		return true
	}
	return h.rec != nil && h.rec.Attempt > 0 || h.contact.reported && h.run != nil && h.said.Closure == h.closure
}

// judged reports whether the last dispatch of the host has had its consequences: an operator went on without the host,
// or asked it to try once more.
func (h *host) judged() bool {
	return h.retried() || h.rec != nil && h.rec.Reason == CodeTolerated
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
func (ls *leases) park(h *host, t told, now time.Time) {
	l := t.lease
	if !l.pending() {
		return
	}
	l.State, l.SlotUntil = DispatchDeferred, now
	h.proof.stagedBoot = h.said.BootID
	if t.Reboots {
		l.SlotUntil = now.Add(ls.w.limits.Lease + ls.w.limits.ConfirmWindow + ls.w.limits.Margin)
		ls.w.budgets.hold(h, l.SlotUntil)
	} else {
		ls.w.budgets.release(h, now)
	}
	ls.w.changes.saveLease(l)
	if t.own && l.Intent == h.run.Intent {
		ls.w.hosts.enter(h, Deferred, CodeDeferred, "", now)
	}
}

// attemptEnded ends an attempt that failed for reasons of this host.
func (hs *hosts) attemptEnded(h *host, t told, detail string, now time.Time) {
	if t.earlier {
		return
	}
	if t.lease != nil {
		hs.w.leases.endLease(h, DispatchRolledBack, now)
	}
	if !t.own {
		return
	}
	switch h.state() {
	case Dispatched, Activating, ConfirmWindow, Deferred:
		hs.retryOrFail(h, localFault, CodeHostLocal, detail, now)
	}
}

// faulted counts a failure that the release may have caused. One that does not count against the release ends the
// attempt only.
func (hs *hosts) faulted(h *host, t told, code string, now time.Time) {
	if !t.fault {
		hs.attemptEnded(h, t, words(t.Report), now)
		return
	}
	if t.lease != nil {
		hs.w.leases.endLease(h, DispatchRolledBack, now)
	}
	// A failure of a superseded rollout counts for the current one when that wants the same closure.
	if t.own || (h.run != nil && t.lease != nil && t.lease.Closure == h.closure) {
		hs.fail(h, releaseFault, code, words(t.Report), now)
	}
}

// rolledBack takes the word of a host that it went back, by itself or because it was asked to.
func (hs *hosts) rolledBack(h *host, t told, now time.Time) {
	recalled := t.own && h.rec.touched() && h.run.recalled()
	if t.earlier {
		// What the host runs now it says of its newest dispatch.
		if !hostLocal(t.Reason) && !recalled && !t.asked() {
			hs.faulted(h, t, CodeRolledBack, now)
		}
		return
	}
	if t.lease == nil && !recalled && h.state() != Failed && hostLocal(t.Reason) {
		// It is about an attempt that is over. What the host runs now its next check-in says.
		return
	}
	// What its last check-in said no longer holds.
	switch h.said.Phase = nil; {
	case h.rec != nil && t.own:
		h.said.Closure = h.rec.Previous
	case t.lease != nil && h.said.Closure == t.lease.Closure:
		h.said.Closure = ""
	}
	switch {
	case recalled || (t.own && h.state() == Failed):
		// That a host did as it was asked says no more against the release than what it was asked for.
		if t.fault && !hostLocal(t.Reason) && !recalled && !t.asked() {
			hs.fail(h, releaseFault, CodeRolledBack, words(t.Report), now)
		}
		if t.lease != nil {
			hs.w.leases.endLease(h, DispatchRolledBack, now)
		}
		hs.enter(h, Reverted, h.failureCode(CodeReverting), words(t.Report), now)
	case hostLocal(t.Reason) || !t.fault:
		hs.attemptEnded(h, t, words(t.Report), now)
	case t.lease != nil:
		hs.faulted(h, t, CodeRolledBack, now)
		if t.own {
			hs.enter(h, Reverted, CodeRolledBack, "", now)
		}
	case h.state() == Healthy || h.state() == Soaked:
		// It gave up what it had confirmed.
		hs.fail(h, releaseFault, CodeRolledBack, words(t.Report), now)
		hs.enter(h, Reverted, CodeRolledBack, "", now)
	}
}

// noncompliant counts distinct outstanding failures, however often they are told [C15]. They are settled by a new
// intent or by a retry. What a host says of the closure before is not counted: it would hold the waves after it.
func (hs *hosts) noncompliant(h *host, t told, key string, now time.Time) {
	key = brief(key)
	known := t.lease != nil || h.dispatched() || now.Before(hs.w.budgets.unheard)
	if !t.own || t.Unsigned || !known {
		return
	}
	if h.rec != nil && (len(h.rec.Failures) >= maxFailures || slices.Contains(h.rec.Failures, key)) {
		return
	}
	hs.edit(h, now, func(r *record) {
		i, _ := slices.BinarySearch(r.Failures, key)
		r.Failures = slices.Insert(slices.Clone(r.Failures), i, key)
	})
	e := hs.w.rollouts.event(h.run, protocol.LogCompliance, CodeComplianceFailed, now)
	e.Host, e.Detail = h.name, key
	hs.w.changes.log(e)
	switch h.state() {
	case Converged, Queued, Skipped, Failed, Reverted:
	default:
		if h.run.complianceMode == fleet.ModeEnforce && t.fault {
			hs.fail(h, complianceFault, CodeComplianceFailed, key, now)
		}
	}
}
