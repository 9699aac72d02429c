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

const (
	unitPoll = 500 * time.Millisecond
	gatePoll = 500 * time.Millisecond
	// beginPoll is how often it is asked whether a switch unit is there.
	beginPoll = 50 * time.Millisecond
	// answerMargin is left of the window for undoing by ourselves, before the
	// deadline does.
	answerMargin = 4 // a quarter of the window
	// sayTime is what the announcement of a switch may take of the window.
	sayTime = 10 * time.Second
)

// switcher arms the deadline outside of this process and runs the switch.
type switcher struct {
	log      zerolog.Logger
	host     nixops.Host
	dir      journal.Directory
	undoer   *undo.Undoer
	status   *statusFile
	memory   *memory
	reporter *reporter
	prober   *prober
	intake   *intake
	stager   *stager
	settler  *settler
}

func (s *switcher) recordBefore(ctx context.Context, j *journal.Journal) (err error) {
	for _, name := range []struct {
		to   *string
		read func(context.Context) (string, error)
	}{
		{&j.Before.Current, s.host.CurrentSystem}, {&j.Before.Profile, s.host.Profile},
		{&j.Before.BootDefault, s.host.BootDefault}, {&j.BootID, s.host.BootID},
	} {
		if *name.to, err = name.read(ctx); err != nil {
			return fmt.Errorf("record the host's state: %w", err)
		}
	}
	units, err := s.host.Units(ctx)
	if err != nil {
		return fmt.Errorf("record the host's state: %w", err)
	}
	now, err := s.host.SinceBoot(ctx)
	if err != nil {
		return fmt.Errorf("record the host's state: %w", err)
	}
	j.UnitsBefore = nixops.NewBaseline(units, now)
	j.FailedBefore = j.UnitsBefore.Failed
	if j.Before.Profile == "" {
		j.Before.Profile = j.Before.Current
	}
	return nil
}

var overtaken = journal.Because(protocol.CauseSuperseded, "another closure is wanted by now")

// mayBegin says why an activation must not begin now, empty when it may.
func (s *switcher) mayBegin(j *journal.Journal) (w *verify.Target, why journal.Reason) {
	switch w = s.memory.told.Load(); {
	case w == nil || w.Closure() != j.Closure:
		return w, overtaken
	case w.Late():
		return w, journal.Because(protocol.CauseLeaseExpired,
			"fetching and checking took longer than the lease; waiting to be offered again")
	}
	return w, why
}

// arm records the units, arms the deadline outside of this process, and begins
// the switch.
func (s *switcher) arm(ctx context.Context, j *journal.Journal) (*journal.Journal, error) {
	w, why := s.mayBegin(j)
	if why.Cause != "" {
		return nil, s.leave(ctx, j, why)
	}
	if component, err := s.stager.mustWaitForBoot(ctx, j); err != nil {
		return nil, err
	} else if component != "" {
		return s.dir.Advance(time.Now(), []journal.Step{journal.Fetching}, journal.Staging,
			func(j *journal.Journal) { j.Component = component })
	}
	if err := s.intake.checkTarget(ctx, j.Closure); err != nil {
		s.intake.giveUp(ctx, w, err)
		return nil, nil
	}
	if _, why := s.mayBegin(j); why.Cause != "" { // the checks take their time, too
		return nil, s.leave(ctx, j, why)
	}
	j, err := s.dir.Advance(time.Now(), []journal.Step{journal.Fetching}, journal.Arming, nil)
	if err != nil {
		return nil, err
	}
	if err := s.recordBefore(ctx, j); err != nil {
		return nil, errors.Join(err, s.settler.undo(ctx, undo.Interrupted))
	}
	before := *j
	armedAt, err := s.host.SinceBoot(ctx)
	if err != nil {
		return nil, errors.Join(err, s.settler.undo(ctx, undo.Interrupted))
	}
	for name, closure := range map[string]string{"previous": j.Before.Current, "staged": j.Closure} {
		if err := s.host.AddRoot(ctx, name, closure); err != nil {
			return nil, errors.Join(err, s.settler.undo(ctx, undo.Interrupted))
		}
	}
	if err := s.undoer.Arm(ctx, j); err != nil {
		return nil, errors.Join(err, s.settler.undo(ctx,
			journal.Because(protocol.CausePreflight, "deadline not armed: "+err.Error())))
	}
	s.reporter.report(protocol.EventActivationStarted, j.ChannelRef,
		protocol.ActivationStarted{ClosureHash: j.Closure, ChannelRef: j.ChannelRef})
	s.reporter.deliverWithin(ctx, sayTime)
	j, err = s.dir.Advance(time.Now(), []journal.Step{journal.Arming}, journal.Switching, func(j *journal.Journal) {
		j.Before, j.BootID = before.Before, before.BootID
		j.UnitsBefore, j.FailedBefore = before.UnitsBefore, before.FailedBefore
		j.StartedAt, j.ArmedAtMs = pki.At(time.Now().Truncate(time.Millisecond)), armedAt.Milliseconds()
	})
	if err != nil {
		return nil, err
	}
	s.status.waiting("switching to %s", j.Closure)
	return j, nil
}

