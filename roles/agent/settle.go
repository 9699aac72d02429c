package agent

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"nixfleet/nixops/fleet"
	"nixfleet/pki"
	"nixfleet/roles/agent/journal"
	"nixfleet/roles/agent/undo"
	"nixfleet/roles/agent/verify"
	"nixfleet/roles/protocol"
)

const (
	committedFile = "committed.json" // the journal of the confirmed generation
	recalledFile  = "recalled.json"
)

// resume takes on what an earlier agent, or a power cut, left.
func (a *agent) resume(ctx context.Context) {
	j, err := a.dir.Journal()
	if err != nil {
		a.disbelieve(err)
		return
	}
	if j == nil {
		return
	}
	a.log.Info().Str("step", string(j.Step)).Str("closure", j.Closure).Msg("activation found in the journal")
	boot, err := a.host.BootID(ctx)
	if err != nil {
		a.log.Error().Err(err).Msg("activation not taken on")
		return
	}
	current, err := a.host.CurrentSystem(ctx)
	if err != nil {
		a.log.Error().Err(err).Msg("activation not taken on")
		return
	}
	switch rebooted := boot != j.BootID; {
	case j.Step == journal.Staged && !rebooted:
	case j.Step == journal.Staged:
		a.start(ctx, func(ctx context.Context) { a.afterStagedBoot(ctx, j, current) })
	case j.Step == journal.Staging && rebooted && a.undoer.Runs(ctx, current, j.Closure):
		// Power was lost between choosing what boots once and writing it down.
		a.start(ctx, func(ctx context.Context) { a.afterStagedBoot(ctx, j, current) })
	case j.Step == journal.Staging && rebooted:
		if err := a.undoer.From(ctx, []journal.Step{journal.Staging}, undo.PowerLost); err != nil {
			a.log.Error().Err(err).Msg("undo failed")
		}
		a.settle(ctx)
	case j.Step == journal.Fetching:
		// Nothing was changed; the closure is offered again or was superseded.
		if err := a.dir.End(journal.Fetching); err != nil {
			a.log.Error().Err(err).Msg("journal not closed")
		}
	case rebooted && slices.Contains([]journal.Step{journal.Arming, journal.Switching, journal.Checking, journal.Proven}, j.Step),
		rebooted && j.Step == journal.Committing && !a.undoer.Runs(ctx, current, j.Closure):
		if err := a.undo(ctx, undo.PowerLost); err != nil {
			a.log.Error().Err(err).Msg("undo failed")
		}
	case j.Step == journal.Undone:
	default:
		a.start(ctx, func(ctx context.Context) { a.advanceFrom(ctx, j) })
	}
}

// disbelieve sets aside a journal that cannot be believed and leaves the host as
// it is: nobody knows what was under way.
func (a *agent) disbelieve(err error) {
	aside, asideErr := a.dir.SetAside(journal.File)
	a.log.Error().Err(err).AnErr("set_aside", asideErr).Str("kept_as", aside).Msg("journal not believed")
	a.other(protocol.KindJournalSetAside, err.Error())
	a.status.note(func(s *status) {
		s.Waiting, s.Next = "the journal could not be believed and is kept as "+aside, "compare what runs with the profile and the boot default, above"
	})
}

