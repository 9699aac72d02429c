package agent

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/rs/zerolog"

	"nixfleet/nixops"
	"nixfleet/pki"
	"nixfleet/roles/agent/journal"
	"nixfleet/roles/agent/undo"
	"nixfleet/roles/agent/verify"
	"nixfleet/roles/protocol"
)

// stager prepares what cannot be switched to live for the next boot.
type stager struct {
	cfg      *Config
	log      zerolog.Logger
	host     nixops.Host
	dir      journal.Directory
	undoer   *undo.Undoer
	status   *statusFile
	reporter *reporter
	prober   *prober
	settler  *settler
	reboots  rebootPolicy
}

// Updates that cannot be switched to live wait for a boot. A boot loader that can
// start an entry once gets the target for one boot and keeps its default, so that
// a target that does not come up is left again by the next reset. With any other
// loader the target becomes the default at once, and nothing reboots by itself.

// mustWaitForBoot names the component for which the target cannot be switched
// to live; empty when it can.
func (s *stager) mustWaitForBoot(ctx context.Context, j *journal.Journal) (string, error) {
	target, err := s.host.Inspect(ctx, j.Closure)
	if err != nil {
		return "", err
	}
	running, err := s.host.Inspect(ctx, j.Before.Current)
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
	for _, component := range s.cfg.DeferOn {
		if differs[component] {
			return component, nil
		}
	}
	return "", nil
}

// stage prepares the next boot and reports that it is waited for.
func (s *stager) stage(ctx context.Context) (*journal.Journal, error) {
	work := context.WithoutCancel(ctx)
	once, err := s.host.CanBootOnce(work)
	if err != nil {
		s.log.Warn().Err(err).Msg("boot loader cannot be asked; the agent assumes no fallback")
	}
	j, err := s.dir.Advance(time.Now(), []journal.Step{journal.Staging}, journal.Staging, func(j *journal.Journal) {
		j.BootsOnce, j.Reboots = once, once && s.reboots.mode != rebootNever
	})
	if err != nil {
		return nil, err
	}
	if err := s.prepareBoot(work, j); err != nil {
		reason := trouble(protocol.CauseBoot, err)
		if reason.BlamesRelease() && j.BootsOnce {
			// It was the previous closure's installer that failed.
			reason = journal.Because(protocol.CausePreflight, "staging: "+err.Error())
		}
		return nil, s.undoer.From(ctx, []journal.Step{journal.Staging}, reason)
	}
	s.reporter.report(protocol.EventActivationDeferred, j.ChannelRef, s.deferred(j))
	if j.BootsOnce {
		s.status.waiting("a reboot: %s differs and cannot be switched live; %s", j.Component, s.reboots)
	} else {
		s.status.waiting("somebody to reboot this host: %s differs and cannot be switched live; %s", j.Component, noFallback)
	}
	if _, err = s.dir.Advance(time.Now(), []journal.Step{journal.Staging}, journal.Staged, nil); err == nil {
		s.preview(ctx, j)
	}
	return nil, err
}

// preview reports what the target would do to units if it could be switched to. It is for
// people: what cannot be shown is left out.
func (s *stager) preview(ctx context.Context, j *journal.Journal) {
	changes, err := nixops.Preview(ctx, s.host, j.Closure, journal.FreshUnit("nixfleet-preview"))
	if err != nil && !errors.Is(err, nixops.ErrCut) {
		s.log.Info().Err(err).Msg("no preview of the staged generation")
		return
	}
	if would := changes.Would(); would != "" {
		s.reporter.other(protocol.KindPreview, would)
	}
}

// prepareBoot has the next boot start the target.
func (s *stager) prepareBoot(ctx context.Context, j *journal.Journal) error {
	if err := s.host.AddRoot(ctx, "staged", j.Closure); err != nil {
		return err
	}
	if err := s.undoer.KeepExecutable(ctx, j); err != nil {
		return err
	}
	if j.BootsOnce {
		return s.bootOnce(ctx, j)
	}
	// It becomes the boot default [A11].
	if _, err := s.dir.Advance(time.Now(), []journal.Step{journal.Staging}, journal.Staging, func(j *journal.Journal) {
		j.BootBegun = true
	}); err != nil {
		return err
	}
	if err := s.host.SetProfile(ctx, j.Closure); err != nil {
		return err
	}
	return s.undoer.Boot(ctx, j, j.Closure)
}

