package rollout

import (
	"fmt"
	"strings"
	"time"

	"nixfleet/roles/protocol"
)

const nothingToDo = "nothing to do"

// reason makes of a hold what people read: one sentence, and what to do. It is called only where somebody reads them.
func (s subject) reason(h *hold) protocol.Reason {
	r := protocol.Reason{Code: h.code, Gate: h.gate, Next: nothingToDo}
	say := sentences[h.code]
	if say == nil {
		return r
	}
	if opens := max(h.opens, h.until); opens != 0 {
		r.Opens = opens.stamp()
	}
	text, next := say(h, s)
	if next != "" {
		r.Next = next
	}
	r.Text = text
	switch h.code {
	case CodeAwaitingEvidence, CodeSoaking, CodeProbesFailing, CodeProbesNotRun:
		if r.Gate == "convergence" {
			r.Text = prefixed("it runs its declared closure: ", text)
		}
	}
	return r
}

// sentence is what a hold says, and what to do about it; without a next step there is nothing to do.
type sentence func(h *hold, s subject) (text, next string)

// fixed is a sentence that is always the same.
func fixed(text, next string) sentence {
	return func(*hold, subject) (string, string) { return text, next }
}

// sentences has one for each code of a gate. Filled by init, since a wave's sentence asks for another.
var sentences map[string]sentence

func init() {
	sentences = map[string]sentence{
		CodeNotReady:    fixed("no verified release has been loaded yet", "check the source of releases"),
		CodeNotDeclared: fixed("the current release does not name this host", "declare the host and release, or retire it"),
		CodeNoClosure:   fixed("the current release gives this host no closure", "release a closure for it"),

		CodeOffered: sayOffered,
		CodeResent: fixed(
			"it was told its new closure, has not begun to switch to it, and is told again at its next check-in", ""),
		CodeRollback: sayRollback,

		CodeConverged: fixed("it runs its declared closure and its rollout is done", ""),
		CodePinned:    sayPinned,
		CodeSoaked: fixed(
			"it runs its declared closure and its soak time is over; the rest of its rollout goes on", ""),
		CodeSoaking:          saySoaking,
		CodeAwaitingEvidence: sayAwaiting,
		CodeProbesFailing:    fixed("a health probe fails", "look at the failing probe on the host"),
		CodeProbesNotRun: fixed("no health probe has reported a result yet",
			"wait for the first probe run; if no probe is declared, disable the health check mode"),
		CodeOnTarget: fixed("it runs its declared closure", ""),

		CodeTwoMachines: sayTwins,

		CodeFailed:    sayFailed,
		CodeReverted:  sayFailed,
		CodeTolerated: sayTolerated,

		CodeOldLease:      sayLease,
		CodeDeferred:      sayDeferred,
		CodeConfirmWindow: sayLease,
		CodeActivating:    sayLease,
		CodeLease:         sayLease,
		CodeHostBusy:      sayBusy,
		CodeOffline:       sayOffline,

		CodeStale:     sayStale,
		CodeCancelled: sayOperator,
		CodePaused:    sayOperator,
		CodeFrozen:    sayFrozen,
		CodeHalted:    sayHalted,
		CodeReverting: sayHalted,

		CodeQuarantined: sayQuarantined,
		CodeChannelEdge: sayChannelEdge,
		CodeWave:        sayWave,
		CodeCompliance:  sayCompliance,
		CodeHostEdge:    sayHostEdge,

		CodeMaintenance: sayMaintenance,
		CodeMissed:      sayMaintenance,

		CodeFetchFailed: sayFetchFailed,
		CodeBackoff:     sayBackoff,
		CodeHeld:        sayHeld,

		CodeBudget:        sayBudget,
		CodeBudgetUnheard: sayBudget,

		CodeWaveWorking:  sayWorking,
		CodeWaveUnproven: sayUnproven,
		CodeWaveAbsent:   sayAbsent,
	}
}

func sayOffered(_ *hold, s subject) (string, string) {
	return fmt.Sprintf("it is told its new closure at its next check-in; its wave %d is open", s.host.wave+1), ""
}

func sayRollback(h *hold, _ subject) (string, string) {
	return "the control plane asks it to return to its previous closure: " + h.about.(*protocol.Rollback).Reason,
		"release a fix"
}

func sayPinned(_ *hold, s subject) (string, string) {
	return "it runs its declared closure, which is pinned to " + s.host.decl.pinned, "remove the pin to follow the channel"
}

func saySoaking(_ *hold, s subject) (string, string) {
	return "it is healthy and watched for its soak time, until " + clockText(s.run.soakEnd(s.host)), ""
}

func sayAwaiting(_ *hold, s subject) (string, string) {
	if rec := s.host.rec; rec == nil || rec.HealthySince == nil {
		return "it has not been healthy in this rollout yet", ""
	}
	return "its soak time is over, and its next check-in has to show that it is healthy", ""
}

