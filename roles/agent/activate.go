package agent

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"sync"
	"time"

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

// take begins an activation of a verified target, unless something speaks
// against it.
func (a *agent) take(ctx context.Context, w *verify.Target) {
	a.told.set(w)
	a.status.note(func(s *status) { s.Told, s.Rollout = w.Closure(), w.RolloutID() })
	a.follow(ctx, w.Intent())
	if why := a.refuses(w); why != "" {
		a.log.Info().Str("closure", w.Closure()).Str("why", why).Msg("target not taken")
		a.status.note(func(s *status) { s.Waiting, s.Next = why, "nixfleet agent status; nixfleet agent resume" })
		return
	}
	if a.busy.get() {
		a.overtake(w)
		return
	}
	switch j, err := a.dir.Journal(); {
	case err != nil || j != nil && j.Step != journal.Staged:
		return
	case j != nil && j.Closure == w.Closure():
		a.stagedAlready(j, w)
		return
	case j != nil:
		// A newer release takes the place of one that still waits for its boot.
		a.supersedeStaged(ctx, j)
	}
	a.start(ctx, func(ctx context.Context) { a.activate(ctx, w) })
}

// overtake: a target comes while an activation is under way. One of the same closure
// renews its lease; another is kept, since it may be sent only once, and what is still
// being downloaded gives way to it.
func (a *agent) overtake(w *verify.Target) {
	a.missed = nil
	if j, err := a.dir.Journal(); err != nil || j == nil || j.Closure == w.Closure() {
		return
	}
	a.missed = w
	if give := a.fetching.get(); give != nil {
		give()
	}
}

// takeMissed takes a target that came during an activation which is over by now.
func (a *agent) takeMissed(ctx context.Context) {
	w := a.missed
	if w == nil || a.busy.get() {
		return
	}
	a.missed = nil
	if a.told.get() == w && !w.Late() {
		a.take(ctx, w)
	}
}

// start runs one activation beside the check-ins.
func (a *agent) start(ctx context.Context, work func(context.Context)) {
	a.busy.set(true)
	a.worker.Go(func() {
		defer a.tellChange()
		defer a.busy.set(false)
		work(ctx)
	})
}

// refuses says why a target is not taken; empty when it is.
func (a *agent) refuses(w *verify.Target) string {
	if held := a.hold.get(); held != nil {
		return "held by root: " + held.text()
	}
	q := a.quarantine.get()
	if q != nil && q.Closure != w.Closure() {
		a.forgive()
		return ""
	}
	why := q.blocked(w.Closure(), a.now())
	if q != nil && w.ByHead() && q.over() && !q.Retried && !a.outbox.waiting(q.ChannelRef) && a.now().Sub(q.At.Time) > retryAfter {
		// The control plane knows of the failure and offers the closure again: an
		// operator's one retry. A control plane that lies gains one attempt by it. One of
		// v1 offers again whatever has failed, and nobody has asked for it.
		q.Retried = true
		if err := a.dir.Write(quarantineFile, q); err != nil {
			return err.Error()
		}
		return ""
	}
	return why
}

// retryAfter keeps an offer that crossed our failure report from counting as
// an operator's retry.
const retryAfter = 5 * time.Second

func (a *agent) forgive() {
	a.quarantine.set(nil)
	if err := a.dir.Remove(quarantineFile); err != nil {
		a.log.Error().Err(err).Msg("quarantine not removed")
	}
}

// activate takes a target from nothing to confirmed, or the host back.
func (a *agent) activate(ctx context.Context, w *verify.Target) {
	j, err := a.newJournal(ctx, w)
	if err == nil {
		err = a.dir.Begin(j)
	}
	if err != nil {
		a.log.Error().Err(err).Msg("activation not begun")
		return
	}
	a.waiting("downloading %s", w.Closure())
	a.tellChange()
	fetch, giveWay := context.WithCancelCause(ctx)
	defer giveWay(nil)
	a.fetching.set(func() { giveWay(errOvertaken) })
	err = a.bring(fetch, w, j)
	a.fetching.set(nil)
	switch {
	case ctx.Err() == nil && errors.Is(context.Cause(fetch), errOvertaken):
		a.log.Info().Str("closure", w.Closure()).Err(errOvertaken).Msg("activation left")
		if err := a.dir.End(journal.Fetching); err != nil {
			a.log.Error().Err(err).Msg("journal not closed")
		}
	case err != nil:
		a.giveUp(w, err)
	default:
		a.advanceFrom(ctx, j)
	}
}

