package undo

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"time"

	"nixfleet/nixops"
	"nixfleet/roles/agent/journal"
	"nixfleet/roles/protocol"
)

const (
	InsistFirst = 5 * time.Second // and then twice as long each time, up to Again
	InsistFor   = time.Hour
)

// Arm has the machine run the previous generation's own executable by its store path: the new
// generation's may be what is broken.
func (u *Undoer) Arm(ctx context.Context, j *journal.Journal) error {
	executable, err := u.executableBefore(ctx, j)
	if err != nil {
		return err
	}
	command := append([]string{executable, "agent", "undo", "--deadline", "--unit", j.Units.Deadline, "--state-dir",
		string(u.Dir)}, u.Flags...)
	note, err := noteOf(j)
	if err != nil {
		return err
	}
	return u.Host.ArmDeadline(ctx, nixops.Deadline{
		Unit: j.Units.Deadline, After: time.Duration(j.WindowSecs) * time.Second, Command: command, Note: note,
	})
}

func (u *Undoer) executableBefore(ctx context.Context, j *journal.Journal) (string, error) {
	if before, err := u.Host.Inspect(ctx, j.Before.Current); err == nil && before.AgentPath != "" {
		return before.AgentPath, nil
	}
	return os.Executable()
}

// keptExecutable is a link to the nixfleet of the generation before a staged one. The
// guard of the generation that is booted runs it before its own, which may be what is broken.
const keptExecutable = "previous-nixfleet"

// KeepExecutable makes that link.
func (u *Undoer) KeepExecutable(ctx context.Context, j *journal.Journal) error {
	executable, err := u.executableBefore(ctx, j)
	if err != nil {
		return err
	}
	link := u.Dir.Path(keptExecutable)
	if err := os.Remove(link); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return os.Symlink(executable, link)
}

// Deadline is Undo for the timer, which knows only the journal: a generation that was healthy
// and got no answer is not to blame. It ignores the timer of an earlier activation, which
// could not be disarmed. An empty unit name stands for any activation. Where the journal is
// gone or damaged, the note of the deadline tells what is to be undone.
func (u *Undoer) Deadline(ctx context.Context, unit string) error {
	j, _, err := u.Known(ctx, unit)
	if err != nil || j == nil || journal.Breaks("the deadline") {
		return err
	}
	if unit != "" && unit != j.Units.Deadline {
		u.Log.Info().Str("unit", unit).Str("armed",
			j.Units.Deadline).Msg("deadline of an earlier activation; nothing to undo")
		return nil
	}
	if j.GatePassed {
		return u.FromNoted(ctx, unit, journal.Revertible, Unreachable)
	}
	late := journal.Because(protocol.CauseDeadline, "the new generation was not proven within its window")
	if booted, err := u.stagedBoot(ctx, j); err != nil || booted {
		return errors.Join(err, u.FromNoted(ctx, unit, []journal.Step{journal.Staging, journal.Staged}, late))
	}
	return u.FromNoted(ctx, unit, journal.Revertible, late)
}

// Insist repeats Deadline until it succeeds, because nothing else may undo before the next
// boot. It reads the journal anew each time, so it finds nothing to do once the agent, or a
// boot, has been faster. It gives up after an hour, or between two attempts when ctx ends.
func (u *Undoer) Insist(ctx context.Context, unit string) error {
	end := time.Now().Add(InsistFor)
	for pause := InsistFirst; ; pause = min(2*pause, Again) {
		err := u.Deadline(ctx, unit)
		if err == nil || ctx.Err() != nil || time.Until(end) < pause {
			return err
		}
		u.Log.Error().Err(err).Dur("retry_in", pause).Msg("undo failed")
		if nixops.Sleep(ctx, pause) != nil {
			return err
		}
	}
}

// stagedBoot reports whether the staged closure has been booted, and its agent has not begun
// to prove it. Power may have been lost before the staging was written down as done.
func (u *Undoer) stagedBoot(ctx context.Context, j *journal.Journal) (bool, error) {
	if j.Step != journal.Staging && j.Step != journal.Staged {
		return false, nil
	}
	boot, err := u.Host.BootID(ctx)
	if err != nil || boot == j.BootID {
		return false, err
	}
	booted, err := u.Booted(ctx)
	return err == nil && u.Runs(ctx, booted, j.Closure), err
}

// Booted is the closure that this boot started: by the kernel's command line, or else what runs.
func (u *Undoer) Booted(ctx context.Context) (string, error) {
	started, err := u.Host.StartedBy(ctx)
	if err != nil || started != "" {
		return started, err
	}
	return u.Host.CurrentSystem(ctx)
}
