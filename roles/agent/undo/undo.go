package undo

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/rs/zerolog"

	"nixfleet/nixops"
	"nixfleet/roles/agent/journal"
	"nixfleet/roles/protocol"
)

const (
	// LockWait bounds the wait for a switch that is not ours.
	LockWait    = 60 * time.Second
	lockPoll    = time.Second
	undoTimeout = 10 * time.Minute
	// bootTimeout bounds the installer of a boot loader.
	bootTimeout = 5 * time.Minute
	// Again is how long the agent waits after an undo that did not succeed.
	Again = time.Minute
)

// Undoer restores what an activation recorded. The agent uses it, and so do the deadline and
// the boot-time guard, which run without an agent.
type Undoer struct {
	Host nixops.Host
	Dir  journal.Directory
	Log  zerolog.Logger
	// Flags say where the host is, for the command of a deadline.
	Flags []string
	// Apart says that this process is not the agent, whose unit a switch may restart: it runs a
	// script itself where no unit can be made for it.
	Apart bool

	mu   sync.Mutex
	kept *journal.Journal // what could not be written down
}

// Runs reports whether current is the closure or one of its specialisations.
func (u *Undoer) Runs(ctx context.Context, current, closure string) bool {
	if current == closure {
		return true
	}
	c, err := u.Host.Inspect(ctx, closure)
	return err == nil && slices.Contains(c.Specialisations, current)
}

// Undo takes a revertible activation back and leaves any other alone. It is idempotent: what
// was half undone is undone to the end.
func (u *Undoer) Undo(ctx context.Context, reason journal.Reason) error {
	return u.From(ctx, journal.Revertible, reason)
}

// From is Undo for an activation at one of the given steps.
func (u *Undoer) From(ctx context.Context, from []journal.Step, reason journal.Reason) error {
	return u.FromNoted(ctx, "", from, reason)
}

// FromNoted is From for an activation whose journal may be gone: the note of the named deadline,
// or of the newest one, then tells of it.
func (u *Undoer) FromNoted(ctx context.Context, deadline string, from []journal.Step, reason journal.Reason) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), undoTimeout)
	defer cancel()
	defer u.exclude()()
	j, noted, err := u.Known(ctx, deadline)
	if err != nil {
		return err
	}
	if j == nil || !slices.Contains(from, j.Step) {
		step := journal.Step("over")
		if j != nil {
			step = j.Step
		}
		u.Log.Info().Str("step", string(step)).Msg("nothing to undo")
		return nil
	}
	err = u.undo(ctx, j, reason)
	if unwritten := (*unwrittenError)(nil); noted && errors.As(err, &unwritten) {
		// No journal says anything else.
		u.Log.Warn().Err(err).Msg("the host is back; its state directory does not say so")
		return u.Host.DisarmDeadline(ctx, j.Units.Deadline)
	}
	return err
}

// exclude takes the journal's lock. An undo goes on without it where it cannot be had: who
// has no lock file cannot commit either.
func (u *Undoer) exclude() (end func()) {
	unlock, err := u.Dir.Lock()
	if err != nil {
		u.Log.Error().Err(err).Msg("the undo goes on without the journal's lock")
		unlock = func() {}
	}
	u.mu.Lock()
	return func() {
		u.mu.Unlock()
		unlock()
	}
}

// undo takes back an activation. The caller excludes others.
func (u *Undoer) undo(ctx context.Context, j *journal.Journal, reason journal.Reason) error {
	if kept := u.kept; kept != nil && kept.Units == j.Units {
		j = kept
	}
	if j.Step == journal.Undone && u.restored(ctx, j) == nil {
		return u.finish(ctx, j, nil) // it remains to be written down
	}
	u.write(j, journal.Undoing, func(j *journal.Journal) {
		if j.Step != journal.Undoing {
			j.Reason, j.Blame = reason, blames(reason)
		}
	})
	u.Log.Warn().Str("closure", j.Closure).Str("previous", j.Before.Current).Stringer("reason",
		j.Reason).Msg("undo begins")
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
		// Root switched by hand meanwhile, and keeps that.
		u.Log.Warn().Str("running", third).Msg("a third closure is running; the undo leaves it as it is")
		return u.finish(ctx, j, func(j *journal.Journal) {
			j.Reason, j.Blame = journal.Because(protocol.CauseThirdClosure, third), false
		})
	}
	if err := u.restore(ctx, j); errors.Is(err, errRebooting) {
		u.Log.Warn().Msg("rebooting into the previous generation")
		return nil
	} else if err != nil {
		return fmt.Errorf("undo %s: %w", j.Closure, err)
	}
	return u.finish(ctx, j, nil)
}

func (u *Undoer) finish(ctx context.Context, j *journal.Journal, change func(*journal.Journal)) error {
	err := u.write(j, journal.Undone, change)
	u.Log.Info().Str("running", j.Before.Current).Msg("undo done")
	if err != nil {
		return &unwrittenError{j.Closure, err}
	}
	return u.Host.DisarmDeadline(ctx, j.Units.Deadline)
}

// write puts the activation at a step. The undo goes on where that cannot be written down: a
// disk that a release has filled must not keep its host on that release. What was not written
// is kept for the next attempt of this process.
func (u *Undoer) write(j *journal.Journal, to journal.Step, change func(*journal.Journal)) error {
	if change != nil {
		change(j)
	}
	err := u.Dir.Put(time.Now(), j, to)
	u.kept = nil
	if err != nil {
		u.kept = j
		u.Log.Error().Err(err).Str("step", string(to)).Msg("step of the undo not written down")
	}
	return err
}

