package agent

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"slices"
	"time"

	"github.com/rs/zerolog"

	"nixfleet/nixops"
	"nixfleet/roles/protocol"
)

const (
	// foreignLockWait bounds the wait for a switch that is not ours.
	foreignLockWait = 60 * time.Second
	lockPoll        = time.Second
	undoTimeout     = 10 * time.Minute
	// bootTimeout bounds the installer of a boot loader.
	bootTimeout = 5 * time.Minute
	// undoAgain is how long the agent leaves an undo that did not succeed.
	undoAgain = time.Minute
)

// Reasons of undos for which a release is not to blame.
var (
	reasonUnreachable = protocol.CauseUnreachable.With("no check-in was answered within the window")
	reasonLocked      = protocol.CauseLockHeld.With("another switch is running")
	reasonRefused     = protocol.CauseConfirmRefused.With("the control plane answered 410")
	reasonPower       = protocol.CausePreflight.With("power was lost before the new generation was proven")
	reasonInterrupted = protocol.CausePreflight.With("interrupted before the switch")
)

// Deadline is what the timer of an activation, a unit of the given name, runs on the
// host of the configuration, in a process of its own: what is not proven is undone. It
// returns when that is done, and with an error when ctx ends or an hour was not enough.
func Deadline(ctx context.Context, cfg Config, unit string) error {
	return undoerOf(cfg).insist(ctx, unit)
}

// Guard is what runs at boot before the agent: it acts on an activation that a
// power cut interrupted.
func Guard(ctx context.Context, cfg Config) error { return undoerOf(cfg).guard(ctx) }

func undoerOf(cfg Config) *undoer {
	return &undoer{cfg.Host, directory(cfg.StateDir), cfg.Log, cfg.hostArguments()}
}

// undoer restores what an activation recorded. The agent uses it, and so do
// the deadline and the boot-time guard, which run without an agent.
type undoer struct {
	host  nixops.Host
	dir   directory
	log   zerolog.Logger
	flags []string // that say where the host is, for the command of a deadline
}

// armDeadline has the machine run the previous generation's own executable by
// its store path: the new one's may be what is broken.
func (u *undoer) armDeadline(ctx context.Context, j *journal) error {
	executable, err := u.executableBefore(ctx, j)
	if err != nil {
		return err
	}
	command := append([]string{executable, "agent", "undo", "--deadline", "--unit", j.Units.Deadline, "--state-dir", string(u.dir)}, u.flags...)
	return u.host.ArmDeadline(ctx, nixops.Deadline{Unit: j.Units.Deadline, After: time.Duration(j.WindowSecs) * time.Second, Command: command})
}

func (u *undoer) executableBefore(ctx context.Context, j *journal) (string, error) {
	if before, err := u.host.Inspect(ctx, j.Before.Current); err == nil && before.AgentPath != "" {
		return before.AgentPath, nil
	}
	return os.Executable()
}

// keptExecutable is a link to the nixfleet of the generation before a staged one. The
// guard of the generation that is booted runs it before its own, which may be what is
// broken.
const keptExecutable = "previous-nixfleet"

func (u *undoer) keepExecutable(ctx context.Context, j *journal) error {
	executable, err := u.executableBefore(ctx, j)
	if err != nil {
		return err
	}
	link := u.dir.path(keptExecutable)
	if err := os.Remove(link); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return os.Symlink(executable, link)
}

// runs: current is the closure or one of its specialisations.
func (u *undoer) runs(ctx context.Context, current, closure string) bool {
	if current == closure {
		return true
	}
	c, err := u.host.Inspect(ctx, closure)
	return err == nil && slices.Contains(c.Specialisations, current)
}

// undo takes a revertible activation back; any other it leaves alone. It is
// idempotent: what was half undone is undone to the end. Success is judged by
// the restored paths and not by what a script returned.
func (u *undoer) undo(ctx context.Context, reason string, blame bool) error {
	return u.undoFrom(ctx, revertible, reason, blame)
}

