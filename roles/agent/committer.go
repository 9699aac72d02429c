package agent

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/rs/zerolog"

	"nixfleet/nixops"
	"nixfleet/nixops/disk"
	"nixfleet/pki"
	"nixfleet/roles/agent/journal"
	"nixfleet/roles/agent/undo"
	"nixfleet/roles/protocol"
	"nixfleet/roles/protocol/client"
)

// committer makes a proven generation the boot default and has it confirmed.
type committer struct {
	cfg       *Config
	log       zerolog.Logger
	host      nixops.Host
	dir       journal.Directory
	undoer    *undo.Undoer
	clock     *clock
	status    *statusFile
	memory    *memory
	reporter  *reporter
	identity  *identity
	client    *client.Client
	prover    *prover
	settler   *settler
	lookahead *lookahead
}

// commit makes the proven generation the boot default. It holds the lock all
// the while, so that a deadline comes before or after it, never in between.
func (c *committer) commit(ctx context.Context, j *journal.Journal) (*journal.Journal, error) {
	work := context.WithoutCancel(ctx) // not to be left half-way by our own end
	err := func() error {
		unlock, err := c.dir.Lock()
		if err != nil {
			return err
		}
		defer unlock()
		if j, err = c.dir.AdvanceLocked(time.Now(), []journal.Step{journal.Proven, journal.Committing}, journal.Committing,
			func(j *journal.Journal) { j.BootBegun = true }); err != nil {
			return err
		}
		return c.makeDefault(work, j)
	}()
	if errors.Is(err, journal.ErrMoved) {
		return nil, err
	}
	if err == nil {
		return c.dir.Journal()
	}
	reason := trouble(protocol.CausePreflight, err)
	if local := (*localError)(nil); errors.As(err, &local) {
		reason = local.reason
	}
	return nil, errors.Join(err, c.settler.undo(ctx, reason))
}

// makeDefault sets profile and boot default. The caller holds the journal's lock.
func (c *committer) makeDefault(ctx context.Context, j *journal.Journal) error {
	// A switch by hand that is going on shows what it is only when it is over.
	if err := c.undoer.WaitForLock(ctx); err != nil {
		return err
	}
	if current, err := c.host.CurrentSystem(ctx); err != nil {
		return err
	} else if !c.undoer.Runs(ctx, current, j.Closure) {
		// Root switched by hand before the proven generation was committed.
		return &localError{journal.Because(protocol.CauseThirdClosure, current), ""}
	}
	if err := c.host.SetProfile(ctx, j.Closure); err != nil {
		return fmt.Errorf("set profile: %w", err)
	}
	if j.BootsOnce {
		if err := c.host.SetStaged(ctx, ""); err != nil {
			c.log.Warn().Err(err).Msg("staged profile not dropped")
		}
	}
	if err := c.undoer.Boot(ctx, j, j.Closure); err != nil {
		return &localError{trouble(protocol.CauseBoot, err), ""}
	}
	if err := c.bootTook(ctx, j); err != nil {
		return &localError{trouble(protocol.CauseBoot, err), ""}
	}
	_, err := c.dir.AdvanceLocked(time.Now(), []journal.Step{journal.Committing}, journal.Committed, nil)
	return err
}

// bootTook looks whether an installer that ended well has done anything. Where the boot
// default was read rightly before, which the profile shows, is what it was, and no entry
// starts the closure, a reboot would go back without a word. Of a loader that cannot be
// read nothing is known, which is not an error.
func (c *committer) bootTook(ctx context.Context, j *journal.Journal) error {
	def, err := c.host.BootDefault(ctx)
	if err != nil || def == "" || def == j.Closure || def != j.Before.BootDefault || def != j.Before.Profile {
		return nil
	}
	if has, err := c.host.HasBootEntry(ctx, j.Closure); err != nil || has {
		return nil
	}
	return fmt.Errorf("the boot loader installer succeeded but changed nothing: %s still boots next", def)
}

// trouble is the reason for an undo after an error of this host. A script blames the closure
// whose it is only when it ran and failed.
func trouble(cause protocol.Cause, err error) journal.Reason {
	switch {
	case errors.Is(err, nixops.ErrNoSpace):
		return journal.Because(protocol.CauseNoSpace, cause.With(err.Error()))
	case errors.Is(err, nixops.ErrReadOnly):
		return journal.Because(protocol.CausePreflight, cause.With(err.Error()))
	case errors.As(err, new(*undo.ExitError)):
		return journal.Because(cause, err.Error())
	case errors.Is(err, nixops.ErrLockHeld):
		return undo.Locked
	case cause == protocol.CauseBoot:
		return journal.Because(protocol.CausePreflight, cause.With(err.Error()))
	}
	return journal.Because(cause, err.Error())
}

// confirm tells the control plane. The generation is proven: an outage changes
// nothing about it, and only an answer of 410 takes it back. Only the target's own
// agent confirms, and only while the target runs.
func (c *committer) confirm(ctx context.Context, j *journal.Journal) error {
	// Here, since the agent before may have ended between commit and this.
	if err := c.host.DisarmDeadline(ctx, j.Units.Deadline); err != nil && ctx.Err() == nil {
		c.log.Warn().Err(err).Msg("deadline not disarmed; it will find nothing to undo")
	}
	current, err := c.host.CurrentSystem(ctx)
	if err != nil {
		return err
	}
	boot, err := c.host.BootID(ctx)
	if err != nil {
		return err
	}
	if !c.undoer.Runs(ctx, current, j.Closure) {
		return c.elsewhere(ctx, j, current, boot != j.BootID)
	}
	if ok, err := c.prover.mayProve(ctx, j); err != nil || !ok {
		if err == nil {
			c.status.waiting("the new generation's own agent to confirm it; this is another agent")
		}
		return err
	}
	if err := c.awaitBoot(ctx, j); err != nil {
		return err
	}
	return c.deliver(ctx, j, boot)
}

