package agent

import (
	"context"
	"errors"
	"fmt"
	"math"
	"net/http"
	"time"

	"github.com/rs/zerolog"

	"nixfleet/pki"
	"nixfleet/roles/agent/verify"
	"nixfleet/roles/protocol"
	"nixfleet/roles/protocol/client"
)

// answers verifies what a control plane answers to a check-in, and acts on it.
type answers struct {
	log       zerolog.Logger
	client    *client.Client
	status    *statusFile
	reporter  *reporter
	verifier  *verify.Verifier
	contact   *contact
	memory    *memory
	activator *activator
	recaller  *recaller
	lookahead *lookahead

	unfetched     *offer    // whose manifest or proof could not be had
	doubted       time.Time // when an answer was last not believed
	saidDoubt     said      // about an answer
	reportedStale bool
	doubtful      bool // the last answer was not believed
}

// handle verifies an answer and acts on it.
func (a *answers) handle(ctx context.Context, answer *protocol.CheckinResponse, sent time.Time) {
	a.doubtful = false
	a.reporter.answered.Store(true)
	a.status.overdue.Store(false)
	a.status.note(func(s *status) { s.LastContact, s.ContactError = pki.At(time.Now()), "" })
	known := a.verifier.HeadHash()
	if err := a.verifier.UpdateHead(ctx, source{a.client}, answer.Head); err != nil {
		a.distrust(answer.Target, err)
		a.reportStale()
		return
	}
	if f := a.contact.fetch.Load(); a.verifier.HeadHash() != known && f != nil && f.Result != protocol.FetchOK {
		// What failed before was of an older release, or has been had by now.
		a.contact.fetch.Store(&protocol.FetchOutcome{Result: protocol.FetchOK,
			RolloutID: nonEmpty(a.verifier.Head().RolloutID)})
	}
	a.reportStale()
	if a.verifier.Mine() {
		a.memory.follow(ctx, a.verifier.Head().Intent)
	}
	// A rollback that is refused does not keep the host from what mends it.
	if answer.Rollback != nil && a.recaller.rollback(ctx, answer.Rollback) {
		return
	}
	if answer.Target == nil {
		a.fetchAgain(ctx, answer.Head)
		a.lookahead.plan(ctx)
		if answer.Head == nil {
			a.forgetDoubt()
		}
		// What an activation waits for, a boot or its own agent, is still waited for.
		if a.activator.idle() {
			a.status.waiting("nothing: the control plane has no other target for this host")
		}
		return
	}
	a.consider(ctx, &offer{answer.Target, sent}, answer.Head)
}

// offer is a target as it came, and when it was asked for.
type offer struct {
	target *protocol.Target
	sent   time.Time
}

// consider verifies a target and takes it.
func (a *answers) consider(ctx context.Context, o *offer, head *protocol.HeadRef) {
	a.unfetched = nil
	w, err := a.verifier.Target(ctx, source{a.client}, o.target, head, o.sent)
	if err != nil {
		if a.distrust(o.target, err) == protocol.FetchFailed {
			a.unfetched = o
		}
		return
	}
	a.contact.fetch.Store(&protocol.FetchOutcome{
		Result: protocol.FetchOK, RolloutID: nonEmpty(w.RolloutID()), Dispatch: w.Dispatch(),
	})
	if w.Late() {
		return // it is offered again, now that its manifest could be had
	}
	a.activator.take(ctx, w)
}

// fetchAgain tries once more what could not be fetched for a target. A control plane
// does not offer a target again whose fetch has failed [A20].
func (a *answers) fetchAgain(ctx context.Context, head *protocol.HeadRef) {
	o := a.unfetched
	if o == nil {
		return
	}
	if head != nil && a.verifier.Head().RolloutID != o.target.RolloutID {
		a.unfetched = nil
		return
	}
	a.consider(ctx, o, head)
}

