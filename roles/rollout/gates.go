package rollout

import (
	"fmt"
	"strings"
	"time"

	"nixfleet/nixops/fleet"
	"nixfleet/roles/protocol"
)

// question is what a gate is asked. A gate may answer several.
type question uint8

const (
	offer   question = 1 << iota // may this host be given its target?
	resend                       // may its running lease be told again, or prolonged?
	soak                         // has this host soaked?
	promote                      // may this rollout go past its open wave?
)

// subject is what the question is about; host is nil for promote.
type subject struct {
	host *host
	run  *run
}

// gate is one rule. check returns nil when it lets the subject pass.
type gate struct {
	name  string
	asked question
	check func(w *World, s subject, now time.Time) *protocol.Reason
}

// gates are all rules, in the order in which they speak: the first that blocks gives the reason. Checkin, Tick,
// Decide, the read models and Plan ask through World.blocked and nothing else. Filled by init because two
// gates ask the table themselves: what a host on its target waits for, and what an earlier wave waits for.
var gates []gate

func init() {
	gates = []gate{
		{"release", offer | resend, gateRelease},
		{"soak", soak, gateSoakTime},
		{"health", soak, gateHealth},
		{"convergence", offer, gateConvergence},
		{"failure", offer, gateFailure},
		{"lease", offer, gateLease},
		{"busy", offer, gateBusy},
		{"presence", offer, gatePresence},
		{"freshness", offer | resend, gateFreshness},
		{"operator", offer | resend | promote, gateOperator},
		{"halt", offer | resend | promote, gateHalt},
		{"quarantine", offer | resend, gateQuarantine},
		{"channel-edge", offer | resend | promote, gateChannelEdge},
		{"wave", offer | resend, gateWave},
		{"compliance", offer, gateCompliance},
		{"host-edge", offer, gateHostEdge},
		{"fetch", offer | resend, gateFetch},
		{"backoff", offer, gateBackoff},
		{"host-hold", offer, gateHeld},
		{"budget", offer, gateBudget},
		{"wave-soak", promote, gateWaveSoak},
	}
}

// blocked asks all gates and returns the reason of the first that blocks, or nil.
func (w *World) blocked(q question, s subject, now time.Time) *protocol.Reason {
	for i := range gates {
		if g := &gates[i]; g.asked&q != 0 {
			if r := g.check(w, s, now); r != nil {
				r.Gate = g.name
				return r
			}
		}
	}
	return nil
}

// because composes a reason; the sentence only when somebody will read it.
func (w *World) because(code, next, format string, args ...any) *protocol.Reason {
	if w.terse {
		return w.code(code)
	}
	return &protocol.Reason{Code: code, Text: fmt.Sprintf(format, args...), Next: next}
}

// code is a reason without a sentence, good until the next one.
func (w *World) code(code string) *protocol.Reason {
	w.bare = protocol.Reason{Code: code}
	return &w.bare
}

const nothingToDo = "nothing to do"

func gateRelease(w *World, s subject, _ time.Time) *protocol.Reason {
	switch h := s.host; {
	case w.rel == nil:
		return w.because(CodeNotReady, "check the source of releases", "no verified release has been loaded yet")
	case h == nil || !h.declared:
		return w.because(CodeNotDeclared, "declare the host and release, or retire it", "the current release does not name this host")
	case h.run == nil:
		return w.because(CodeNoClosure, "release a closure for it", "the current release gives this host no closure")
	}
	return nil
}

// gateSoakTime: a host soaks for the time of its wave, counted from when it became healthy in this rollout.
func gateSoakTime(w *World, s subject, now time.Time) *protocol.Reason {
	rec := s.host.rec
	if rec == nil || rec.HealthySince == nil {
		return w.because(CodeAwaitingEvidence, nothingToDo, "it has not been healthy in this rollout yet")
	}
	if end := s.run.soakEnd(s.host); now.Before(end) {
		if w.terse {
			return w.code(CodeSoaking)
		}
		return w.because(CodeSoaking, nothingToDo, "it is healthy and watched for its soak time, until %s", clockText(end))
	}
	return nil
}

