package agent

import (
	"context"
	"fmt"
	"slices"
	"time"

	"github.com/rs/zerolog"

	"nixfleet/nixops"
	"nixfleet/nixops/fleet"
	"nixfleet/pki"
	"nixfleet/roles/agent/journal"
	"nixfleet/roles/agent/verify"
	"nixfleet/roles/protocol"
)

// recaller honours a rollback that the control plane asks for, within its clamps.
type recaller struct {
	cfg      *Config
	log      zerolog.Logger
	host     nixops.Host
	dir      journal.Directory
	clock    *clock
	work     *work
	memory   *memory
	status   *statusFile
	reporter *reporter
	verifier *verify.Verifier
	// resume takes an activation on from its journal.
	resume func(context.Context, *journal.Journal)

	saidRefusal said // of a rollback
}

// rollback honours what the control plane asks only within its clamps: the
// signed policy allows it, once per intent, within one freshness window of the
// commit, and only to the closure that this agent itself recorded.
//
// It says whether that is under way, so that a target has to wait.
func (c *recaller) rollback(ctx context.Context, r *protocol.Rollback) bool {
	r.Rollout = protocol.Clip(r.Rollout, verify.MaxReference)
	j, why := c.mayRollBack(r)
	if why != "" {
		c.refuseRollback(r, why)
		return false
	}
	r.Reason = protocol.Clip(r.Reason, maxReason)
	c.log.Warn().Str("rollout", r.Rollout).Str("reason", r.Reason).Msg("control plane requests a rollback")
	next := *j
	next.Step, next.Units, next.ChannelRef = journal.Undoing, journal.NewUnits(fmt.Sprintf("recall-%d",
		time.Now().UnixMilli())), r.Rollout
	next.Reason, next.Blame, next.Recalled = journal.Because(protocol.CauseRecalled, r.Reason), false, true
	next.Since = pki.At(time.Now().Truncate(time.Millisecond))
	// What ran when it was activated may have been stopped by root since.
	next.UnitsBefore.Ran, next.UndoTries, next.UndoTrouble = nil, 0, ""
	if boot, err := c.host.BootID(ctx); err == nil {
		next.BootID = boot
	}
	if err := c.dir.Begin(&next); err != nil {
		c.log.Error().Err(err).Msg("rollback failed to begin")
		return false
	}
	c.work.start(ctx, func(ctx context.Context) { c.resume(ctx, &next) })
	return true
}

const (
	alreadyBack = "this host is back already"
	underWay    = "an activation is under way"
)

// refuseRollback says why a rollback is not honoured, less and less often: it is asked
// for again and again.
func (c *recaller) refuseRollback(r *protocol.Rollback, why string) {
	c.log.Warn().Str("rollout", r.Rollout).Str("why", why).Msg("rollback refused")
	if why == alreadyBack {
		c.reporter.report(protocol.EventRollbackTriggered, r.Rollout,
			protocol.Reasoned{Reason: protocol.CauseRecalled.With("already back")})
		return
	}
	if why == underWay {
		return
	}
	c.status.refused.Add(1)
	if text := r.Rollout + ": " + why; !c.saidRefusal.lately(text) {
		c.reporter.other(protocol.KindRollbackRefused, text)
	}
}

// mayRollBack gives the journal of the commit that is to be taken back, or why
// it is not.
func (c *recaller) mayRollBack(r *protocol.Rollback) (*journal.Journal, string) {
	if c.work.busy.Load() {
		return nil, underWay
	}
	if h := c.memory.hold.Load(); h != nil {
		return nil, "held by root: " + h.text()
	}
	head := c.verifier.Head()
	if head == nil && !c.cfg.AllowRollback {
		return nil, "no signed head allows it"
	}
	if head != nil && head.OnHealthFailure != fleet.OnFailureRollback {
		return nil, "the signed policy is " + string(head.OnHealthFailure)
	}
	j := journal.Optional[journal.Journal](c.dir, committedFile, func(error) {})
	done := journal.Optional[recalled](c.dir, recalledFile, func(error) {})
	last := c.memory.confirmed.Load()
	switch {
	case last == nil && done != nil:
		return nil, alreadyBack
	case j == nil || last == nil || j.Closure != last.Closure:
		return nil, "no previous closure is recorded"
	case head == nil && r.Rollout != j.RolloutID && r.Rollout != j.ChannelRef:
		return nil, "it names another rollout than the one that this host runs"
	case head != nil && head.Intent != j.Intent:
		return nil, "the head names another rollout than the one that this host runs"
	case done != nil && slices.Contains(done.Intents, j.Intent):
		return nil, "this rollout was already rolled back once"
	}
	window := c.cfg.MaxManifestAge
	if head != nil {
		window = fleet.Minutes(head.FreshnessWindow)
	}
	if c.clock.now().Sub(last.At.Time) > window {
		return nil, "the commit is older than the freshness window"
	}
	return j, ""
}
