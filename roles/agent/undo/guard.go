package undo

import (
	"context"

	"nixfleet/roles/agent/journal"
)

// Guard acts at boot on an activation that a power cut interrupted. A closure that had become
// the boot default, and runs now, goes on to be confirmed. All else is undone.
func (u *Undoer) Guard(ctx context.Context) error {
	j, err := u.Dir.Journal()
	if err != nil || j == nil {
		return err
	}
	boot, err := u.Host.BootID(ctx)
	if err != nil {
		return err
	}
	current, err := u.Host.CurrentSystem(ctx)
	if err != nil {
		return err
	}
	if boot == j.BootID || j.Step == journal.Committing && current == j.Closure {
		return nil
	}
	if booted, err := u.stagedBoot(ctx, j); err != nil || booted {
		if err != nil {
			return err
		}
		// Armed here, since its agent may never start; not twice, since the generation
		// before has guarded this boot already where it could.
		if armed, err := u.Host.DeadlineArmed(ctx, j.Units.Deadline); err != nil || armed {
			return err
		}
		return u.Arm(ctx, j)
	}
	return u.Undo(ctx, PowerLost)
}