// deadline is undo for the timer, which knows only the journal: a generation
// that was healthy and got no answer is not to blame. A timer that could not be
// disarmed is left by an earlier activation, and none of this one's business; an
// empty unit is anybody's.
func (u *undoer) deadline(ctx context.Context, unit string) error {
	j, err := u.dir.journal()
	if err != nil || j == nil || broken("the deadline") {
		return err
	}
	if unit != "" && unit != j.Units.Deadline {
		u.log.Info().Str("unit", unit).Str("armed", j.Units.Deadline).Msg("deadline of an earlier activation; nothing to undo")
		return nil
	}
	if j.GatePassed {
		return u.undo(ctx, reasonUnreachable, broken("outages are not blamed"))
	}
	late := protocol.CauseDeadline.With("the new generation was not proven within its window")
	if booted, err := u.stagedBoot(ctx, j); err != nil || booted {
		return errors.Join(err, u.undoFrom(ctx, []step{stepStaging, stepStaged}, late, true))
	}
	return u.undo(ctx, late, true)
}

const (
	insistFirst = 5 * time.Second // and then twice as long each time, up to undoAgain
	insistFor   = time.Hour
)

// insist is deadline, again and again until it succeeds: nobody else may be there to
// undo before the next boot. Each time it looks at the journal anew, so that it finds
// nothing to do once the agent, or a boot, has been faster. An end of ctx ends it
// between two attempts.
func (u *undoer) insist(ctx context.Context, unit string) error {
	end := time.Now().Add(insistFor)
	for pause := insistFirst; ; pause = min(2*pause, undoAgain) {
		err := u.deadline(ctx, unit)
		if err == nil || ctx.Err() != nil || time.Until(end) < pause {
			return err
		}
		u.log.Error().Err(err).Dur("retry_in", pause).Msg("undo failed")
		if sleep(ctx, pause) != nil {
			return err
		}
	}
}

// stagedBoot: what was staged has been booted, and its agent has not begun to
// prove it. Power may have been lost before the staging was written down as done.
func (u *undoer) stagedBoot(ctx context.Context, j *journal) (bool, error) {
	if j.Step != stepStaging && j.Step != stepStaged {
		return false, nil
	}
	boot, err := u.host.BootID(ctx)
	if err != nil || boot == j.BootID {
		return false, err
	}
	current, err := u.host.CurrentSystem(ctx)
	return err == nil && u.runs(ctx, current, j.Closure), err
}

func (u *undoer) undoFrom(ctx context.Context, from []step, reason string, blame bool) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), undoTimeout)
	defer cancel()
	unlock, err := u.dir.lock()
	if err != nil {
		return err
	}
	defer unlock()
	j, err := u.dir.advanceLocked(time.Now(), from, stepUndoing, func(j *journal) {
		if j.Step != stepUndoing {
			j.Reason, j.Blame = reason, blame
		}
	})
	if errors.Is(err, errMoved) {
		u.log.Info().Str("why", err.Error()).Msg("nothing to undo")
		return nil
	}
	if err != nil {
		return err
	}
	u.log.Warn().Str("closure", j.Closure).Str("previous", j.Before.Current).Str("reason", j.Reason).Msg("undo begins")
	third, err := u.thirdClosure(ctx, j)
	if err == nil && third == "" {
		// A switch by hand that is going on shows what it is only when it is over.
		if err = u.quiet(ctx, j); err == nil {
			third, err = u.thirdClosure(ctx, j)
		}
	}
	if err != nil {
		return fmt.Errorf("undo %s: %w", j.Closure, err)
	}
	if third != "" {
		// Somebody switched by hand meanwhile; that is theirs to keep.
		u.log.Warn().Str("running", third).Msg("a third closure is running; left as it is")
		return u.finish(ctx, func(j *journal) { j.Reason, j.Blame = protocol.CauseThirdClosure.With(third), false })
	}
	if err := u.restore(ctx, j); errors.Is(err, errRebooting) {
		u.log.Warn().Msg("rebooting into the previous generation")
		return nil
	} else if err != nil {
		return fmt.Errorf("undo %s: %w", j.Closure, err)
	}
	return u.finish(ctx, nil)
}

