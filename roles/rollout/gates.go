package rollout

import (
	"time"

	"nixfleet/nixops/fleet"
)

// question is what a gate is asked. A gate may answer several.
type question uint8

const (
	offer   question = 1 << iota // may this host be given its target?
	resend                       // may its running lease be told again, or prolonged?
	soak                         // has this host soaked?
	promote                      // may this rollout go past its open wave?
)

// subject is what a question is about, and when it is asked. host is nil for promote.
type subject struct {
	w    *World
	host *host
	run  *run
	now  time.Time
}

// gate is one rule. check returns nil when it lets the subject pass.
type gate struct {
	name  string
	asked question
	check func(s subject) *hold
}

// gates are all rules, in the order in which they speak: the first that holds gives the reason. Checkin, Tick,
// Decide, the read models and Plan ask through subject.blocked and nothing else. Filled by init because two
// gates ask the table themselves: what a host on its target waits for, and what an earlier wave waits for.
var gates []gate

func init() {
	gates = []gate{
		{"release", offer | resend, subject.release},
		{"soak", soak, subject.soakTime},
		{"health", soak, subject.health},
		{"twins", offer | resend, subject.twins},
		{"convergence", offer, subject.convergence},
		{"failure", offer, subject.failure},
		{"lease", offer, subject.lease},
		{"busy", offer, subject.busy},
		{"presence", offer, subject.presence},
		{"freshness", offer | resend, subject.freshness},
		{"operator", offer | resend | promote, subject.operator},
		{"freeze", offer | resend | promote, subject.freeze},
		{"halt", offer | resend | promote, subject.halt},
		{"quarantine", offer | resend, subject.quarantine},
		{"channel-edge", offer | resend | promote, subject.channelEdge},
		{"wave", offer | resend, subject.wave},
		{"compliance", offer | resend, subject.compliance},
		{"host-edge", offer | resend, subject.hostEdge},
		{"maintenance", offer | resend, subject.maintenance},
		{"fetch", offer | resend, subject.fetch},
		{"backoff", offer, subject.backoff},
		{"host-hold", offer, subject.held},
		{"budget", offer, subject.budget},
		{"wave-soak", promote, subject.waveSoak},
	}
}

// blocked asks all gates and returns the hold of the first that holds.
func (s subject) blocked(q question) *hold {
	for i := range gates {
		if g := &gates[i]; g.asked&q != 0 && !(q == resend && g.name == "host-edge" && broken(ruleResendAsks)) {
			if h := g.check(s); h != nil {
				return h
			}
		}
	}
	return nil
}

func (s subject) release() *hold {
	switch {
	case s.w.rel == nil:
		return heldNotReady
	case s.host == nil || !s.host.decl.named:
		return heldNotDeclared
	case s.host.run == nil:
		return heldNoClosure
	}
	return nil
}

// soakTime lets a host pass that was healthy for the time of its wave, counted from when it became so in this rollout.
func (s subject) soakTime() *hold {
	rec := s.host.rec
	if rec == nil || rec.HealthySince == nil {
		return heldAwaitingEvidence
	}
	if end := s.run.soakEnd(s.host); s.now.Before(end) {
		return &hold{code: CodeSoaking, gate: "convergence", opens: momentOf(end)}
	}
	return nil
}

// health lets a host pass that is heard of at the end of its soak, or that waits for an answer then, and whose probes
// have run and pass as its mode wants. A soak of zero is not an exception [C7].
func (s subject) health() *hold {
	h := s.host
	switch {
	case h.said.Closure != h.closure || h.proof.healthAt.IsZero() || h.contact.until.Before(s.run.soakEnd(h)):
		return heldAwaitingEvidence
	case h.proof.health == failing || h.rec.FailingSince != nil:
		return heldProbesFailing
	case h.proof.health == notRun:
		return heldProbesNotRun
	}
	return nil
}