// gateHealth: the host must be heard of at the end of its soak or be waiting for an answer then, and its probes
// must have run and pass as its mode wants. A soak of zero is no exception [C7].
func gateHealth(w *World, s subject, now time.Time) *protocol.Reason {
	h := s.host
	switch {
	case h.said.Closure != h.closure || h.healthAt.IsZero() || h.until.Before(s.run.soakEnd(h)):
		return w.because(CodeAwaitingEvidence, nothingToDo, "its soak time is over, and its next check-in has to show that it is healthy")
	case h.health == failing || h.rec.FailingSince != nil:
		return w.because(CodeProbesFailing, "look at the probe's failure in nixfleet host explain", "a health probe fails")
	case h.health == notRun:
		return w.because(CodeProbesNotRun, "wait for the first probe run; if no probe is declared, disable the health check mode", "no health probe has reported a result yet")
	}
	return nil
}

// gateConvergence: a host that runs its target needs none. What it still waits for is the soak gates' answer.
func gateConvergence(w *World, s subject, now time.Time) *protocol.Reason {
	h := s.host
	if !h.reported || h.said.Closure != h.closure || h.lease != nil {
		return nil
	}
	switch h.state() {
	case Converged:
		if h.pinned != "" {
			return w.because(CodePinned, "remove the pin to follow the channel", "it runs its declared closure, which is pinned to %s", h.pinned)
		}
		return w.because(CodeConverged, nothingToDo, "it runs its declared closure and its rollout is done")
	case Soaked:
		return w.because(CodeSoaked, nothingToDo, "it runs its declared closure and its soak time is over; the rest of its rollout goes on")
	case Failed, Reverted:
		return nil
	}
	switch r := w.blocked(soak, s, now); {
	case r != nil && w.terse:
		return r
	case r != nil:
		return &protocol.Reason{Code: r.Code, Text: prefixed("it runs its declared closure: ", r.Text), Next: r.Next}
	}
	return w.because(CodeOnTarget, nothingToDo, "it runs its declared closure")
}

// gateFailure: a host whose target failed is not offered it again before a person or a new intent acts.
func gateFailure(w *World, s subject, _ time.Time) *protocol.Reason {
	rec := s.host.rec
	switch s.host.state() {
	case Failed:
		return w.because(CodeFailed, "release a fix, or let it try once more: nixfleet host retry "+s.host.name, "its new closure failed here (%s) at %s", rec.Reason, clockText(rec.Since))
	case Reverted:
		return w.because(CodeReverted, "release a fix, or let it try once more: nixfleet host retry "+s.host.name, "its new closure failed (%s), and it went back to the one before at %s", rec.Reason, clockText(rec.Since))
	case Skipped:
		if rec.Reason == CodeTolerated {
			return w.because(CodeTolerated, "nixfleet host retry "+s.host.name, "an operator resumed the rollout without this host")
		}
	}
	return nil
}

// gateLease: a target is sent once per dispatch, and one dispatch at a time is open per host.
func gateLease(w *World, s subject, _ time.Time) *protocol.Reason {
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
		return w.because(CodeOldLease, nothingToDo, "it may still be switching to the closure of the release before, for which it has until %s", clockText(l.ConfirmDeadline))
	}
	if l.deferred() {
		if by := s.host.reboots; by != "" {
			return w.because(CodeDeferred, "nothing, or reboot it where its boot loader has no fallback",
				"its new closure is ready and takes effect with the next reboot; it reboots by itself %s", by)
		}
		return w.because(CodeDeferred, "reboot the host", "its new closure is ready and takes effect with the next reboot")
	}
	switch h.state() {
	case ConfirmWindow:
		return w.because(CodeConfirmWindow, nothingToDo, "it runs its new closure and has to prove that it is healthy by %s, or it goes back to the one before", clockText(l.ConfirmDeadline))
	case Activating:
		return w.because(CodeActivating, nothingToDo, "it is switching to its new closure and has to confirm it by %s, or it goes back to the one before", clockText(l.ConfirmDeadline))
	}
	return w.because(CodeLease, nothingToDo, "it was told its new closure at %s and has to run and confirm it by %s", clockText(l.DispatchedAt), clockText(l.ConfirmDeadline))
}