func (u *undoer) finish(ctx context.Context, change func(*journal)) error {
	j, err := u.dir.advanceLocked(time.Now(), []step{stepUndoing}, stepUndone, change)
	if err != nil {
		return err
	}
	u.log.Info().Str("running", j.Before.Current).Msg("undo done")
	return u.host.DisarmDeadline(ctx, j.Units.Deadline)
}

// thirdClosure is what runs when it is neither the target nor what was before.
func (u *undoer) thirdClosure(ctx context.Context, j *journal) (string, error) {
	current, err := u.host.CurrentSystem(ctx)
	if err != nil {
		return "", fmt.Errorf("undo: %w", err)
	}
	// After a reboot the default runs, where a specialisation of it may have run before.
	if current == "" || current == j.Before.Current || current == j.Before.BootDefault || u.runs(ctx, current, j.Closure) {
		return "", nil
	}
	return current, nil
}

// quiet ends our own switch and waits for one that is not ours.
func (u *undoer) quiet(ctx context.Context, j *journal) error {
	if err := u.host.StopUnit(ctx, j.Units.Switch); err != nil {
		u.log.Warn().Err(err).Msg("switch unit not stopped")
	}
	return u.waitForLock(ctx)
}

func (u *undoer) restore(ctx context.Context, j *journal) error {
	if err := u.host.ClearSwitchLists(ctx); err != nil {
		return err
	}
	if err := u.unstage(ctx, j); err != nil {
		return err
	}
	untouched, err := u.untouched(ctx, j)
	if err != nil {
		return err
	}
	if !untouched && j.Reboots && u.rebootBack(ctx, j) {
		return errRebooting
	}
	if !untouched {
		// The previous closure's own script, since the bad one's may be what is bad;
		// its pre-checks must not keep the host in a bad state.
		var bad *exitError
		err := u.run(ctx, nixops.SwitchRequest{Closure: j.Before.Current, Action: nixops.ActionTest, Unit: j.Units.Undo, Env: noCheck})
		if errors.As(err, &bad) {
			u.log.Warn().Str("exit", bad.exit.String()).Msg("the previous closure's script did not end well")
		} else if err != nil {
			return err
		}
	}
	if err := u.host.RestoreCurrent(ctx, j.Before.Current); err != nil {
		return err
	}
	if err := u.restoreBoot(ctx, j); err != nil {
		return err
	}
	return u.restored(ctx, j)
}

func (u *undoer) restoreBoot(ctx context.Context, j *journal) error {
	if err := u.host.SetProfile(ctx, j.Before.Profile); err != nil {
		return err
	}
	def, err := u.host.BootDefault(ctx)
	if err == nil && j.Before.BootDefault != "" && def != j.Before.BootDefault {
		err = u.boot(ctx, j, j.Before.BootDefault, noCheck)
		if errors.As(err, new(*exitError)) {
			err = nil // what counts is the boot default
		}
	}
	return err
}

// noCheck has a switch script leave out its pre-switch checks.
var noCheck = []string{"NIXOS_NO_CHECK=1"}

// exitError: a switch script ran and did not succeed.
type exitError struct{ exit nixops.Exit }

func (e *exitError) Error() string { return e.exit.String() }

// run runs a switch script in a unit of its own and ends it together with ctx: one that
// hangs would keep the locks for ever.
func (u *undoer) run(ctx context.Context, r nixops.SwitchRequest) error {
	r.Unit = fresh(r.Unit)
	exit, err := u.host.Switch(ctx, r)
	switch {
	case err == nil && !exit.OK():
		return &exitError{exit}
	case err != nil && ctx.Err() != nil:
		return errors.Join(err, u.host.StopUnit(context.WithoutCancel(ctx), r.Unit))
	}
	return err
}

// boot makes a closure the boot default by its own script.
func (u *undoer) boot(ctx context.Context, j *journal, closure string, env []string) error {
	ctx, cancel := context.WithTimeout(ctx, bootTimeout)
	defer cancel()
	err := u.run(ctx, nixops.SwitchRequest{Closure: closure, Action: nixops.ActionBoot, Unit: j.Units.Boot, Env: env})
	if err != nil && ctx.Err() != nil {
		// It has hung by itself, which is as good as a failure.
		return fmt.Errorf("%w: %w", &exitError{nixops.Exit{Code: -1, Signal: "TERM"}}, err)
	}
	return err
}

