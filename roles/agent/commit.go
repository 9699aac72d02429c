package agent

import (
	"context"
	"errors"
	"fmt"
	"time"

	"nixfleet/nixops"
	"nixfleet/nixops/disk"
	"nixfleet/pki"
	"nixfleet/roles/agent/journal"
	"nixfleet/roles/agent/undo"
	"nixfleet/roles/protocol"
	"nixfleet/roles/protocol/client"
)

// commit makes the proven generation the boot default. It holds the lock all
// the while, so that a deadline comes before or after it, never in between.
func (a *agent) commit(ctx context.Context, j *journal.Journal) (*journal.Journal, error) {
	work := context.WithoutCancel(ctx) // not to be left half-way by our own end
	err := func() error {
		unlock, err := a.dir.Lock()
		if err != nil {
			return err
		}
		defer unlock()
		if j, err = a.dir.AdvanceLocked(time.Now(), []journal.Step{journal.Proven, journal.Committing}, journal.Committing, nil); err != nil {
			return err
		}
		return a.makeDefault(work, j)
	}()
	if errors.Is(err, journal.ErrMoved) {
		return nil, err
	}
	if err == nil {
		return a.dir.Journal()
	}
	reason := trouble(protocol.CausePreflight, err)
	if local := (*localError)(nil); errors.As(err, &local) {
		reason = local.reason
	}
	return nil, errors.Join(err, a.undo(ctx, reason))
}

// makeDefault sets profile and boot default. The caller holds the journal's lock.
func (a *agent) makeDefault(ctx context.Context, j *journal.Journal) error {
	// A switch by hand that is going on shows what it is only when it is over.
	if err := a.undoer.WaitForLock(ctx); err != nil {
		return err
	}
	if current, err := a.host.CurrentSystem(ctx); err != nil {
		return err
	} else if !a.undoer.Runs(ctx, current, j.Closure) {
		// Root switched by hand before the proven generation was committed.
		return &localError{journal.Because(protocol.CauseThirdClosure, current), ""}
	}
	if err := a.host.SetProfile(ctx, j.Closure); err != nil {
		return fmt.Errorf("set profile: %w", err)
	}
	if j.BootsOnce {
		if err := a.host.SetStaged(ctx, ""); err != nil {
			a.log.Warn().Err(err).Msg("staged profile not dropped")
		}
	}
	if err := a.undoer.Boot(ctx, j, j.Closure); err != nil {
		return &localError{trouble(protocol.CauseBoot, err), ""}
	}
	if err := a.bootTook(ctx, j); err != nil {
		return &localError{trouble(protocol.CauseBoot, err), ""}
	}
	_, err := a.dir.AdvanceLocked(time.Now(), []journal.Step{journal.Committing}, journal.Committed, nil)
	return err
}

// bootTook looks whether an installer that ended well has done anything. Where the boot
// default was read rightly before, which the profile shows, is what it was, and no entry
// starts the closure, a reboot would go back without a word. Of a loader that cannot be
// read nothing is known, which is no error.
func (a *agent) bootTook(ctx context.Context, j *journal.Journal) error {
	def, err := a.host.BootDefault(ctx)
	if err != nil || def == "" || def == j.Closure || def != j.Before.BootDefault || def != j.Before.Profile {
		return nil
	}
	if has, err := a.host.HasBootEntry(ctx, j.Closure); err != nil || has {
		return nil
	}
	return fmt.Errorf("the installer ended well and changed nothing: %s is still what boots next", def)
}

// trouble is the reason for an undo after an error of this host. A script blames the closure
// whose it is only when it ran and failed.
func trouble(cause protocol.Cause, err error) journal.Reason {
	switch {
	case errors.As(err, new(*undo.ExitError)):
		return journal.Because(cause, err.Error())
	case errors.Is(err, nixops.ErrLockHeld):
		return undo.Locked
	case errors.Is(err, nixops.ErrNoSpace):
		return journal.Because(protocol.CauseNoSpace, cause.With(err.Error()))
	case cause == protocol.CauseBoot:
		return journal.Because(protocol.CausePreflight, cause.With(err.Error()))
	}
	return journal.Because(cause, err.Error())
}