// noFallback is what status says of a staged update that nothing returns from.
const noFallback = "no automatic fallback"

// deferred is the report of a staged update, in the contract's three words.
func (s *stager) deferred(j *journal.Journal) protocol.ActivationDeferred {
	d := protocol.ActivationDeferred{ClosureHash: j.Closure, ChannelRef: j.ChannelRef, Component: j.Component}
	switch d.Component {
	case "dbus", "systemd":
	default:
		d.Component = "kernel"
	}
	if j.Reboots {
		d.Reboots = s.reboots.mode
	}
	return d
}

// bootOnce has the previous closure's own installer make an entry for the target,
// from a profile of its own, and chooses it for one boot.
func (s *stager) bootOnce(ctx context.Context, j *journal.Journal) error {
	keep := j.Before.Boots()
	if err := s.host.SetStaged(ctx, j.Closure); err != nil {
		return err
	}
	if err := s.undoer.BootUnchecked(ctx, j, keep); err != nil {
		return fmt.Errorf("staged closure %s: %w", keep, err)
	}
	// What is to be tried once must not be what every later boot starts.
	if def, err := s.host.BootDefault(ctx); err != nil {
		return err
	} else if def == j.Closure && j.Before.BootDefault != j.Closure {
		return fmt.Errorf("the entry for one boot of %s became the boot loader's default", j.Closure)
	}
	return s.host.SetBootOnce(ctx, j.Closure)
}

// takeStagedBoot begins the proof of what was booted. The guard has armed the
// deadline already, unless it did not run.
func (s *stager) takeStagedBoot(ctx context.Context, j *journal.Journal, from []journal.Step) (*journal.Journal,
	error) {
	boot, err := s.host.BootID(ctx)
	if err != nil {
		return nil, err
	}
	counts, err := restarts(ctx, s.host)
	if err != nil {
		return nil, err
	}
	armedAt, err := s.host.SinceBoot(ctx)
	if err != nil {
		return nil, err
	}
	if armed, err := s.host.DeadlineArmed(ctx, j.Units.Deadline); err != nil {
		return nil, err
	} else if !armed {
		if err := s.undoer.Arm(ctx, j); err != nil {
			return nil, err
		}
	}
	s.prober.reset()
	return s.dir.Advance(time.Now(), from, journal.Checking, func(j *journal.Journal) {
		j.BootID, j.StartedAt, j.GatePassed, j.Restarts = boot, pki.At(time.Now().Truncate(time.Millisecond)), false, counts
		j.ArmedAtMs = armedAt.Milliseconds()
	})
}

// stagedAgain is the least time between two reports of the same staged target.
const stagedAgain = time.Minute

// stagedAlready answers an offer of what is staged: the control plane has not heard
// of it in time, or a newer release wants the same closure of this host. Its lease
// would end as a failure [C18].
func (s *stager) stagedAlready(j *journal.Journal, w *verify.Target) {
	if s.reporter.outbox.waiting(j.ChannelRef) || j.ChannelRef == w.ChannelRef() &&
		time.Since(j.Since.Time) < stagedAgain {
		return
	}
	j, err := s.dir.Advance(time.Now(), []journal.Step{journal.Staged}, journal.Staged, func(j *journal.Journal) {
		j.RolloutID, j.Intent = w.RolloutID(), w.Intent()
		j.Channel, j.ChannelRef, j.Wave = w.Channel(), w.ChannelRef(), w.Wave()
	})
	if err != nil {
		s.log.Error().Err(err).Msg("staged generation not reported again")
		return
	}
	s.reporter.report(protocol.EventActivationDeferred, j.ChannelRef, s.deferred(j))
}

// supersedeStaged takes a staged generation back before a newer one is begun.
func (s *stager) supersedeStaged(ctx context.Context, j *journal.Journal) {
	if err := s.undoer.From(ctx, []journal.Step{journal.Staged},
		journal.Because(protocol.CauseSuperseded, "a newer release is wanted")); err != nil {
		s.log.Error().Err(err).Str("closure", j.Closure).Msg("staged generation not undone")
		return
	}
	s.settler.settle(ctx)
}