// settle reports an undo that is done and closes its journal.
func (a *agent) settle(ctx context.Context) {
	j, err := a.dir.Journal()
	if errors.Is(err, journal.ErrUnfit) && !a.busy.get() {
		a.disbelieve(err)
		return
	}
	if err == nil && j != nil && j.Step == journal.Undoing && !a.busy.get() && time.Since(j.Since.Time) > undo.Again {
		a.start(ctx, func(ctx context.Context) { a.advanceFrom(ctx, j) })
		return
	}
	if err != nil || j == nil || j.Step != journal.Undone {
		return
	}
	if j.Blame {
		a.report(protocol.EventActivationFailed, j.ChannelRef, protocol.ActivationFailed{Phase: j.Reason.String(), ExitCode: j.ExitCode, StderrTail: nonEmpty(j.Output)})
	}
	told := j.Reason.String()
	if j.UndoTrouble != "" {
		told += "; " + j.UndoTrouble
	}
	a.report(protocol.EventRollbackTriggered, j.ChannelRef, protocol.Reasoned{Reason: told})
	if j.Recalled {
		a.forgetRecalled(j)
	} else {
		a.punish(j.Closure, j.Intent, j.ChannelRef, j.Reason, j.Blame)
	}
	if j.Reason.Cause == protocol.CauseThirdClosure && a.hold.get() == nil {
		a.holdByHand(j.Reason.Text)
	}
	drop := []string{"staged"}
	if j.Blame {
		drop = append(drop, j.Closure)
	}
	for _, name := range drop {
		if err := a.host.RemoveRoot(ctx, name); err != nil {
			a.log.Warn().Err(err).Str("root", name).Msg("root not removed")
		}
	}
	a.status.note(func(s *status) {
		s.Waiting, s.Next = "this host is back on "+j.Before.Current+": "+told, "journalctl -u "+j.Units.Switch
	})
	if err := a.dir.End(journal.Undone); err != nil {
		a.log.Error().Err(err).Msg("journal not closed")
	}
}

func nonEmpty(s string) *string {
	if s == "" {
		return nil
	}
	return &s
}

// punish quarantines a closure that is to blame, and counts an undo without
// blame, after which it is tried again with patience.
func (a *agent) punish(closure, intent, channelRef string, reason journal.Reason, blame bool) {
	next := a.count(closure, intent, channelRef, reason, func(q *quarantine) {
		switch {
		case blame:
			q.Failures++
		case reason.Cause != protocol.CauseLockHeld:
			q.Unreachable++
		}
	})
	if blame {
		a.log.Warn().Str("closure", closure).Stringer("reason", reason).Msg("closure quarantined")
		a.report(protocol.EventClosureQuarantined, channelRef, protocol.ClosureQuarantined{
			ClosureHash: closure, ChannelRef: channelRef, FailureCount: next.Failures, Reason: reason.String(),
		})
	}
}

// postpone notes that this host could not begin: it tries again for as long as
// the closure is wanted, less and less often.
func (a *agent) postpone(closure, intent, channelRef string, reason journal.Reason) {
	a.count(closure, intent, channelRef, reason, func(q *quarantine) {
		if reason.Cause != protocol.CauseLockHeld {
			q.Refused++
		}
	})
}

func (a *agent) count(closure, intent, channelRef string, reason journal.Reason, change func(*quarantine)) quarantine {
	q := a.quarantine.get()
	if q == nil || q.Closure != closure {
		q = &quarantine{Closure: closure, Intent: intent, ChannelRef: channelRef}
	}
	next := *q
	next.ChannelRef, next.Reason, next.At = channelRef, reason, pki.At(a.now().Truncate(time.Millisecond))
	change(&next)
	if err := a.dir.Write(quarantineFile, &next); err != nil {
		a.log.Error().Err(err).Msg("quarantine not written")
	}
	a.quarantine.set(&next)
	return next
}

// recalled are the intents for which a rollback was honoured.
type recalled struct {
	Intents []string `json:"intents" shape:"R"`
}

const maxRecalled = 64

// forgetRecalled notes that a generation was taken back at the control plane's wish.
// It is not taken again until something else is wanted.
func (a *agent) forgetRecalled(j *journal.Journal) {
	done := journal.Optional[recalled](a.dir, recalledFile, func(error) {})
	if done == nil {
		done = &recalled{}
	}
	done.Intents = append(done.Intents, j.Intent)
	done.Intents = done.Intents[max(0, len(done.Intents)-maxRecalled):]
	if err := errors.Join(a.dir.Write(recalledFile, done), a.dir.Remove(confirmedFile)); err != nil {
		a.log.Error().Err(err).Msg("rollback not noted")
	}
	a.confirmed.set(nil)
	a.punish(j.Closure, j.Intent, j.ChannelRef, journal.Reason{Cause: protocol.CauseRecalled}, true)
}