func sayFailed(h *hold, s subject) (string, string) {
	rec := s.host.rec
	next := "nixfleet host log " + s.host.name + "; release a fix, or let it try once more: " + retry(s)
	if h.code == CodeFailed {
		return fmt.Sprintf("its new closure failed here (%s) at %s", rec.Reason, clockText(rec.Since)), next
	}
	return fmt.Sprintf("its new closure failed (%s), and it returned to its previous closure at %s",
		rec.Reason, clockText(rec.Since)), next
}

func sayTolerated(_ *hold, s subject) (string, string) {
	return "an operator resumed the rollout without this host", retry(s)
}

func sayLease(h *hold, s subject) (string, string) {
	l := s.host.lease
	by := clockText(l.ConfirmDeadline)
	switch h.code {
	case CodeOldLease:
		return "it may still be switching to the closure of the previous release, for which it has until " + by, ""
	case CodeConfirmWindow:
		return "it runs its new closure and has to prove that it is healthy by " + by +
			", or it returns to its previous closure", ""
	case CodeActivating:
		return "it is switching to its new closure and has to confirm it by " + by +
			", or it returns to its previous closure", ""
	}
	return "it was told its new closure at " + clockText(l.DispatchedAt) + " and has to run and confirm it by " + by, ""
}

func sayDeferred(_ *hold, s subject) (string, string) {
	const ready = "its new closure is ready and takes effect with the next reboot"
	if by := s.host.decl.reboots; by != "" {
		return ready + "; it reboots by itself " + by,
			"nothing to do; only a host whose boot loader has no fallback needs a person to reboot it"
	}
	return ready, "reboot the host"
}

func sayBusy(_ *hold, s subject) (string, string) {
	return "it reports that it is " + s.host.said.phase(), ""
}

func sayOffline(_ *hold, s subject) (string, string) {
	if !s.host.contact.reported {
		return "it has not been heard of since the control plane started at " + clockText(s.w.started),
			"check that its agent runs and is enrolled"
	}
	return "it has been silent since " + clockText(s.host.contact.seen),
		"nothing to do; it gets the current release when it is back"
}

func sayStale(_ *hold, s subject) (string, string) {
	return fmt.Sprintf("the release was signed at %s and the window of channel %s is %s",
			clockText(s.run.signedAt), s.run.Channel, s.run.freshness),
		"release, or renew the signatures: nixfleet release --resign"
}

func sayOperator(_ *hold, s subject) (string, string) {
	r := s.run
	if r.State == Cancelled {
		return fmt.Sprintf("the rollout of channel %s was cancelled: %s", r.Channel, r.HaltReason),
			"release something else, or go on with this one: " + resume(r)
	}
	return fmt.Sprintf("%s paused the rollout of channel %s at %s: %s",
			r.Hold.By, r.Channel, clockText(r.Hold.At), r.Hold.Reason),
		resume(r)
}

func sayHalted(h *hold, s subject) (string, string) {
	r := s.run
	if h.code == CodeReverting {
		return fmt.Sprintf("the rollout of channel %s failed, and its hosts return to their previous closures: %s",
				r.Channel, r.HaltReason),
			"release a fix"
	}
	return fmt.Sprintf("the rollout of channel %s is halted after a failure; no more hosts get the new closure: %s",
			r.Channel, r.HaltReason),
		"release a fix, or go on regardless: " + resume(r) +
			"; if you do not believe the host, first: nixfleet revoke HOST --reason TEXT"
}

func sayQuarantined(h *hold, s subject) (string, string) {
	q := h.about.(*quarantine)
	return fmt.Sprintf("its new closure failed on channel %s at %s and is not given to any host (quarantine): %s",
		q.Channel, clockText(q.Since), q.Reason), "release another closure, or try it again: " + retry(s)
}

func sayChannelEdge(h *hold, s subject) (string, string) {
	e := h.about.(*channelEdge)
	p, next := e.before.cur, ""
	if p.State != Executing && p.State != Planning {
		next = "nixfleet rollout show " + p.RolloutID
	}
	return fmt.Sprintf("channel %s comes after %s, whose rollout is %s%s",
		s.run.Channel, e.before.name, strings.ToLower(string(p.State)), reasonSuffix(e.reason)), next
}

func sayWave(_ *hold, s subject) (text, next string) {
	text = fmt.Sprintf("it gets its new closure in wave %d, after wave %d", s.host.wave+1,
		s.run.Wave+1)
	whole := subject{w: s.w, run: s.run, now: s.now}
	if h := whole.blocked(promote); h != nil {
		why := whole.reason(h)
		return text + ": " + why.Text, why.Next
	}
	return text, ""
}