// convergence holds a host that runs its target: it needs none. What it still waits for is the soak gates' answer.
func (s subject) convergence() *hold {
	h := s.host
	if !h.contact.reported || h.said.Closure != h.closure || h.lease != nil {
		return nil
	}
	switch h.state() {
	case Converged:
		if h.decl.pinned != "" {
			return heldPinned
		}
		return heldConverged
	case Soaked:
		return heldSoaked
	case Failed, Reverted:
		return nil
	}
	if inner := s.blocked(soak); inner != nil {
		return inner
	}
	return heldOnTarget
}

// failure holds a host whose target failed: it is not offered again before a person or a new intent acts.
func (s subject) failure() *hold {
	switch s.host.state() {
	case Failed:
		return heldFailed
	case Reverted:
		return heldReverted
	case Skipped:
		if s.host.rec.Reason == CodeTolerated {
			return heldTolerated
		}
	}
	return nil
}

// lease holds a host that has its target: it is sent once per dispatch, and one dispatch at a time is open per host.
func (s subject) lease() *hold {
	h := s.host
	l := h.lease
	if l == nil {
		return nil
	}
	if l.Intent != s.run.Intent {
		// An agent that knows leases and has not started drops the old target for the new one by itself; a
		// staged one is simply staged anew [C18].
		if l.deferred() || (h.said.KnowsLease && l.KnowsLease && !h.busy()) {
			return nil
		}
		return heldOldLease
	}
	if l.deferred() {
		return heldDeferred
	}
	switch h.state() {
	case ConfirmWindow:
		return heldConfirmWindow
	case Activating:
		return heldActivating
	}
	return heldLease
}

// busy holds a host that says it is in the middle of something.
func (s subject) busy() *hold {
	if s.host.busy() {
		return heldHostBusy
	}
	return nil
}

func (s subject) presence() *hold {
	if s.w.hosts.offline(s.host, s.now) || !s.host.contact.reported {
		return heldOffline
	}
	return nil
}

// freshness holds what agents refuse: a release that is older than the signed window.
func (s subject) freshness() *hold {
	if s.now.After(s.run.signedAt.Add(s.run.freshness+time.Minute)) && !broken(ruleWindowEnds) {
		return heldStale
	}
	return nil
}

func (s subject) operator() *hold {
	switch {
	case s.run.State == Cancelled:
		return heldCancelled
	case s.run.Hold != nil:
		return heldPaused
	}
	return nil
}

// halt lets nothing new start after a halt, except the one retry that an operator asked for.
func (s subject) halt() *hold {
	switch s.run.State {
	case Halted:
		if s.host == nil || !s.host.retried() {
			return heldHalted
		}
	case Reverting, RolloutReverted:
		return heldReverting
	}
	return nil
}

func (s subject) quarantine() *hold {
	if q := s.w.rollouts.quarantines[quarantineKey{s.run.Channel, s.host.closure}]; q != nil {
		return &hold{code: CodeQuarantined, gate: "quarantine", about: q}
	}
	return nil
}

// channelEdge holds a rollout until the newest rollout of each channel before it has converged; an older one that
// finished does not count, and a channel without hosts holds no other [C6]. Once it has begun its hosts are held while
// the channel before has an active rollout, unless the edge holds the opening only.
func (s subject) channelEdge() *hold {
	after := s.w.rollouts.channels[s.run.Channel].after
	for i := range after {
		if e := &after[i]; e.holdsOpening(s.run) || s.host != nil && e.holdsHosts(s.run) {
			return &hold{code: CodeChannelEdge, gate: "channel-edge", about: e}
		}
	}
	return nil
}

// holdsOpening reports whether the edge keeps a rollout from beginning.
func (e *channelEdge) holdsOpening(r *run) bool {
	p := e.before.cur
	return p != nil && r.State == Planning && p.State != RolloutConverged
}

// holdsHosts reports whether the edge holds the hosts of a rollout that has begun.
func (e *channelEdge) holdsHosts(r *run) bool {
	p := e.before.cur
	return p != nil && r.State != Planning && !e.opening && p.State.Open()
}

