package rollout

import (
	"time"

	"nixfleet/nixops/fleet"
	"nixfleet/roles/protocol"
)

// host is one machine. The strings are shared with the release.
type host struct {
	timer
	name string

	// What the release declares.
	decl    declaration
	run     *run // newest rollout of its channel, when that names the host
	wave    int
	closure string // target

	// What was decided.
	rec   *record // within run; nil: Queued and never touched
	lease *lease  // open dispatch, of run or of a superseded one
	past  past
	slot  slot

	// What the host said and when; never stored.
	said    Observation // its last check-in; what a confirm or a report changes of it is changed here
	contact contact
	proof   proof

	woken bool   // is in changes.wake
	actor *actor // what a plan takes it for; nil outside of one
}

// declaration is what a release says of a host besides its target.
type declaration struct {
	named   bool   // the release has the host
	pinned  string // "commit until time" for people, "" when not pinned
	reboots string // when it reboots by itself, for people; "" when it does not
	channel *channel
	after   []hostEdge
	before  []*host   // hosts held by an edge that this one opens
	budgets []*budget // that count this host
}

// past is what is still known of dispatches that are over.
type past struct {
	done  *lease  // last confirmed dispatch
	ended *lease  // unconfirmed and over; its slot may still be held
	prior *record // within the superseded rollout of the open lease, while that is open
}

// slot is what a host takes of its budgets.
type slot struct {
	until    time.Time // its lease holds the slots until then; zero: none does
	budgets  []*budget // whose slots it holds, for its lease or until it has soaked
	before   bool      // it got them in a release before
	waitsFor *budget   // budget queue it stands in
}

// contact is when a host was heard of.
type contact struct {
	seen     time.Time // last contact
	until    time.Time // it counts as present until then (seen plus the wait of a held request)
	reported bool      // since the control plane started
	other    *boot     // that spoke before the last one, while both may be there
	twins    *Twins    // nil: there is one machine
}

// proof is what speaks for a host on its target.
type proof struct {
	health     health
	healthAt   time.Time // last time health was observed on the target; zero: not yet in this state
	attested   time.Time // verified confirm time of this intent; zero: none
	stagedBoot string    // boot id when its staged target was first seen
}

type hostEdge struct {
	first  *host
	reason string
}

type record struct {
	HostRecord
	dirty bool
}

// touched reports whether the host got a target, or attests that it took one, within this rollout.
func (r *record) touched() bool { return r != nil && (r.Attempt > 0 || r.Previous != "") }

type lease struct {
	Dispatch
	dirty bool
	retry bool // an operator asked for it, after a failure
}

func (l *lease) pending() bool  { return l != nil && l.State == DispatchPending }
func (l *lease) deferred() bool { return l != nil && l.State == DispatchDeferred }

// recovered reports whether it stands for a confirm without a dispatch that could take it, so that its name says
// nothing.
func (l *lease) recovered() bool { return l.ConfirmedAt != nil && l.ConfirmedAt.Equal(l.DispatchedAt) }

// state is where the host stands in its rollout.
func (h *host) state() HostState {
	if h.rec == nil {
		return Queued
	}
	return h.rec.State
}

// phase is the name of the phase, empty when the host says none.
func (o *Observation) phase() string {
	if o.Phase == nil {
		return ""
	}
	return o.Phase.Name
}

// retried reports whether an operator asked for one more attempt that has not been given yet.
func (h *host) retried() bool {
	return h.rec != nil && h.rec.Reason == CodeRetry && h.rec.State == Queued
}

// fetchFailed reports whether the host's last fetch failed and was for this rollout, or it does not say for which.
func (h *host) fetchFailed() bool {
	if h.said.Fetch.Result != protocol.FetchVerifyFailed && h.said.Fetch.Result != protocol.FetchFailed {
		return false
	}
	return h.said.Fetch.Rollout == "" || (h.run != nil && h.said.Fetch.Rollout == h.run.RolloutID)
}