var overtaken = journal.Because(protocol.CauseSuperseded, "another closure is wanted by now")

// errOvertaken: another closure is wanted by now.
var errOvertaken = errors.New(overtaken.String())

func (a *agent) waiting(format string, args ...any) {
	a.status.note(func(s *status) { s.Waiting, s.Next = fmt.Sprintf(format, args...), "" })
}

// newJournal records where the host is, before anything is done to it.
func (a *agent) newJournal(ctx context.Context, w *verify.Target) (*journal.Journal, error) {
	j := &journal.Journal{
		Step: journal.Fetching, Closure: w.Closure(), RolloutID: w.RolloutID(), Intent: w.Intent(), Channel: w.Channel(), ChannelRef: w.ChannelRef(),
		Wave: w.Wave(), Attempt: 1, Compliance: w.Compliance(), StartedAt: pki.At(time.Now().Truncate(time.Millisecond)), WindowSecs: uint32(w.ConfirmWindow() / time.Second),
		Units: journal.NewUnits(strconv.FormatInt(time.Now().UnixMilli(), 36)), Restarts: map[string]uint64{}, FailedBefore: []string{},
	}
	j.Since = j.StartedAt
	if q := a.quarantine.get(); q != nil && q.Closure == w.Closure() {
		j.Attempt += q.Failures + q.Unreachable + q.Refused
	}
	return j, a.recordBefore(ctx, j)
}