// leave ends an activation before anything was changed; the closure stays in
// the store for when it is offered again.
func (s *switcher) leave(ctx context.Context, j *journal.Journal, why journal.Reason) error {
	s.log.Info().Str("closure", j.Closure).Stringer("why", why).Msg("activation abandoned")
	s.status.waiting("%s", why)
	if err := s.host.AddRoot(ctx, "staged", j.Closure); err != nil {
		return err
	}
	return s.dir.End(journal.Fetching)
}

// awaitSwitch starts the switch unit, or finds the one that an earlier agent
// started, and judges how it ended.
func (s *switcher) awaitSwitch(ctx context.Context, j *journal.Journal) (*journal.Journal, error) {
	state, err := s.host.SwitchState(ctx, j.Units.Switch)
	if err != nil {
		return nil, err
	}
	var exit nixops.Exit
	if state.Phase == nixops.UnitUnknown {
		boot, err := s.host.BootID(ctx)
		if err != nil {
			return nil, err
		}
		if boot != j.BootID {
			return nil, s.settler.undo(ctx, undo.PowerLost)
		}
		exit, err = s.beginSwitch(ctx, j)
		if errors.Is(err, journal.ErrMoved) {
			return nil, err
		}
		if errors.Is(err, nixops.ErrLockHeld) {
			return nil, s.settler.undo(ctx, undo.Locked)
		}
		if ctx.Err() != nil {
			return nil, ctx.Err() // the unit goes on without us
		}
		if err != nil {
			return nil, errors.Join(err, s.settler.undo(ctx,
				journal.Because(protocol.CausePreflight, "the switch was not started: "+err.Error())))
		}
	} else {
		for state.Phase == nixops.UnitRunning {
			if err := nixops.Sleep(ctx, unitPoll); err != nil {
				return nil, err
			}
			if state, err = s.host.SwitchState(ctx, j.Units.Switch); err != nil {
				return nil, err
			}
		}
		exit = state.Exit
	}
	if exit, err = s.readExit(ctx, j, exit); err != nil {
		return nil, err
	}
	return s.judge(ctx, j, exit)
}

// beginSwitch starts the switch unit and waits for it. Until the unit is there
// the journal is locked: a deadline that fires comes before, and nothing is
// begun, or after, and it stops the unit. Without an armed deadline nothing is
// begun at all.
func (s *switcher) beginSwitch(ctx context.Context, j *journal.Journal) (exit nixops.Exit, err error) {
	unlock, err := s.dir.Lock()
	if err != nil {
		return exit, err
	}
	now, err := s.dir.Journal()
	if err == nil && (now == nil || now.Step != journal.Switching || now.Units != j.Units) {
		err = journal.ErrMoved
	}
	if err == nil {
		var armed bool
		if armed, err = s.host.DeadlineArmed(ctx, j.Units.Deadline); err == nil && !armed {
			err = errors.New("the deadline is not armed any more")
		}
	}
	if err != nil {
		unlock()
		return exit, err
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		exit, err = s.host.Switch(ctx, nixops.SwitchRequest{
			Closure: j.Closure, Action: nixops.ActionTest, Unit: j.Units.Switch, Continues: j.Again,
		})
	}()
	for begun := false; !begun; {
		select {
		case <-done:
			begun = true
		case <-time.After(beginPoll):
			state, err := s.host.SwitchState(ctx, j.Units.Switch)
			begun = err == nil && state.Phase != nixops.UnitUnknown
		}
	}
	unlock()
	<-done
	return exit, err
}
