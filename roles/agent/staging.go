package agent

import (
	"context"
	"fmt"
	"time"

	"nixfleet/pki"
	"nixfleet/roles/agent/journal"
	"nixfleet/roles/agent/verify"
	"nixfleet/roles/protocol"
)

// Updates that cannot be switched to live wait for a boot. A boot loader that can
// start an entry once gets the target for one boot and keeps its default, so that
// a target that does not come up is left again by the next reset. With any other
// loader the target becomes the default at once, and nothing reboots by itself.

// mustWaitForBoot names the component for which the target cannot be switched
// to live; empty when it can.
func (a *agent) mustWaitForBoot(ctx context.Context, j *journal.Journal) (string, error) {
	target, err := a.host.Inspect(ctx, j.Closure)
	if err != nil {
		return "", err
	}
	running, err := a.host.Inspect(ctx, j.Before.Current)
	if err != nil {
		// A running system that the store does not know has nothing to compare.
		return "", nil
	}
	differs := map[string]bool{
		"dbus": running.DBus != target.DBus, "switch-inhibitors": len(target.Inhibitors(running)) > 0,
		"kernel": running.Kernel != target.Kernel, "initrd": running.Initrd != target.Initrd,
		"kernel-params": running.KernelParams != target.KernelParams, "systemd": running.SystemdPath != target.SystemdPath,
	}
	for _, always := range []string{"dbus", "switch-inhibitors"} {
		if differs[always] {
			return always, nil
		}
	}
	for _, component := range a.cfg.DeferOn {
		if differs[component] {
			return component, nil
		}
	}
	return "", nil
}

// stage prepares the next boot and reports that it is waited for.
func (a *agent) stage(ctx context.Context) (*journal.Journal, error) {
	work := context.WithoutCancel(ctx)
	once, err := a.host.CanBootOnce(work)
	if err != nil {
		a.log.Warn().Err(err).Msg("boot loader not asked; it is taken for one that cannot fall back")
	}
	j, err := a.dir.Advance(time.Now(), []journal.Step{journal.Staging}, journal.Staging, func(j *journal.Journal) {
		j.BootsOnce, j.Reboots = once, once && a.reboots.mode != rebootNever
	})
	if err != nil {
		return nil, err
	}
	if err := a.prepareBoot(work, j); err != nil {
		reason := trouble(protocol.CauseBoot, err)
		if reason.BlamesRelease() && j.BootsOnce {
			// It was the previous closure's installer that failed.
			reason = journal.Because(protocol.CausePreflight, "staging: "+err.Error())
		}
		return nil, a.undoer.From(ctx, []journal.Step{journal.Staging}, reason)
	}
	a.report(protocol.EventActivationDeferred, j.ChannelRef, a.deferred(j))
	if j.BootsOnce {
		a.waiting("a reboot: %s differs and cannot be switched live; %s", j.Component, a.reboots)
	} else {
		a.waiting("a person to reboot: %s differs and cannot be switched live; %s", j.Component, noFallback)
	}
	_, err = a.dir.Advance(time.Now(), []journal.Step{journal.Staging}, journal.Staged, nil)
	return nil, err
}

// prepareBoot has the next boot start the target.
func (a *agent) prepareBoot(ctx context.Context, j *journal.Journal) error {
	if err := a.host.AddRoot(ctx, "staged", j.Closure); err != nil {
		return err
	}
	if err := a.undoer.KeepExecutable(ctx, j); err != nil {
		return err
	}
	if j.BootsOnce {
		return a.bootOnce(ctx, j)
	}
	// It becomes the boot default [A11].
	if err := a.host.SetProfile(ctx, j.Closure); err != nil {
		return err
	}
	return a.undoer.Boot(ctx, j, j.Closure)
}

// noFallback is what status says of a staged update that nothing returns from.
const noFallback = "no automatic fallback"

// deferred is the report of a staged update, in the contract's three words.
func (a *agent) deferred(j *journal.Journal) protocol.ActivationDeferred {
	d := protocol.ActivationDeferred{ClosureHash: j.Closure, ChannelRef: j.ChannelRef, Component: j.Component}
	switch d.Component {
	case "dbus", "systemd":
	default:
		d.Component = "kernel"
	}
	if j.Reboots {
		d.Reboots = a.reboots.mode
	}
	return d
}

