package cp

import (
	"net/http"
	"time"

	"github.com/go-json-experiment/json/jsontext"

	"nixfleet/pki"
	"nixfleet/roles/protocol"
	"nixfleet/roles/rollout"
	"nixfleet/store"
)

// maxDispatches bounds the dispatches of one host in an answer.
const maxDispatches = 20

// host says what is known of one host.
func (p *views) host(c *call) (any, error) {
	name, found := c.PathValue("name"), false
	var facts rollout.HostFacts
	v := look(p.world, func(w *rollout.World, now time.Time) (v rollout.HostView) {
		v, found = w.Host(name, now)
		facts = w.Facts(name)
		return p.seen.present([]rollout.HostView{v}, now)[0]
	})
	if !found {
		return nil, refused(http.StatusNotFound, "no-such-host", "the fleet declares no host %q", name)
	}
	out := protocol.HostDetail{Waves: uint32(facts.Waves), Attempt: uint32(facts.Attempt),
		Dispatches: []protocol.HostDispatch{}, Reports: []protocol.HostReport{}}
	if err := p.fill(c, &out, v, facts); err != nil {
		return nil, err
	}
	if q := facts.Quarantine; q != nil {
		out.Quarantine = &protocol.Quarantined{Closure: q.Closure, Reason: q.Reason, Since: pki.At(q.Since)}
	}
	if !facts.Deadline.IsZero() {
		out.ConfirmBy = moment(facts.Deadline)
	}
	if seen, ok := p.seen.of(name); ok {
		out.Agent = &seen.word
		out.Certificate = seen.certificate(name)
	}
	return out, nil
}

// fill reads what the database and the list of hosts know.
func (p *views) fill(c *call, out *protocol.HostDetail, v rollout.HostView, facts rollout.HostFacts) error {
	reports, err := p.store.ReportsOf(c.Context(), v.Host)
	if err != nil {
		return err
	}
	verified := uint32(0)
	for _, r := range reports {
		out.Reports = append(out.Reports, reportOfRow(r))
		if r.Verdict != nil && *r.Verdict == string(protocol.VerdictVerified) {
			verified++
		}
	}
	out.Failure = failureIn(out.Reports)
	dispatches, err := p.store.DispatchesOf(c.Context(), v.Host, maxDispatches)
	if err != nil {
		return err
	}
	for _, d := range dispatches {
		out.Dispatches = append(out.Dispatches, dispatchOf(d))
	}
	entries, err := p.entries(c.Context(), []rollout.HostView{v},
		map[string]rollout.HostFacts{v.Host: facts}, map[string]uint32{v.Host: verified})
	if err != nil {
		return err
	}
	out.Host, out.Reason = entries[0], v.Reason
	if r := out.Host.Reason; r != nil {
		out.Reason = *r
	}
	p.stuck(&out.Reason, v.Host)
	return nil
}

func reportOfRow(rep store.Report) protocol.HostReport {
	return protocol.HostReport{
		Hostname: rep.Hostname, EventID: rep.EventID, ReceivedAt: protocol.Offset(rep.ReceivedAt), EventKind: rep.Event,
		Rollout: rep.Rollout, SignatureStatus: rep.Verdict, Event: rep.Event, Details: jsontext.Value(rep.Details),
	}
}

func dispatchOf(d store.HostDispatch) protocol.HostDispatch {
	out := protocol.HostDispatch{
		RolloutID: d.RolloutID, Commit: d.ChannelRef, Wave: uint32(d.Wave), Closure: d.Closure, State: d.State,
		At: *moment(d.DispatchedAt), ConfirmBy: *moment(d.ConfirmDeadline),
	}
	if terminal[d.State] != "" {
		out.TerminalAt = moment(d.Ended())
	}
	return out
}

// failureIn is the newest failed activation that reports tell of. An agent tells of one in several of them: that the
// switch failed, that it went back and why, and that it quarantined the closure.
func failureIn(reports []protocol.HostReport) (f *protocol.HostFailure) {
	for _, r := range reports {
		details, err := protocol.ParseDetails(r.Event, r.Details)
		if err != nil {
			continue // shortened when it was stored
		}
		cause, failed, one := "", true, (*protocol.ActivationFailed)(nil)
		switch d := details.(type) {
		case *protocol.ActivationFailed:
			one = d
		case *protocol.ClosureQuarantined:
			cause = d.Reason
		case *protocol.RealiseFailed:
			cause = d.Reason
		case *protocol.VerifyMismatch:
			cause = "expected " + d.Expected + ", but " + d.Actual + " runs"
		case *protocol.ClosureSignatureMismatch:
			cause = "no trusted signature of " + d.ClosureHash
		case *protocol.Reasoned:
			cause, failed = d.Reason, r.Event == protocol.EventRollbackTriggered
		default:
			failed = false
		}
		switch {
		case !failed:
			continue
		case f == nil:
			f = &protocol.HostFailure{At: r.ReceivedAt, Event: r.Event, Verdict: r.SignatureStatus, Rollout: r.Rollout}
		case !sameText(f.Rollout, r.Rollout):
			return f
		}
		if f.Cause == "" {
			f.Cause = cause
		}
		if one != nil {
			f.At, f.Event, f.Verdict = r.ReceivedAt, r.Event, r.SignatureStatus
			f.ExitCode, f.Log = one.ExitCode, one.StderrTail
			if f.Cause == "" {
				f.Cause = one.Phase
			}
			return f
		}
	}
	return f
}

func sameText(a, b *string) bool { return a == b || a != nil && b != nil && *a == *b }

// stuckAfter is how long an agent may say that it is at the same thing before a person is told to look.
const stuckAfter = 5 * time.Minute

// stuck adds to a reason what the agent says that it is at, and since when. Whoever has been at one thing for long
// needs a look.
func (p *views) stuck(r *protocol.Reason, host string) {
	seen, ok := p.seen.of(host)
	if trouble := seen.word.Trouble(); trouble != "" && r.Code != codeRevoked {
		r.Text += "; BUT " + trouble
		r.Next = "on the host: nixfleet agent status; bootctl list; journalctl -u nixfleet-agent"
	}
	if !ok || seen.word.Phase == nil || seen.word.Phase.Name == protocol.PhaseIdle || r.Code == codeRevoked {
		return
	}
	phase := seen.word.Phase
	r.Text += "; its agent says that it is " + phase.Name
	if phase.Since == nil {
		return
	}
	age := time.Since(phase.Since.Time).Round(time.Second)
	r.Text += " since " + phase.Since.Time.UTC().Format("15:04:05 UTC") + " (" + age.String() + ")"
	if age > stuckAfter && (r.Next == "" || r.Next == "nothing to do") {
		r.Next = "on the host: nixfleet agent status; journalctl -u nixfleet-agent"
	}
}

func moment(t time.Time) *pki.Timestamp {
	at := pki.At(t.Truncate(time.Millisecond))
	return &at
}