func (s subject) wave() *hold {
	if s.host.wave <= s.run.Wave || s.run.State == RolloutConverged || s.host.retried() {
		return nil
	}
	return heldWave
}

// compliance holds later waves under enforce while earlier ones have outstanding compliance failures.
func (s subject) compliance() *hold {
	if s.run.complianceMode == fleet.ModeEnforce && s.noncompliant() > 0 {
		return heldCompliance
	}
	return nil
}

// noncompliant counts the hosts of earlier waves with outstanding compliance failures.
func (s subject) noncompliant() int {
	n := 0
	for i := range min(s.host.wave, len(s.run.waves)) {
		n += s.run.waves[i].noncompliant
	}
	return n
}

// hostEdge holds a host until the one at the other end of each edge has soaked.
func (s subject) hostEdge() *hold {
	for i := range s.host.decl.after {
		first := s.host.decl.after[i].first
		if first.run != s.run {
			continue // it has nothing to do in this rollout
		}
		if st := first.state(); st != Soaked && st != Converged {
			return &hold{code: CodeHostEdge, gate: "host-edge", about: &s.host.decl.after[i]}
		}
	}
	return nil
}

// fetch lets the next offer wait after a failed fetch of this very rollout. It does come, since what failed may have
// been the network [A20].
func (s subject) fetch() *hold {
	if !s.host.fetchFailed() {
		return nil
	}
	if s.host.lease != nil {
		return heldFetchFailed
	}
	if end := s.host.retryAt(); s.now.Before(end) {
		return &hold{code: CodeFetchFailed, gate: "fetch", opens: momentOf(end)}
	}
	return nil
}

func (s subject) backoff() *hold {
	if end := s.host.retryAt(); s.now.Before(end) {
		return &hold{code: CodeBackoff, gate: "backoff", opens: momentOf(end)}
	}
	return nil
}

// held holds a host that refuses its target, unless an operator asked for one more attempt.
func (s subject) held() *hold {
	if s.host.holding() != "" && !s.host.retried() {
		return heldHeld
	}
	return nil
}

// budget holds a host while a disruption budget of its is used up, whichever rollout uses it [C10].
func (s subject) budget() *hold {
	for _, b := range s.host.decl.budgets {
		if !b.full(s.w, s.host, s.now) {
			continue
		}
		if s.now.Before(s.w.budgets.unheard) && b.unheard > 0 {
			return &hold{code: CodeBudgetUnheard, gate: "budget", about: b, opens: momentOf(s.w.budgets.unheard)}
		}
		return &hold{code: CodeBudget, gate: "budget", about: b}
	}
	return nil
}

// waveSoak holds a rollout until each host of its wave has soaked or is not waited for. A wave needs at least one host
// that soaked: silence proves nothing. It may do without where an operator went on, or where the fleet declares so: a
// wave of absent hosts only then stays open for its soak time all the same, and long enough for a rebooting host to be
// back.
func (s subject) waveSoak() *hold {
	r := s.run
	wv := r.open()
	if len(wv.hosts) == 0 {
		return nil
	}
	if wv.in(Queued, Dispatched, Activating, ConfirmWindow, Healthy, Deferred) > 0 {
		return heldWaveWorking
	}
	if r.failing() > 0 && !broken(ruleWellWaves) { // it ends within the time after which they fail
		return heldWaveWorking
	}
	if wv.in(Soaked, Converged) > 0 {
		return nil
	}
	if wv.in(Failed, Reverted)+wv.silent > 0 {
		return heldWaveUnproven
	}
	if end := s.w.rollouts.absentUntil(r); s.now.Before(end) {
		return &hold{code: CodeWaveAbsent, gate: "wave-soak", opens: momentOf(end)}
	}
	last := r.Wave >= len(r.waves)-1
	if last && !r.proven() || !last && !wv.mayBeEmpty && wv.tolerated == 0 && !broken(ruleTriedWaves) {
		return heldWaveAbsent
	}
	return nil
}