// unwrittenError means that the host is back and its journal does not say so.
type unwrittenError struct {
	closure string
	err     error
}

func (e *unwrittenError) Error() string {
	return fmt.Sprintf("%s is undone, which cannot be written down: %v", e.closure, e.err)
}

func (e *unwrittenError) Unwrap() error { return e.err }

// thirdClosure is the running closure when it is neither the target nor the one before, and
// empty otherwise.
func (u *Undoer) thirdClosure(ctx context.Context, j *journal.Journal) (string, error) {
	current, err := u.Host.CurrentSystem(ctx)
	if err != nil {
		return "", fmt.Errorf("undo: %w", err)
	}
	// After a reboot the default runs, where a specialisation of it may have run before.
	if current == "" || current == j.Before.Current || current == j.Before.Boots() || u.Runs(ctx, current, j.Closure) {
		return "", nil
	}
	return current, nil
}

// quiet ends our own switch and waits for one that is not ours.
func (u *Undoer) quiet(ctx context.Context, j *journal.Journal) error {
	if err := u.Host.StopUnit(ctx, j.Units.Switch); err != nil {
		u.Log.Warn().Err(err).Msg("switch unit not stopped")
	}
	return u.WaitForLock(ctx)
}

func (u *Undoer) restore(ctx context.Context, j *journal.Journal) error {
	if err := u.Host.ClearSwitchLists(ctx); err != nil {
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
	var unwell error
	if !untouched {
		unwell, err = u.switchBack(ctx, j)
		if err != nil {
			return err
		}
	}
	if err := u.Host.RestoreCurrent(ctx, j.Before.Current); err != nil {
		return err
	}
	bootUnwell, err := u.restoreBoot(ctx, j)
	if err != nil {
		return err
	}
	if err := u.restored(ctx, j); err != nil {
		return err
	}
	if untouched && bootUnwell == nil {
		return nil
	}
	return u.restoreUnits(ctx, j, errors.Join(unwell, bootUnwell))
}

// restoreBoot restores profile and boot default. Where the target's `boot` was begun, the
// previous closure's is run whatever the loader's files say: an installer that failed late
// has changed them all the same, and some of them cannot be read. The first error is of an
// installer that did not end well while nothing says that its closure boots next; where that
// is known, only what is known counts.
func (u *Undoer) restoreBoot(ctx context.Context, j *journal.Journal) (unwell, err error) {
	if err := u.Host.SetProfile(ctx, j.Before.Profile); err != nil {
		return nil, err
	}
	def, err := u.Host.BootDefault(ctx)
	if err != nil {
		return nil, err
	}
	if !j.BootBegun && (j.Before.BootDefault == "" || def == "" || def == j.Before.BootDefault) {
		return nil, nil
	}
	err = u.boot(ctx, j, j.Before.Boots(), noCheck)
	if bad := (*ExitError)(nil); errors.As(err, &bad) {
		if def, err = u.Host.BootDefault(ctx); err == nil && def != j.Before.Boots() {
			return fmt.Errorf("the previous closure's boot loader installer: %w", bad), nil
		}
	}
	return nil, err
}

// unstage takes back what was chosen for one boot.
func (u *Undoer) unstage(ctx context.Context, j *journal.Journal) error {
	if !j.BootsOnce {
		return nil
	}
	return errors.Join(u.Host.SetBootOnce(ctx, ""), u.Host.SetStaged(ctx, ""))
}

// errRebooting means that the host reboots into the previous generation, which ends the undo.
var errRebooting = errors.New("the host reboots")

// rebootBack leaves a generation that was booted, because it could not be switched to live,
// by booting the one before. It returns false when that cannot be done: a live switch is then
// the next best.
func (u *Undoer) rebootBack(ctx context.Context, j *journal.Journal) bool {
	booted, err := u.Host.BootedSystem(ctx)
	if err != nil || !u.Runs(ctx, booted, j.Closure) {
		return false
	}
	unwell, err := u.restoreBoot(ctx, j)
	if err = errors.Join(unwell, err); err == nil {
		err = u.Host.Reboot(ctx)
	}
	if err != nil {
		u.Log.Error().Err(err).Msg("reboot into the previous generation failed")
	}
	return err == nil
}

// untouched reports whether the switch never began, or a reboot has undone it already.
func (u *Undoer) untouched(ctx context.Context, j *journal.Journal) (bool, error) {
	boot, err := u.Host.BootID(ctx)
	if err != nil {
		return false, err
	}
	current, err := u.Host.CurrentSystem(ctx)
	if err != nil {
		return false, err
	}
	if current != j.Before.Current {
		return false, nil
	}
	if boot != j.BootID {
		return true, nil
	}
	state, err := u.Host.SwitchState(ctx, j.Units.Switch)
	return err == nil && state.Phase == nixops.UnitUnknown, nil
}

// restored returns an error unless the host is where it was.
func (u *Undoer) restored(ctx context.Context, j *journal.Journal) error {
	for _, check := range []struct {
		what string
		want string
		read func(context.Context) (string, error)
	}{
		{"current-system", j.Before.Current, u.Host.CurrentSystem},
		{"profile", j.Before.Profile, u.Host.Profile},
		{"boot default", j.Before.BootDefault, u.Host.BootDefault},
	} {
		got, err := check.read(ctx)
		if err != nil {
			return err
		}
		if check.what == "boot default" && got == "" {
			continue // it is not known, which proves nothing and stops nothing
		}
		if check.want != "" && got != check.want {
			return fmt.Errorf("%s is %s, it was %s", check.what, got, check.want)
		}
	}
	return nil
}