// bootOnce has the previous closure's own installer make an entry for the target,
// from a profile of its own, and chooses it for one boot.
func (a *agent) bootOnce(ctx context.Context, j *journal.Journal) error {
	keep := j.Before.BootDefault
	if keep == "" {
		keep = j.Before.Profile
	}
	if err := a.host.SetStaged(ctx, j.Closure); err != nil {
		return err
	}
	if err := a.undoer.BootUnchecked(ctx, j, keep); err != nil {
		return fmt.Errorf("of %s: %w", keep, err)
	}
	return a.host.SetBootOnce(ctx, j.Closure)
}

// afterStagedBoot proves a staged generation that has been booted, or notes
// that another was.
func (a *agent) afterStagedBoot(ctx context.Context, j *journal.Journal, current string) {
	staged := []journal.Step{journal.Staging, journal.Staged}
	if !a.undoer.Runs(ctx, current, j.Closure) {
		if err := a.undoer.From(ctx, staged, journal.Because(protocol.CauseBoot, current+" was booted instead")); err != nil {
			a.log.Error().Err(err).Msg("undo failed")
			return
		}
		a.settle(ctx)
		return
	}
	j, err := a.takeStagedBoot(ctx, j, staged)
	if err != nil {
		a.log.Error().Err(err).Msg("staged generation not taken on")
		return
	}
	a.advanceFrom(ctx, j)
}

// takeStagedBoot begins the proof of what was booted. The guard has armed the
// deadline already, unless it did not run.
func (a *agent) takeStagedBoot(ctx context.Context, j *journal.Journal, from []journal.Step) (*journal.Journal, error) {
	boot, err := a.host.BootID(ctx)
	if err != nil {
		return nil, err
	}
	restarts, err := a.restarts(ctx)
	if err != nil {
		return nil, err
	}
	armedAt, err := a.host.SinceBoot(ctx)
	if err != nil {
		return nil, err
	}
	if armed, err := a.host.DeadlineArmed(ctx, j.Units.Deadline); err != nil {
		return nil, err
	} else if !armed {
		if err := a.undoer.Arm(ctx, j); err != nil {
			return nil, err
		}
	}
	a.prober.reset()
	return a.dir.Advance(time.Now(), from, journal.Checking, func(j *journal.Journal) {
		j.BootID, j.StartedAt, j.GatePassed, j.Restarts = boot, pki.At(time.Now().Truncate(time.Millisecond)), false, restarts
		j.ArmedAtMs = armedAt.Milliseconds()
	})
}

// stagedAgain is the least time between two reports of the same staged target.
const stagedAgain = time.Minute

// stagedAlready answers an offer of what is staged: the control plane has not heard
// of it in time, or a newer release wants the same closure of this host. Its lease
// would end as a failure [C18].
func (a *agent) stagedAlready(j *journal.Journal, w *verify.Target) {
	if a.outbox.waiting(j.ChannelRef) || j.ChannelRef == w.ChannelRef() && time.Since(j.Since.Time) < stagedAgain {
		return
	}
	j, err := a.dir.Advance(time.Now(), []journal.Step{journal.Staged}, journal.Staged, func(j *journal.Journal) {
		j.RolloutID, j.Intent, j.Channel, j.ChannelRef, j.Wave = w.RolloutID(), w.Intent(), w.Channel(), w.ChannelRef(), w.Wave()
	})
	if err != nil {
		a.log.Error().Err(err).Msg("staged generation not reported again")
		return
	}
	a.report(protocol.EventActivationDeferred, j.ChannelRef, a.deferred(j))
}

// supersedeStaged takes a staged generation back before a newer one is begun.
func (a *agent) supersedeStaged(ctx context.Context, j *journal.Journal) {
	if err := a.undoer.From(ctx, []journal.Step{journal.Staged}, journal.Because(protocol.CauseSuperseded, "a newer release is wanted")); err != nil {
		a.log.Error().Err(err).Str("closure", j.Closure).Msg("staged generation not taken back")
		return
	}
	a.settle(ctx)
}