// confirm tells the control plane. The generation is proven: an outage changes
// nothing about it, and only an answer of 410 takes it back. Only the target's own
// agent confirms, and only while the target runs.
func (a *agent) confirm(ctx context.Context, j *journal.Journal) error {
	// Here, since the agent before may have ended between commit and this.
	if err := a.host.DisarmDeadline(ctx, j.Units.Deadline); err != nil && ctx.Err() == nil {
		a.log.Warn().Err(err).Msg("deadline not disarmed; it will find nothing to undo")
	}
	current, err := a.host.CurrentSystem(ctx)
	if err != nil {
		return err
	}
	boot, err := a.host.BootID(ctx)
	if err != nil {
		return err
	}
	if !a.undoer.Runs(ctx, current, j.Closure) {
		return a.elsewhere(ctx, j, current, boot != j.BootID)
	}
	if ok, err := a.mayProve(ctx, j); err != nil || !ok {
		if err == nil {
			a.waiting("the new generation's own agent has to confirm it; this is another")
		}
		return err
	}
	a.waiting("the control plane to accept the confirm of %s", j.Closure)
	for wait := floorPause; ; wait = min(2*wait, maxContact) {
		taken, err := a.client.Confirm(ctx, &protocol.ConfirmRequest{
			Hostname: a.cfg.MachineID, Rollout: j.ChannelRef, Wave: j.Wave,
			Generation: protocol.Generation{ClosureHash: j.Closure, ChannelRef: &j.ChannelRef, BootID: boot},
		})
		if err == nil {
			return a.finish(ctx, j, taken)
		}
		if ctx.Err() != nil {
			return ctx.Err()
		}
		if refused := (*client.Error)(nil); errors.As(err, &refused) && refused.Status == 410 {
			if err := a.undoer.From(ctx, []journal.Step{journal.Committed}, undo.ConfirmRefused); err != nil {
				return err
			}
			a.settle(ctx)
			return nil
		}
		a.log.Warn().Err(err).Dur("retry_in", wait).Msg("confirm not delivered")
		if w := a.told.get(); w != nil && w.Closure() != j.Closure {
			return a.unconfirmed(j, "a newer release is wanted")
		}
		if err := sleep(ctx, wait); err != nil {
			return err
		}
	}
}

// elsewhere: what was committed does not run, because somebody booted or switched to
// another generation before it was confirmed. That is theirs to keep, and nothing
// that was proven here. A boot loader whose files were lost with the power has chosen
// by itself, which is a rollback.
func (a *agent) elsewhere(ctx context.Context, j *journal.Journal, current string, rebooted bool) error {
	def, err := a.host.BootDefault(ctx)
	if err != nil {
		return err
	}
	if rebooted && def != "" && def != j.Closure && def == current {
		if err := a.undoer.From(ctx, []journal.Step{journal.Committed}, undo.PowerLost); err != nil {
			return err
		}
		a.settle(ctx)
		return nil
	}
	a.report(protocol.EventRollbackTriggered, j.ChannelRef, protocol.Reasoned{Reason: protocol.CauseThirdClosure.With(current)})
	a.holdByHand(current)
	return a.unconfirmed(j, current+" runs instead")
}

// unconfirmed ends an activation that the control plane has accepted by no answer.
// Nothing is attested of what runs, and root may still return to what was before.
func (a *agent) unconfirmed(j *journal.Journal, why string) error {
	a.log.Warn().Str("closure", j.Closure).Str("why", why).Msg("not confirmed any more")
	a.waiting("nothing: %s was not confirmed: %s", j.Closure, why)
	a.confirmed.set(nil)
	if err := errors.Join(a.dir.Remove(confirmedFile), a.dir.Write(committedFile, j)); err != nil {
		return err
	}
	return a.dir.End(journal.Committed)
}

// finish remembers the confirmed generation, for attestations, for a rollback
// that the control plane may ask for, and against garbage collection. taken is
// when the control plane took the confirm, by its clock.
func (a *agent) finish(ctx context.Context, j *journal.Journal, taken time.Time) error {
	c := &confirmed{Closure: j.Closure, RolloutID: j.RolloutID, Intent: j.Intent, At: pki.At(a.now().Truncate(time.Millisecond))}
	if taken.After(c.At.Time) && a.identity.mayBe(taken) {
		c.Taken = pki.At(taken.Add(time.Second))
	}
	if err := a.dir.Write(confirmedFile, c); err != nil {
		return err
	}
	a.confirmed.set(c)
	v1 := fmt.Sprintf("%s\n%s+00:00\n", c.Closure, c.At.UTC().Format("2006-01-02T15:04:05"))
	if err := disk.Replace(a.dir.Path("last_confirmed_at"), []byte(v1), 0o600); err != nil {
		return err
	}
	if err := a.dir.Write(committedFile, j); err != nil {
		return err
	}
	if err := a.dir.End(journal.Committed); err != nil {
		return err
	}
	a.forgive()
	a.roots(ctx, j)
	a.log.Info().Str("closure", j.Closure).Str("rollout", j.RolloutID).Msg("confirmed")
	a.waiting("nothing: %s is confirmed", j.Closure)
	return nil
}

// roots keeps the running and the previous closure, and what was fetched ahead,
// and lets the rest go.
func (a *agent) roots(ctx context.Context, j *journal.Journal) {
	keep := map[string]string{"current": j.Closure, "previous": j.Before.Current}
	for name, closure := range keep {
		if err := a.host.AddRoot(ctx, name, closure); err != nil {
			a.log.Warn().Err(err).Str("root", name).Msg("root not set")
			return
		}
	}
	if p := a.ahead.get(); p != nil && p.closure != j.Closure {
		keep[p.closure] = p.closure
	}
	have, err := a.host.Roots(ctx)
	if err != nil {
		a.log.Warn().Err(err).Msg("roots not read")
		return
	}
	for name := range have {
		if keep[name] == "" {
			if err := a.host.RemoveRoot(ctx, name); err != nil {
				a.log.Warn().Err(err).Str("root", name).Msg("root not removed")
			}
		}
	}
}
