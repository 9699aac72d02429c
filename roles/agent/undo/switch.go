package undo

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"nixfleet/nixops"
	"nixfleet/roles/agent/journal"
	"nixfleet/roles/protocol"
)

// noCheck has a switch script leave out its pre-switch checks.
var noCheck = []string{"NIXOS_NO_CHECK=1"}

// ExitError means that a switch script ran and did not succeed.
type ExitError struct {
	Exit nixops.Exit
	Said string // the last line that it wrote, where that says more than the exit
}

func (e *ExitError) Error() string {
	if e.Said == "" {
		return e.Exit.String()
	}
	return e.Exit.String() + ": " + e.Said
}

// fullWords are what programs say when a disk is full.
var fullWords = []string{"No space left on device", "Errno 28", "Disk quota exceeded", "ENOSPC"}

// fixedWords are what programs say when a file system is mounted read-only.
var fixedWords = []string{"Read-only file system", "Errno 30", "EROFS"}

// installerSaid reads what a boot loader's installer wrote. A disk that is full is this host's trouble, whatever the
// exit.
func (u *Undoer) installerSaid(ctx context.Context, unit string, bad *ExitError) error {
	output, err := u.Host.UnitOutput(ctx, unit)
	if err != nil {
		u.Log.Warn().Err(err).Str("unit", unit).Msg("output of the installer cannot be read")
		return bad
	}
	lines := strings.Split(strings.TrimSpace(output), "\n")
	bad.Said = protocol.Clip(strings.TrimSpace(lines[len(lines)-1]), maxSaid)
	for _, words := range fullWords {
		if strings.Contains(output, words) {
			return fmt.Errorf("%w: the boot loader's installer: %w", nixops.ErrNoSpace, bad)
		}
	}
	for _, words := range fixedWords {
		if strings.Contains(output, words) {
			return fmt.Errorf("%w: the boot loader's installer: %w", nixops.ErrReadOnly, bad)
		}
	}
	return bad
}

// maxSaid bounds the line of an ExitError in bytes.
const maxSaid = 200

// run runs a switch script in a unit of its own and ends the unit together with ctx: a script
// that hangs would keep the locks for ever.
func (u *Undoer) run(ctx context.Context, r nixops.SwitchRequest) error {
	r.Unit, r.Here = journal.FreshUnit(r.Unit), u.Apart
	exit, err := u.Host.Switch(ctx, r)
	switch {
	case err == nil && !exit.OK() && r.Action == nixops.ActionBoot:
		return u.installerSaid(ctx, r.Unit, &ExitError{Exit: exit})
	case err == nil && !exit.OK():
		return &ExitError{Exit: exit}
	case err != nil && ctx.Err() != nil:
		return errors.Join(err, u.Host.StopUnit(context.WithoutCancel(ctx), r.Unit))
	}
	return err
}

// Boot makes a closure the boot default by its own script.
func (u *Undoer) Boot(ctx context.Context, j *journal.Journal, closure string) error {
	return u.boot(ctx, j, closure, nil)
}

// BootUnchecked is Boot without the script's pre-switch checks, for a closure that has run
// here before.
func (u *Undoer) BootUnchecked(ctx context.Context, j *journal.Journal, closure string) error {
	return u.boot(ctx, j, closure, noCheck)
}

func (u *Undoer) boot(ctx context.Context, j *journal.Journal, closure string, env []string) error {
	ctx, cancel := context.WithTimeout(ctx, bootTimeout)
	defer cancel()
	err := u.run(ctx, nixops.SwitchRequest{Closure: closure, Action: nixops.ActionBoot, Unit: j.Units.Boot, Env: env})
	if err != nil && ctx.Err() != nil {
		// A script that hangs counts as one that failed.
		return fmt.Errorf("%w: %w", &ExitError{Exit: nixops.Exit{Code: -1, Signal: "TERM"}}, err)
	}
	return err
}

// WaitForLock waits, within bounds, for a switch that is not ours.
func (u *Undoer) WaitForLock(ctx context.Context) error {
	for waited := time.Duration(0); ; waited += lockPoll {
		held, err := u.Host.LockHeld(ctx)
		if err != nil {
			return err
		}
		if !held {
			return nil
		}
		if waited >= LockWait {
			return fmt.Errorf("%w after %s", nixops.ErrLockHeld, LockWait)
		}
		if err := nixops.Sleep(ctx, lockPoll); err != nil {
			return err
		}
	}
}