// deliver confirms until the control plane takes it, refuses it, or wants something newer.
func (c *committer) deliver(ctx context.Context, j *journal.Journal, boot string) error {
	c.status.waiting("the control plane to accept the confirm of %s", j.Closure)
	for wait := floorPause; ; wait = min(2*wait, maxContact) {
		taken, err := c.client.Confirm(ctx, &protocol.ConfirmRequest{
			Hostname: c.cfg.MachineID, Rollout: j.ChannelRef, Wave: j.Wave,
			Generation: protocol.Generation{ClosureHash: j.Closure, ChannelRef: &j.ChannelRef, BootID: boot},
		})
		if err == nil {
			return c.finish(ctx, j, taken)
		}
		if ctx.Err() != nil {
			return ctx.Err()
		}
		if refused := (*client.Error)(nil); errors.As(err, &refused) && refused.Status == 410 {
			if err := c.undoer.From(ctx, []journal.Step{journal.Committed}, undo.ConfirmRefused); err != nil {
				return err
			}
			c.settler.settle(ctx)
			return nil
		}
		c.log.Warn().Err(err).Dur("retry_in", wait).Msg("confirm not delivered")
		if w := c.memory.told.Load(); w != nil && w.Closure() != j.Closure {
			return c.unconfirmed(j, "a newer release is wanted")
		}
		if err := nixops.Sleep(ctx, wait); err != nil {
			return err
		}
	}
}

// elsewhere handles a committed closure that does not run, because root booted or switched to
// another generation before it was confirmed. That is theirs to keep, and nothing
// that was proven here. A boot loader whose files were lost with the power has chosen
// by itself, which is a rollback.
func (c *committer) elsewhere(ctx context.Context, j *journal.Journal, current string, rebooted bool) error {
	def, err := c.host.BootDefault(ctx)
	if err != nil {
		return err
	}
	if rebooted && def != "" && def != j.Closure && def == current {
		if err := c.undoer.From(ctx, []journal.Step{journal.Committed}, undo.PowerLost); err != nil {
			return err
		}
		c.settler.settle(ctx)
		return nil
	}
	c.reporter.report(protocol.EventRollbackTriggered, j.ChannelRef,
		protocol.Reasoned{Reason: protocol.CauseThirdClosure.With(current)})
	c.memory.holdByHand(current)
	return c.unconfirmed(j, current+" runs instead")
}

// unconfirmed ends an activation that the control plane has accepted by no answer.
// Nothing is attested of what runs, and root may still return to what was before.
func (c *committer) unconfirmed(j *journal.Journal, why string) error {
	c.log.Warn().Str("closure", j.Closure).Str("why", why).Msg("activation ends without a confirm")
	c.status.waiting("nothing: %s was not confirmed: %s", j.Closure, why)
	c.memory.confirmed.Store(nil)
	if err := errors.Join(c.dir.Remove(confirmedFile), c.dir.Write(committedFile, j)); err != nil {
		return err
	}
	return c.dir.End(journal.Committed)
}

// finish remembers the confirmed generation, for attestations, for a rollback
// that the control plane may ask for, and against garbage collection. taken is
// when the control plane took the confirm, by its clock.
func (c *committer) finish(ctx context.Context, j *journal.Journal, taken time.Time) error {
	last := &confirmed{Closure: j.Closure, RolloutID: j.RolloutID, Intent: j.Intent,
		At: pki.At(c.clock.now().Truncate(time.Millisecond))}
	last.ChannelRef = j.ChannelRef
	if w := c.memory.told.Load(); w != nil && w.Closure() == j.Closure && w.RolloutID() == j.RolloutID {
		last.SignedAt = pki.At(w.SignedAt())
	}
	if taken.After(last.At.Time) && c.identity.mayBe(taken) {
		last.Taken = pki.At(taken.Add(time.Second))
	}
	if err := c.dir.Write(confirmedFile, last); err != nil {
		return err
	}
	c.memory.confirmed.Store(last)
	v1 := fmt.Sprintf("%s\n%s+00:00\n", last.Closure, last.At.UTC().Format("2006-01-02T15:04:05"))
	if err := disk.Replace(c.dir.Path("last_confirmed_at"), []byte(v1), 0o600); err != nil {
		return err
	}
	if err := c.dir.Write(committedFile, j); err != nil {
		return err
	}
	if err := c.dir.End(journal.Committed); err != nil {
		return err
	}
	c.memory.forgive()
	c.roots(ctx, j)
	c.log.Info().Str("closure", j.Closure).Str("rollout", j.RolloutID).Msg("confirmed")
	c.status.waiting("nothing: %s is confirmed", j.Closure)
	return nil
}

// roots keeps the running and the previous closure, and what was fetched ahead,
// and lets the rest go.
func (c *committer) roots(ctx context.Context, j *journal.Journal) {
	keep := map[string]string{"current": j.Closure, "previous": j.Before.Current}
	for name, closure := range keep {
		if err := c.host.AddRoot(ctx, name, closure); err != nil {
			c.log.Warn().Err(err).Str("root", name).Msg("gc root not set")
			return
		}
	}
	if p := c.lookahead.ahead.Load(); p != nil && p.closure != j.Closure {
		keep[p.closure] = p.closure
	}
	have, err := c.host.Roots(ctx)
	if err != nil {
		c.log.Warn().Err(err).Msg("gc roots not read")
		return
	}
	for name := range have {
		if keep[name] == "" {
			if err := c.host.RemoveRoot(ctx, name); err != nil {
				c.log.Warn().Err(err).Str("root", name).Msg("gc root not removed")
			}
		}
	}
}