// busy reports whether the host is in a phase in which a new target would only disturb.
func (h *host) busy() bool {
	switch h.said.phase() {
	case protocol.PhaseActivating, protocol.PhaseChecking, protocol.PhaseCommitting, protocol.PhaseUndoing:
		return true
	}
	return false
}

// fetching reports whether the host prepares its target and has not begun to switch.
func (h *host) fetching() bool {
	phase := h.said.phase()
	return phase == protocol.PhaseFetching || phase == protocol.PhaseStaged
}

// idle reports whether the host does nothing with any target.
func (h *host) idle() bool {
	phase := h.said.phase()
	return phase == "" || phase == protocol.PhaseIdle
}

// phaseIs reports whether the host's phase is about this target.
func (h *host) phaseIs(intent, closure string) bool {
	p := h.said.Phase
	return p == nil || (p.Intent == "" || p.Intent == intent) && (p.ClosureHash == "" || p.ClosureHash == closure)
}

// worksOn reports whether what the host is at may be this dispatch: it says so, or does not say which one it is.
func (h *host) worksOn(l *lease) bool {
	p := h.said.Phase
	return l == nil || p == nil || p.Dispatch == "" || p.Dispatch == l.Name()
}

// leaving reports whether the host may still begin another closure than its target, of a release before.
func (h *host) leaving() bool {
	return h.lease.pending() && h.lease.Closure != h.closure && !broken(ruleLeavingCounts)
}

// newest is the dispatch of the host in its rollout that was made last, as far as it is known; nil: none is.
func (h *host) newest() (last *lease) {
	for _, l := range [...]*lease{h.past.done, h.past.ended, h.lease} {
		if l == nil || l.Intent != h.intent() || l.recovered() {
			continue
		}
		if last == nil || l.DispatchedAt.After(last.DispatchedAt) {
			last = l
		}
	}
	return last
}

// holding is why the host takes no target by itself. A closure that it quarantined does not count once another one is
// wanted.
func (h *host) holding() string {
	if closure, ok := protocol.QuarantinedIn(h.said.Held); ok && closure != h.closure {
		return ""
	}
	return h.said.Held
}

// health is what a host's probes say by its mode.
type health uint8

const (
	well    health = iota // lets the host soak
	notRun                // nothing has reported yet, or not everything that must
	failing               // something fails
)

// judge applies the modes of wire.md §5: enforce wants every probe to pass, permissive none to fail, either at
// least one that has run. Other modes do not gate, whatever the probes say: v1 agents report probes that never
// run when health checks are disabled.
func judge(mode string, probes []protocol.ProbeResult) health {
	if mode != fleet.ModeEnforce && mode != fleet.ModePermissive {
		return well
	}
	ran, all := false, true
	for _, p := range probes {
		switch p.Status {
		case protocol.ProbeFail:
			return failing
		case protocol.ProbePass:
			ran = true
		default:
			all = false
		}
	}
	if !ran || (mode == fleet.ModeEnforce && !all) {
		return notRun
	}
	return well
}

// settleHealth starts and stops the clock of failing probes of a healthy host on its target. Probes that have
// not run neither start nor stop it.
func (hs *hosts) settleHealth(h *host, now time.Time) {
	if st := h.state(); st != Healthy && st != Soaked || h.said.Closure != h.closure {
		return
	}
	switch since := h.rec.FailingSince; {
	case h.proof.health == failing && since == nil:
		hs.edit(h, now, func(r *record) { since := now; r.FailingSince = &since })
	case h.proof.health == well && since != nil:
		hs.edit(h, now, func(r *record) { r.FailingSince = nil })
		hs.w.changes.move(h.run)
	}
}

// probesFailed reports whether probes have failed for the sustained time, and the host says so still or fell silent
// while they failed.
func (hs *hosts) probesFailed(h *host, now time.Time) bool {
	since := h.rec.FailingSince
	if since == nil || !h.contact.reported || now.Before(since.Add(hs.w.limits.ProbeFailAfter)) {
		return false
	}
	return !now.After(h.contact.until) || hs.offline(h, now)
}