// distrust notes and reports an answer that did not verify, and gives the outcome
// of the fetch.
func (a *answers) distrust(t *protocol.Target, err error) (result string) {
	if errors.Is(err, verify.ErrReplaced) {
		a.log.Info().Err(err).Msg("answer ignored: a newer release has come")
		return ""
	}
	text := protocol.Clip(err.Error(), maxReason)
	a.log.Error().Str(zerolog.ErrorFieldName, text).Msg("answer refused: it does not verify")
	if t != nil {
		// What nothing has verified is kept and reported no longer than it may be.
		bounded := *t
		for _, s := range []*string{&bounded.RolloutID, &bounded.ClosureHash, &bounded.ChannelRef} {
			*s = protocol.Clip(*s, verify.MaxReference)
		}
		t = &bounded
	}
	outcome := &protocol.FetchOutcome{Result: protocol.FetchVerifyFailed, Error: &text}
	event, dispatch := "", ""
	if v := (*verify.Refusal)(nil); errors.As(err, &v) {
		outcome.Result, event = v.Fetch, v.Event
	}
	if t != nil {
		dispatch = verify.DispatchName(t)
		outcome.RolloutID, outcome.Dispatch = &t.RolloutID, dispatch
	}
	a.contact.fetch.Store(outcome)
	a.doubted, a.doubtful = time.Now(), true
	a.status.refused.Add(1)
	a.status.note(func(s *status) {
		s.Waiting = "refused the answer of the control plane: " + text
		s.Next = "check the release with nixfleet verify; if it verifies, the control plane sent something else"
	})
	rollout := ""
	if t != nil {
		rollout = t.RolloutID
	}
	what := event + " " + rollout
	if event != protocol.EventStaleTarget { // whose text tells the age
		what += " " + text
	}
	if a.saidDoubt.lately(what) {
		return outcome.Result
	}
	switch event {
	case protocol.EventStaleTarget:
		if old := (*verify.Stale)(nil); t != nil && errors.As(err, &old) {
			a.reporter.reportOf(dispatch, event, t.ChannelRef, protocol.StaleTarget{
				ClosureHash: t.ClosureHash, ChannelRef: t.ChannelRef, SignedAt: pki.At(old.SignedAt),
				FreshnessWindowSecs: uint32(min(old.Window/time.Second, math.MaxUint32)), AgeSecs: int64(old.Age / time.Second),
			})
		}
	case protocol.EventVerifyMismatch:
		if t != nil {
			a.reporter.reportOf(dispatch, event, t.ChannelRef,
				protocol.VerifyMismatch{Expected: text, Actual: t.ClosureHash})
		}
	case protocol.EventTrustError:
		a.reporter.report(event, "", protocol.Reasoned{Reason: text})
	case protocol.EventManifestMissing, protocol.EventManifestVerifyFailed, protocol.EventManifestMismatch:
		a.reporter.reportOf(dispatch, event, "", protocol.ManifestProblem{RolloutID: rollout, Reason: text})
	}
	return outcome.Result
}

// forgetDoubt takes back, after a time, that an answer could not be believed: a control
// plane without heads offers nothing for as long as this host says so, and may not be the
// one that it is said of.
func (a *answers) forgetDoubt() {
	f := a.contact.fetch.Load()
	if f == nil || f.Result != protocol.FetchVerifyFailed {
		return
	}
	if time.Since(a.doubted) > maxContact {
		a.contact.fetch.Store(&protocol.FetchOutcome{Result: protocol.FetchNone})
	}
}

// reportStale makes withholding visible: without a head fresher than its
// window this host says so, once per time that it begins.
func (a *answers) reportStale() {
	over, stale := a.verifier.Stale()
	a.status.note(func(s *status) {
		s.Stale = ""
		if stale {
			s.Stale = fmt.Sprintf("release-stale: the newest release is %s past its window", over.Round(time.Second))
		}
	})
	if stale && !a.reportedStale {
		a.log.Warn().Dur("over", over).Msg("release-stale")
		a.reporter.other(protocol.KindReleaseStale,
			"the newest release is past its window by "+over.Round(time.Second).String())
	}
	a.reportedStale = stale
}

// source is the control plane as a source of signed documents.
type source struct{ *client.Client }

func (s source) HeadProof(ctx context.Context, channel, hostname string) (*protocol.Proof, error) {
	proof, err := s.Client.HeadProof(ctx, channel, hostname)
	var refused *client.Error
	if errors.As(err, &refused) && refused.Status == http.StatusNotFound {
		return nil, fmt.Errorf("%w: %w", verify.ErrNoEntry, err)
	}
	return proof, err
}
