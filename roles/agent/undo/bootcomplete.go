package undo

import (
	"context"
	"errors"
	"fmt"
	"time"

	"nixfleet/nixops"
	"nixfleet/roles/agent/journal"
)

// completePoll is the time between two looks of BootComplete.
const completePoll = time.Second

// BootComplete is what boot-complete.target waits for, after which systemd-bless-boot tells the boot loader that the
// boot went well. Every closure that was confirmed before may be blessed at once. One that is still to be proven may
// be when its local health gate has passed: an answer of the control plane is not waited for, so that an outage spends
// no tries of the loader. BootComplete returns an error if the closure is undone instead. It blesses where nothing is
// known, since the boot counter is not ours.
func (u *Undoer) BootComplete(ctx context.Context) error {
	waited := ""
	for {
		j, err := u.Dir.Journal()
		if err != nil {
			u.Log.Error().Err(err).Msg("the journal cannot be read; this boot is not held back")
			return nil
		}
		if j == nil || j.Units.Deadline != waited && waited != "" {
			return u.stayed(ctx, waited)
		}
		holds, err := u.unprovenBoot(ctx, j)
		if err != nil {
			return fmt.Errorf("boot of %s: %w", j.Closure, err)
		}
		if !holds {
			return nil
		}
		if waited == "" {
			u.Log.Info().Str("closure", j.Closure).Msg("this boot is blessed when its generation has passed the health gate")
		}
		waited = j.Units.Deadline
		if err := nixops.Sleep(ctx, completePoll); err != nil {
			return err
		}
	}
}

// errNotProven means that the generation that was booted has not passed its health gate.
var errNotProven = errors.New("the generation that was booted was not proven")

// unprovenBoot reports whether this boot started a generation that has yet to pass its health gate. It returns
// errNotProven if the generation is being undone.
func (u *Undoer) unprovenBoot(ctx context.Context, j *journal.Journal) (bool, error) {
	if !j.Booted() || j.GatePassed && j.Step != journal.Undoing && j.Step != journal.Undone {
		return false, nil
	}
	started, err := u.Booted(ctx)
	if err != nil || !u.Runs(ctx, started, j.Closure) {
		return false, err
	}
	boot, err := u.Host.BootID(ctx)
	if err != nil {
		return false, err
	}
	switch j.Step {
	case journal.Staging, journal.Staged: // its agent has yet to take it
		return boot != j.BootID, nil
	case journal.Checking:
		return true, nil
	case journal.Undoing, journal.Undone:
		return false, errNotProven
	}
	return false, nil
}

// stayed is the answer where the activation that was waited for is over: it was confirmed if its closure still runs.
func (u *Undoer) stayed(ctx context.Context, waited string) error {
	if waited == "" {
		return nil
	}
	var committed journal.Journal
	if err := u.Dir.Read(journal.CommittedFile, &committed); err == nil && committed.Units.Deadline == waited {
		return nil
	}
	return errNotProven
}