// gateBusy: never offer to a host that says it is in the middle of something.
func gateBusy(w *World, s subject, _ time.Time) *protocol.Reason {
	if s.host.busy() {
		return w.because(CodeHostBusy, nothingToDo, "it says that it is %s", s.host.said.phase())
	}
	return nil
}

// gateFreshness: agents refuse what is older than the signed window, so it is not offered.
func gateFreshness(w *World, s subject, now time.Time) *protocol.Reason {
	if end := s.run.signedAt.Add(s.run.freshness + time.Minute); now.After(end) {
		return w.because(CodeStale, "let CI release or nixfleet release --resign", "the release was signed at %s and the window of channel %s is %s", clockText(s.run.signedAt), s.run.Channel, s.run.freshness)
	}
	return nil
}

func gateOperator(w *World, s subject, _ time.Time) *protocol.Reason {
	r := s.run
	if r.State == Cancelled {
		return w.because(CodeCancelled, "release again", "the rollout of channel %s was cancelled: %s", r.Channel, r.HaltReason)
	}
	if r.Hold != nil {
		return w.because(CodePaused, "nixfleet rollout resume "+r.RolloutID, "%s paused the rollout of channel %s at %s: %s", r.Hold.By, r.Channel, clockText(r.Hold.At), r.Hold.Reason)
	}
	return nil
}

// gateHalt: after a halt nothing new starts, except the one retry that an operator asked for.
func gateHalt(w *World, s subject, _ time.Time) *protocol.Reason {
	r := s.run
	switch r.State {
	case Halted:
		if s.host != nil && s.host.retried() {
			return nil
		}
		next := "release a fix, or go on regardless: nixfleet rollout resume " + r.RolloutID +
			"; a host whose word is not to be trusted is shut out with nixfleet revoke first"
		return w.because(CodeHalted, next, "the rollout of channel %s is halted after a failure; no more hosts get the new closure: %s",
			r.Channel, r.HaltReason)
	case Reverting, RolloutReverted:
		return w.because(CodeReverting, "release a fix", "the rollout of channel %s failed, and its hosts go back to the closures before: %s", r.Channel, r.HaltReason)
	}
	return nil
}

func gateQuarantine(w *World, s subject, _ time.Time) *protocol.Reason {
	if q := w.quarantines[quarantineKey{s.run.Channel, s.host.closure}]; q != nil {
		return w.because(CodeQuarantined, "release another closure, or nixfleet host retry "+s.host.name, "its new closure failed on channel %s at %s and is given to nobody (quarantine): %s", q.Channel, clockText(q.Since), q.Reason)
	}
	return nil
}

// gateChannelEdge: a rollout starts when the newest rollout of each channel before it has converged; an older
// one that finished does not count, and a channel without hosts holds nobody [C6].
func gateChannelEdge(w *World, s subject, _ time.Time) *protocol.Reason {
	if s.run.State != Planning {
		return nil
	}
	for _, e := range w.channels[s.run.Channel].after {
		if p := e.before.cur; p != nil && p.State != RolloutConverged {
			next := nothingToDo
			if p.State != Executing && p.State != Planning {
				next = "look at nixfleet rollout show " + p.RolloutID
			}
			return w.because(CodeChannelEdge, next, "channel %s comes after %s, whose rollout is %s%s", s.run.Channel, e.before.name, strings.ToLower(string(p.State)), reasonSuffix(e.reason))
		}
	}
	return nil
}

func gateWave(w *World, s subject, now time.Time) *protocol.Reason {
	h, r := s.host, s.run
	if h.wave <= r.Wave || r.State == RolloutConverged || h.retried() {
		return nil
	}
	if w.terse {
		return w.code(CodeWave)
	}
	next := nothingToDo
	text := fmt.Sprintf("it gets its new closure in wave %d, after wave %d", h.wave, r.Wave)
	if p := w.blocked(promote, subject{run: r}, now); p != nil {
		text, next = text+": "+p.Text, p.Next
	}
	return &protocol.Reason{Code: CodeWave, Text: text, Next: next}
}