// unstage takes back what was chosen for one boot.
func (u *undoer) unstage(ctx context.Context, j *journal) error {
	if !j.BootsOnce {
		return nil
	}
	return errors.Join(u.host.SetBootOnce(ctx, ""), u.host.SetStaged(ctx, ""))
}

// errRebooting: the rest of the undo is the boot of what was before.
var errRebooting = errors.New("the host reboots")

// rebootBack leaves a generation that was booted, because it could not be
// switched to live, by booting the one before. False when that cannot be done;
// a live switch is then the next best.
func (u *undoer) rebootBack(ctx context.Context, j *journal) bool {
	booted, err := u.host.BootedSystem(ctx)
	if err != nil || !u.runs(ctx, booted, j.Closure) {
		return false
	}
	err = u.restoreBoot(ctx, j)
	if err == nil {
		err = u.host.Reboot(ctx)
	}
	if err != nil {
		u.log.Error().Err(err).Msg("reboot into the previous generation not begun")
	}
	return err == nil
}

// fresh names one more unit of a kind: an undo may be tried several times.
func fresh(unit string) string { return fmt.Sprintf("%s-%d", unit, time.Now().UnixNano()) }

// untouched: the switch never began, or a reboot has undone it already.
func (u *undoer) untouched(ctx context.Context, j *journal) (bool, error) {
	boot, err := u.host.BootID(ctx)
	if err != nil {
		return false, err
	}
	current, err := u.host.CurrentSystem(ctx)
	if err != nil {
		return false, err
	}
	if current != j.Before.Current {
		return false, nil
	}
	if boot != j.BootID {
		return true, nil
	}
	state, err := u.host.SwitchState(ctx, j.Units.Switch)
	return err == nil && state.Phase == nixops.UnitUnknown, nil
}

func (u *undoer) waitForLock(ctx context.Context) error {
	for waited := time.Duration(0); ; waited += lockPoll {
		held, err := u.host.LockHeld(ctx)
		if err != nil {
			return err
		}
		if !held {
			return nil
		}
		if waited >= foreignLockWait {
			return fmt.Errorf("%w after %s", nixops.ErrLockHeld, foreignLockWait)
		}
		if err := sleep(ctx, lockPoll); err != nil {
			return err
		}
	}
}

// restored looks whether the host is where it was.
func (u *undoer) restored(ctx context.Context, j *journal) error {
	for _, check := range []struct {
		what string
		want string
		read func(context.Context) (string, error)
	}{
		{"current-system", j.Before.Current, u.host.CurrentSystem},
		{"profile", j.Before.Profile, u.host.Profile},
		{"boot default", j.Before.BootDefault, u.host.BootDefault},
	} {
		got, err := check.read(ctx)
		if err != nil {
			return err
		}
		if check.want != "" && got != check.want {
			return fmt.Errorf("%s is %s, it was %s", check.what, got, check.want)
		}
	}
	return nil
}

// guard acts at boot on an activation that a power cut interrupted. What had
// become the boot default and runs now goes on to be confirmed; all else is
// undone.
func (u *undoer) guard(ctx context.Context) error {
	j, err := u.dir.journal()
	if err != nil || j == nil {
		return err
	}
	boot, err := u.host.BootID(ctx)
	if err != nil {
		return err
	}
	current, err := u.host.CurrentSystem(ctx)
	if err != nil {
		return err
	}
	if boot == j.BootID || j.Step == stepCommitting && current == j.Closure {
		return nil
	}
	if booted, err := u.stagedBoot(ctx, j); err != nil || booted {
		if err != nil {
			return err
		}
		// Armed here, since its agent may never start; not twice, since the generation
		// before has guarded this boot already where it could.
		if armed, err := u.host.DeadlineArmed(ctx, j.Units.Deadline); err != nil || armed {
			return err
		}
		return u.armDeadline(ctx, j)
	}
	return u.undo(ctx, reasonPower, false)
}

func sleep(ctx context.Context, d time.Duration) error {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}