func (a *agent) recordBefore(ctx context.Context, j *journal.Journal) (err error) {
	for to, read := range map[*string]func(context.Context) (string, error){
		&j.Before.Current: a.host.CurrentSystem, &j.Before.Profile: a.host.Profile,
		&j.Before.BootDefault: a.host.BootDefault, &j.BootID: a.host.BootID,
	} {
		if *to, err = read(ctx); err != nil {
			return fmt.Errorf("record the host's state: %w", err)
		}
	}
	units, err := a.host.Units(ctx)
	if err != nil {
		return fmt.Errorf("record the host's state: %w", err)
	}
	now, err := a.host.SinceBoot(ctx)
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

// advanceFrom carries an activation on from where its journal stands.
func (a *agent) advanceFrom(ctx context.Context, j *journal.Journal) {
	watch, stop := context.WithCancel(ctx)
	var watcher sync.WaitGroup
	defer watcher.Wait()
	defer stop()
	watcher.Go(func() { a.watchSleep(watch) })
	for ctx.Err() == nil {
		next, err := a.stepOnce(ctx, j)
		if err != nil {
			if ctx.Err() != nil || errors.Is(err, journal.ErrMoved) {
				return
			}
			a.log.Error().Err(err).Str("step", string(j.Step)).Msg("activation does not go on")
			next = a.onceMore(ctx, j)
		}
		if next == nil {
			return
		}
		j = next
		a.tellChange()
	}
}

// stepAgain is how long a step waits that this host could not take.
const stepAgain = 5 * time.Second

// onceMore waits after trouble of this host, such as a systemd that does not answer
// while it is replaced, and gives the activation to go on with. The deadline bounds
// it. Nil: the activation is over, or is being undone, which has a pace of its own.
func (a *agent) onceMore(ctx context.Context, j *journal.Journal) *journal.Journal {
	for pause := time.Duration(0); ; pause = stepAgain {
		if err := sleep(ctx, pause); err != nil {
			return nil
		}
		now, err := a.dir.Journal()
		switch {
		case errors.Is(err, journal.ErrUnfit) || err == nil && (now == nil || now.Units != j.Units):
			return nil
		case err == nil && slices.Contains([]journal.Step{journal.Staged, journal.Undoing, journal.Undone}, now.Step):
			return nil
		case err == nil && pause > 0:
			return now
		}
	}
}

// stepOnce takes one step. It returns nil when there is nothing more to do now.
func (a *agent) stepOnce(ctx context.Context, j *journal.Journal) (*journal.Journal, error) {
	switch j.Step {
	case journal.Fetching:
		return a.arm(ctx, j)
	case journal.Switching:
		return a.awaitSwitch(ctx, j)
	case journal.Checking:
		return a.check(ctx, j)
	case journal.Proven, journal.Committing:
		return a.commit(ctx, j)
	case journal.Committed:
		return nil, a.confirm(ctx, j)
	case journal.Staging:
		return a.stage(ctx)
	case journal.Arming, journal.Undoing:
		return nil, a.undo(ctx, undo.Interrupted)
	}
	return nil, nil
}

func (a *agent) undo(ctx context.Context, reason journal.Reason) error {
	a.waiting("undoing: %s", reason)
	a.tellChange()
	if err := a.undoer.Undo(ctx, reason); err != nil {
		a.waiting("undoing: %s; to be tried again: %v", reason, err)
		// A held check-in would keep the next attempt waiting.
		time.AfterFunc(undo.Again+time.Second, a.tellChange)
		return err
	}
	a.settle(ctx)
	return nil
}

// mayBegin says why an activation must not begin now, empty when it may.
func (a *agent) mayBegin(j *journal.Journal) (w *verify.Target, why journal.Reason) {
	switch w = a.told.get(); {
	case w == nil || w.Closure() != j.Closure:
		return w, overtaken
	case w.Late():
		return w, journal.Because(protocol.CauseLeaseExpired, "fetching and checking took longer than the lease; waiting to be offered again")
	}
	return w, why
}

// arm records the units, arms the deadline outside of this process, and begins
// the switch.
func (a *agent) arm(ctx context.Context, j *journal.Journal) (*journal.Journal, error) {
	w, why := a.mayBegin(j)
	if why.Cause != "" {
		return nil, a.leave(ctx, j, why)
	}
	if component, err := a.mustWaitForBoot(ctx, j); err != nil {
		return nil, err
	} else if component != "" {
		return a.dir.Advance(time.Now(), []journal.Step{journal.Fetching}, journal.Staging, func(j *journal.Journal) { j.Component = component })
	}
	if err := a.checkTarget(ctx, j.Closure); err != nil {
		a.giveUp(w, err)
		return nil, nil
	}
	if _, why := a.mayBegin(j); why.Cause != "" { // the checks take their time, too
		return nil, a.leave(ctx, j, why)
	}
	j, err := a.dir.Advance(time.Now(), []journal.Step{journal.Fetching}, journal.Arming, nil)
	if err != nil {
		return nil, err
	}
	if err := a.recordBefore(ctx, j); err != nil {
		return nil, errors.Join(err, a.undo(ctx, undo.Interrupted))
	}
	before := *j
	armedAt, err := a.host.SinceBoot(ctx)
	if err != nil {
		return nil, errors.Join(err, a.undo(ctx, undo.Interrupted))
	}
	for name, closure := range map[string]string{"previous": j.Before.Current, "staged": j.Closure} {
		if err := a.host.AddRoot(ctx, name, closure); err != nil {
			return nil, errors.Join(err, a.undo(ctx, undo.Interrupted))
		}
	}
	if err := a.undoer.Arm(ctx, j); err != nil {
		return nil, errors.Join(err, a.undo(ctx, journal.Because(protocol.CausePreflight, "deadline not armed: "+err.Error())))
	}
	a.report(protocol.EventActivationStarted, j.ChannelRef, protocol.ActivationStarted{ClosureHash: j.Closure, ChannelRef: j.ChannelRef})
	a.deliverWithin(ctx, sayTime)
	j, err = a.dir.Advance(time.Now(), []journal.Step{journal.Arming}, journal.Switching, func(j *journal.Journal) {
		j.Before, j.BootID = before.Before, before.BootID
		j.UnitsBefore, j.FailedBefore = before.UnitsBefore, before.FailedBefore
		j.StartedAt, j.ArmedAtMs = pki.At(time.Now().Truncate(time.Millisecond)), armedAt.Milliseconds()
	})
	if err != nil {
		return nil, err
	}
	a.waiting("switching to %s", j.Closure)
	return j, nil
}

// leave ends an activation before anything was changed; the closure stays in
// the store for when it is offered again.
func (a *agent) leave(ctx context.Context, j *journal.Journal, why journal.Reason) error {
	a.log.Info().Str("closure", j.Closure).Stringer("why", why).Msg("activation left")
	a.waiting("%s", why)
	if err := a.host.AddRoot(ctx, "staged", j.Closure); err != nil {
		return err
	}
	return a.dir.End(journal.Fetching)
}

// awaitSwitch starts the switch unit, or finds the one that an earlier agent
// started, and judges how it ended.
func (a *agent) awaitSwitch(ctx context.Context, j *journal.Journal) (*journal.Journal, error) {
	state, err := a.host.SwitchState(ctx, j.Units.Switch)
	if err != nil {
		return nil, err
	}
	var exit nixops.Exit
	if state.Phase == nixops.UnitUnknown {
		boot, err := a.host.BootID(ctx)
		if err != nil {
			return nil, err
		}
		if boot != j.BootID {
			return nil, a.undo(ctx, undo.PowerLost)
		}
		exit, err = a.beginSwitch(ctx, j)
		if errors.Is(err, journal.ErrMoved) {
			return nil, err
		}
		if errors.Is(err, nixops.ErrLockHeld) {
			return nil, a.undo(ctx, undo.Locked)
		}
		if ctx.Err() != nil {
			return nil, ctx.Err() // the unit goes on without us
		}
		if err != nil {
			return nil, errors.Join(err, a.undo(ctx, journal.Because(protocol.CausePreflight, "the switch was not started: "+err.Error())))
		}
	} else {
		for state.Phase == nixops.UnitRunning {
			if err := sleep(ctx, unitPoll); err != nil {
				return nil, err
			}
			if state, err = a.host.SwitchState(ctx, j.Units.Switch); err != nil {
				return nil, err
			}
		}
		exit = state.Exit
	}
	if exit, err = a.readExit(ctx, j, exit); err != nil {
		return nil, err
	}
	return a.judge(ctx, j, exit)
}

// beginSwitch starts the switch unit and waits for it. Until the unit is there
// the journal is locked: a deadline that fires comes before, and nothing is
// begun, or after, and it stops the unit. Without an armed deadline nothing is
// begun at all.
func (a *agent) beginSwitch(ctx context.Context, j *journal.Journal) (exit nixops.Exit, err error) {
	unlock, err := a.dir.Lock()
	if err != nil {
		return exit, err
	}
	now, err := a.dir.Journal()
	if err == nil && (now == nil || now.Step != journal.Switching || now.Units != j.Units) {
		err = journal.ErrMoved
	}
	if err == nil {
		var armed bool
		if armed, err = a.host.DeadlineArmed(ctx, j.Units.Deadline); err == nil && !armed {
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
		exit, err = a.host.Switch(ctx, nixops.SwitchRequest{
			Closure: j.Closure, Action: nixops.ActionTest, Unit: j.Units.Switch, Continues: j.Again,
		})
	}()
	for begun := false; !begun; {
		select {
		case <-done:
			begun = true
		case <-time.After(beginPoll):
			state, err := a.host.SwitchState(ctx, j.Units.Switch)
			begun = err == nil && state.Phase != nixops.UnitUnknown
		}
	}
	unlock()
	<-done
	return exit, err
}