func sayCompliance(_ *hold, s subject) (string, string) {
	n := s.noncompliant()
	return countText(n, "host") + " of earlier waves " + verb(n, "has", "have") + " outstanding compliance failures",
		"nixfleet status lists these hosts; release a fix, or for each of them: nixfleet host retry HOST --reason TEXT"
}

func sayHostEdge(h *hold, _ subject) (string, string) {
	e := h.about.(*hostEdge)
	return fmt.Sprintf("host %s comes first and is %s%s",
			e.first.name, strings.ToLower(string(e.first.state())), reasonSuffix(e.reason)),
		"nixfleet host explain " + e.first.name
}

func sayFetchFailed(h *hold, s subject) (string, string) {
	text := fmt.Sprintf("its last fetch failed (%s)", s.host.said.Fetch.Result)
	if h.opens != 0 {
		text += "; it is offered the target again at " + clockText(h.opens.time())
	}
	return text, "on the host: journalctl -u nixfleet-agent"
}

func sayBackoff(h *hold, s subject) (string, string) {
	rec := s.host.rec
	return fmt.Sprintf("attempt %d ended (%s); the next one may start at %s",
		rec.Attempt, rec.Reason, clockText(h.opens.time())), ""
}

func sayHeld(_ *hold, s subject) (string, string) {
	return "the host takes no target: " + s.host.holding(), "on the host: nixfleet agent status"
}

func sayBudget(h *hold, s subject) (string, string) {
	b := h.about.(*budget)
	if h.code == CodeBudgetUnheard {
		return fmt.Sprintf("%s of the disruption budget for %s %s not reported since the database was lost "+
			"and may be in flight until %s",
			countText(b.unheard, "host"), b.label, verb(b.unheard, "has", "have"), clockText(h.opens.time())), ""
	}
	return fmt.Sprintf("the disruption budget for %s lets %d of its hosts change at the same time, and %d do",
		b.label, b.most(), b.used), ""
}

func sayWorking(_ *hold, s subject) (string, string) {
	wv := s.run.open()
	var parts []string
	for _, p := range []struct {
		n    int
		word string
	}{
		{wv.in(Queued), "not begun"}, {wv.in(Dispatched, Activating, ConfirmWindow), "switching"},
		{wv.in(Healthy), "healthy and watched for the soak time"}, {wv.in(Deferred), "waiting for a reboot"},
	} {
		if p.n > 0 {
			parts = append(parts, fmt.Sprintf("%d %s", p.n, p.word))
		}
	}
	if len(parts) == 0 {
		return fmt.Sprintf("probes fail on %s of the open waves", countText(s.run.failing(), "host")),
			"nixfleet status lists them; for each: nixfleet host explain HOST"
	}
	return fmt.Sprintf("of the %s in wave %d, %s",
		countText(len(wv.hosts), "host"), s.run.Wave+1, strings.Join(parts, ", ")), ""
}

func sayUnproven(_ *hold, s subject) (string, string) {
	wv := s.run.open()
	return fmt.Sprintf("no host of wave %d has soaked: %d failed and %d fell silent after they got the target",
			s.run.Wave+1, wv.in(Failed, Reverted), wv.silent),
		"bring a host of the wave back, release a fix, or go on regardless: " + resume(s.run)
}

func sayAbsent(h *hold, s subject) (string, string) {
	switch {
	case h.opens == 0 && s.run.Wave < len(s.run.waves)-1:
		return fmt.Sprintf("no host of wave %d was heard, and what nobody has tried opens no wave", s.run.Wave+1),
			"bring a host of the wave back; or declare that the wave may be empty (waves[].mayBeEmpty = true) and release"
	case h.opens == 0:
		return fmt.Sprintf("every host of channel %s is absent", s.run.Channel), "bring a host back"
	}
	return fmt.Sprintf("every host of wave %d is absent; the wave stays open until %s", s.run.Wave+1,
		clockText(h.opens.time())), ""
}

// retry and resume are commands as they can be pasted: both need a reason.
func retry(s subject) string { return "nixfleet host retry " + s.host.name + " --reason TEXT" }

func resume(r *run) string { return "nixfleet rollout resume " + r.RolloutID + " --reason TEXT" }

func clockText(t time.Time) string { return t.UTC().Format("2006-01-02 15:04:05 UTC") }

func countText(n int, word string) string {
	if n == 1 {
		return "1 " + word
	}
	return fmt.Sprintf("%d %ss", n, word)
}

func verb(n int, one, many string) string {
	if n == 1 {
		return one
	}
	return many
}

func prefixed(p, s string) string {
	if s == "" {
		return ""
	}
	return p + strings.TrimPrefix(s, "it is ")
}

func reasonSuffix(reason string) string {
	if reason == "" {
		return ""
	}
	return " (" + reason + ")"
}