// gateCompliance: under enforce, outstanding compliance failures of earlier waves hold the later ones.
func gateCompliance(w *World, s subject, _ time.Time) *protocol.Reason {
	if s.run.complianceMode != fleet.ModeEnforce {
		return nil
	}
	n := 0
	for i := range min(s.host.wave, len(s.run.waves)) {
		n += s.run.waves[i].noncompliant
	}
	if n > 0 {
		return w.because(CodeCompliance, "see nixfleet host explain for the controls; release a fix, or nixfleet host retry on them", "%s of earlier waves %s outstanding compliance failures", countText(n, "host"), verb(n, "has", "have"))
	}
	return nil
}

// gateHostEdge: the host at the other end of each edge must have soaked first.
func gateHostEdge(w *World, s subject, _ time.Time) *protocol.Reason {
	for _, e := range s.host.after {
		if e.first.run != s.run {
			continue // it has nothing to do in this rollout
		}
		if st := e.first.state(); st != Soaked && st != Converged {
			return w.because(CodeHostEdge, "look at nixfleet host explain "+e.first.name, "host %s comes first and is %s%s", e.first.name, strings.ToLower(string(st)), reasonSuffix(e.reason))
		}
	}
	return nil
}

// gateFetch: after a failed fetch of this very rollout the next offer waits; it does come, since what failed
// may have been the network [A20].
func gateFetch(w *World, s subject, now time.Time) *protocol.Reason {
	h := s.host
	if !h.fetchFailed() {
		return nil
	}
	if h.lease != nil {
		return w.because(CodeFetchFailed, "look at the agent's log", "its last fetch failed (%s)", h.said.FetchResult)
	}
	if end := w.retryAt(h); now.Before(end) {
		return w.because(CodeFetchFailed, "look at the agent's log", "its last fetch failed (%s); it is offered the target again at %s", h.said.FetchResult, clockText(end))
	}
	return nil
}

func gateBackoff(w *World, s subject, now time.Time) *protocol.Reason {
	h := s.host
	if end := w.retryAt(h); now.Before(end) {
		return w.because(CodeBackoff, nothingToDo, "attempt %d ended (%s); the next one may start at %s", h.rec.Attempt, h.rec.Reason, clockText(end))
	}
	return nil
}

// gateHeld: a host that refuses its target is not offered it, unless an operator asked for one more attempt.
func gateHeld(w *World, s subject, _ time.Time) *protocol.Reason {
	if held := s.host.holding(); held != "" && !s.host.retried() {
		return w.because(CodeHeld, "nixfleet agent status on the host", "the host takes no target by itself: %s", held)
	}
	return nil
}

func gatePresence(w *World, s subject, now time.Time) *protocol.Reason {
	h := s.host
	switch {
	case !h.reported:
		return w.because(CodeOffline, "check that its agent runs and is enrolled", "it has not been heard of since the control plane started at %s", clockText(w.started))
	case w.offline(h, now):
		return w.because(CodeOffline, "nothing to do; it gets the current release when it is back", "it has been silent since %s", clockText(h.seen))
	}
	return nil
}

// gateBudget: no disruption budget of the host may be used up, whichever rollout uses it [C10].
func gateBudget(w *World, s subject, now time.Time) *protocol.Reason {
	for _, b := range s.host.budgets {
		if !b.full(w, s.host, now) {
			continue
		}
		switch unheard := now.Before(w.unheard) && b.unheard > 0; {
		case unheard && w.terse:
			return w.code(CodeBudgetUnheard)
		case w.terse:
			return w.code(CodeBudget)
		case unheard:
			return w.because(CodeBudgetUnheard, nothingToDo, "%s of the disruption budget for %s %s not reported since the database was lost and may be in flight until %s", countText(b.unheard, "host"), b.label, verb(b.unheard, "has", "have"), clockText(w.unheard))
		}
		return w.because(CodeBudget, nothingToDo, "the disruption budget for %s lets %d of its hosts change at the same time, and %d do", b.label, b.limit, b.used)
	}
	return nil
}