// rollback honours what the control plane asks only within its clamps: the
// signed policy allows it, once per intent, within one freshness window of the
// commit, and only to the closure that this agent itself recorded.
//
// It says whether that is under way, so that a target has to wait.
func (a *agent) rollback(ctx context.Context, r *protocol.Rollback) bool {
	r.Rollout = protocol.Clip(r.Rollout, verify.MaxReference)
	j, why := a.mayRollBack(r)
	if why != "" {
		a.refuseRollback(r, why)
		return false
	}
	r.Reason = protocol.Clip(r.Reason, maxReason)
	a.log.Warn().Str("rollout", r.Rollout).Str("reason", r.Reason).Msg("rollback asked for by the control plane")
	next := *j
	next.Step, next.Units, next.ChannelRef = journal.Undoing, journal.NewUnits(fmt.Sprintf("recall-%d", time.Now().UnixMilli())), r.Rollout
	next.Reason, next.Blame, next.Recalled = journal.Because(protocol.CauseRecalled, r.Reason), false, true
	next.Since = pki.At(time.Now().Truncate(time.Millisecond))
	// What ran when it was activated may have been stopped by root since.
	next.UnitsBefore.Ran, next.UndoTries, next.UndoTrouble = nil, 0, ""
	if boot, err := a.host.BootID(ctx); err == nil {
		next.BootID = boot
	}
	if err := a.dir.Begin(&next); err != nil {
		a.log.Error().Err(err).Msg("rollback not begun")
		return false
	}
	a.start(ctx, func(ctx context.Context) { a.advanceFrom(ctx, &next) })
	return true
}

const (
	alreadyBack = "this host is back already"
	underWay    = "an activation is under way"
)

// refuseRollback says why a rollback is not honoured, less and less often: it is asked
// for again and again.
func (a *agent) refuseRollback(r *protocol.Rollback, why string) {
	a.log.Warn().Str("rollout", r.Rollout).Str("why", why).Msg("rollback refused")
	if why == alreadyBack {
		a.report(protocol.EventRollbackTriggered, r.Rollout, protocol.Reasoned{Reason: protocol.CauseRecalled.With("already back")})
		return
	}
	if text := r.Rollout + ": " + why; why != underWay && !a.saidRefusal.lately(text) {
		a.other(protocol.KindRollbackRefused, text)
	}
}

// mayRollBack gives the journal of the commit that is to be taken back, or why
// it is not.
func (a *agent) mayRollBack(r *protocol.Rollback) (*journal.Journal, string) {
	if a.busy.get() {
		return nil, underWay
	}
	if h := a.hold.get(); h != nil {
		return nil, "held by root: " + h.text()
	}
	head := a.verifier.Head()
	if head == nil && !a.cfg.AllowRollback {
		return nil, "no signed head allows it"
	}
	if head != nil && head.OnHealthFailure != fleet.OnFailureRollback {
		return nil, "the signed policy is " + string(head.OnHealthFailure)
	}
	j := journal.Optional[journal.Journal](a.dir, committedFile, func(error) {})
	done := journal.Optional[recalled](a.dir, recalledFile, func(error) {})
	c := a.confirmed.get()
	switch {
	case c == nil && done != nil:
		return nil, alreadyBack
	case j == nil || c == nil || j.Closure != c.Closure:
		return nil, "nothing is recorded to return to"
	case head == nil && r.Rollout != j.RolloutID && r.Rollout != j.ChannelRef:
		return nil, "it names another rollout than that of what runs here"
	case head != nil && head.Intent != j.Intent:
		return nil, "what runs here is not of the rollout that the head names"
	case done != nil && slices.Contains(done.Intents, j.Intent):
		return nil, "it was honoured once for this intent"
	}
	window := a.cfg.MaxManifestAge
	if head != nil {
		window = fleet.Minutes(head.FreshnessWindow)
	}
	if a.now().Sub(c.At.Time) > window {
		return nil, "the commit is older than the freshness window"
	}
	return j, ""
}
