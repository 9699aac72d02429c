package agent

import (
	"context"
	"errors"
	"fmt"
	"time"

	"nixfleet/nixops"
	"nixfleet/pki"
	"nixfleet/roles/protocol"
)

// errThird: somebody switched by hand before the proven generation was committed.
var errThird = errors.New("third-closure")

// commit makes the proven generation the boot default. It holds the lock all
// the while, so that a deadline comes before or after it, never in between.
func (a *agent) commit(ctx context.Context, j *journal) (*journal, error) {
	work := context.WithoutCancel(ctx) // not to be left half-way by our own end
	err := func() error {
		unlock, err := a.dir.lock()
		if err != nil {
			return err
		}
		defer unlock()
		if j, err = a.dir.advanceLocked(time.Now(), []step{stepProven, stepCommitting}, stepCommitting, nil); err != nil {
			return err
		}
		// A switch by hand that is going on shows what it is only when it is over.
		if err := a.undoer.waitForLock(work); err != nil {
			return fmt.Errorf("preflight: %w", err)
		}
		if current, err := a.host.CurrentSystem(work); err != nil {
			return fmt.Errorf("preflight: %w", err)
		} else if !a.undoer.runs(work, current, j.Closure) {
			return fmt.Errorf("%w: %s", errThird, current)
		}
		if err := a.host.SetProfile(work, j.Closure); err != nil {
			return fmt.Errorf("set profile: %w", err)
		}
		if j.BootsOnce {
			if err := a.host.SetStaged(work, ""); err != nil {
				a.log.Warn().Err(err).Msg("staged profile not dropped")
			}
		}
		exit, err := a.host.Switch(work, nixops.SwitchRequest{Closure: j.Closure, Action: nixops.ActionBoot, Unit: fresh(j.Units.Boot)})
		if err != nil {
			return fmt.Errorf("boot: %w", err)
		}
		if !exit.OK() {
			return fmt.Errorf("boot: %s", exit)
		}
		j, err = a.dir.advanceLocked(time.Now(), []step{stepCommitting}, stepCommitted, nil)
		return err
	}()
	if errors.Is(err, errMoved) {
		return nil, err
	}
	if err != nil {
		blame := !errors.Is(err, nixops.ErrLockHeld) && !errors.Is(err, nixops.ErrNoSpace) && !errors.Is(err, errThird)
		return nil, errors.Join(err, a.undo(ctx, err.Error(), blame))
	}
	if err := a.host.DisarmDeadline(work, j.Units.Deadline); err != nil {
		a.log.Warn().Err(err).Msg("deadline not disarmed; it will find nothing to undo")
	}
	return j, nil
}

// confirm tells the control plane. The generation is proven: an outage changes
// nothing about it, and only an answer of 410 takes it back.
func (a *agent) confirm(ctx context.Context, j *journal) error {
	a.waiting("the control plane to accept the confirm of %s", j.Closure)
	for wait := floorPause; ; wait = min(2*wait, maxContact) {
		err := a.client.Confirm(ctx, &protocol.ConfirmRequest{
			Hostname: a.cfg.MachineID, Rollout: j.ChannelRef, Wave: j.Wave,
			Generation: protocol.Generation{ClosureHash: j.Closure, ChannelRef: &j.ChannelRef, BootID: j.BootID},
		})
		if err == nil {
			return a.finish(ctx, j)
		}
		if ctx.Err() != nil {
			return ctx.Err()
		}
		if refused := (*protocol.Error)(nil); errors.As(err, &refused) && refused.Status == 410 {
			if err := a.undoer.undoFrom(ctx, []step{stepCommitted}, reasonRefused, false); err != nil {
				return err
			}
			a.settle(ctx)
			return nil
		}
		a.log.Warn().Err(err).Dur("retry_in", wait).Msg("confirm not delivered")
		if err := sleep(ctx, wait); err != nil {
			return err
		}
	}
}

// finish remembers the confirmed generation, for attestations, for a rollback
// that the control plane may ask for, and against garbage collection.
func (a *agent) finish(ctx context.Context, j *journal) error {
	c := &confirmed{Closure: j.Closure, RolloutID: j.RolloutID, Intent: j.Intent, At: pki.At(a.now().Truncate(time.Millisecond))}
	if err := a.dir.write(confirmedFile, c); err != nil {
		return err
	}
	a.confirmed.set(c)
	v1 := fmt.Sprintf("%s\n%s+00:00\n", c.Closure, c.At.UTC().Format("2006-01-02T15:04:05"))
	if err := replace(a.dir.path("last_confirmed_at"), []byte(v1), 0o600); err != nil {
		return err
	}
	if err := a.dir.write(committedFile, j); err != nil {
		return err
	}
	if err := a.dir.end(stepCommitted); err != nil {
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
func (a *agent) roots(ctx context.Context, j *journal) {
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