// gateWaveSoak: a wave is done when each of its hosts has soaked or is not waited for. A wave that was handed
// out needs at least one host that soaked: silence proves nothing. A wave of absent hosts only stays open for
// its soak time all the same, and long enough for a rebooting host to be back.
func gateWaveSoak(w *World, s subject, now time.Time) *protocol.Reason {
	r := s.run
	wv := &r.waves[min(r.Wave, len(r.waves)-1)]
	if len(wv.hosts) == 0 {
		return nil
	}
	n := func(s HostState) int { return wv.counts[s.Index()] }
	working := n(Dispatched) + n(Activating) + n(ConfirmWindow)
	if open := n(Queued) + working + n(Healthy) + n(Deferred); open > 0 {
		if w.terse {
			return w.code(CodeWaveWorking)
		}
		var parts []string
		for _, p := range []struct {
			n    int
			word string
		}{{n(Queued), "not begun"}, {working, "switching"}, {n(Healthy), "healthy and watched for the soak time"}, {n(Deferred), "waiting for a reboot"}} {
			if p.n > 0 {
				parts = append(parts, fmt.Sprintf("%d %s", p.n, p.word))
			}
		}
		return w.because(CodeWaveWorking, nothingToDo, "of the %s in wave %d, %s", countText(len(wv.hosts), "host"), r.Wave, strings.Join(parts, ", "))
	}
	if wv.failing > 0 && !broken("the wave is well") { // it ends within the time after which they fail
		return w.because(CodeWaveWorking, "look at nixfleet host explain on the failing ones", "probes fail on %s of wave %d", countText(wv.failing, "host"), r.Wave)
	}
	if n(Soaked)+n(Converged) > 0 {
		return nil
	}
	if n(Failed)+n(Reverted)+wv.silent > 0 {
		return w.because(CodeWaveUnproven, "bring a host of the wave back, release a fix, or nixfleet rollout resume "+r.RolloutID, "no host of wave %d has soaked: %d failed and %d fell silent after they got the target", r.Wave, n(Failed)+n(Reverted), wv.silent)
	}
	if end := w.absentUntil(r); now.Before(end) {
		return w.because(CodeWaveAbsent, nothingToDo, "every host of wave %d is absent; the wave stays open until %s", r.Wave, clockText(end))
	}
	if r.Wave >= len(r.waves)-1 && !r.proven() {
		return w.because(CodeWaveAbsent, "bring a host back", "every host of channel %s is absent", r.Channel)
	}
	return nil
}

// proven: at least one host of the rollout has soaked; without one it does not converge [C5].
func (r *run) proven() bool {
	for i := range r.waves {
		if c := &r.waves[i].counts; c[Soaked.Index()]+c[Converged.Index()] > 0 {
			return true
		}
	}
	return false
}

func (w *World) absentUntil(r *run) time.Time {
	return r.WaveSince.Add(max(r.waves[min(r.Wave, len(r.waves)-1)].soak, w.limits.OfflineAfter))
}

// soakEnd is when a host that became healthy at HealthySince has soaked.
func (r *run) soakEnd(h *host) time.Time {
	return h.rec.HealthySince.Add(r.waves[h.wave].soak)
}

// retryAt is when the next attempt may start: at once after the first, then after 1, 2, 4, ... 15 minutes.
// A failed fetch always costs a minute at least.
func (w *World) retryAt(h *host) time.Time {
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

func (h *host) retried() bool {
	return h.rec != nil && h.rec.Reason == CodeRetry && h.rec.State == Queued
}

// fetchFailed: the host's last fetch failed and was for this rollout, or it does not say for which.
func (h *host) fetchFailed() bool {
	if h.said.FetchResult != protocol.FetchVerifyFailed && h.said.FetchResult != protocol.FetchFailed {
		return false
	}
	return h.said.FetchRollout == "" || (h.run != nil && h.said.FetchRollout == h.run.RolloutID)
}

// busy: in a phase in which a new target would only disturb.
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
