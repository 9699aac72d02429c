package undo

import (
	"context"
	"errors"
	"fmt"

	"nixfleet/nixops"
	"nixfleet/roles/agent/journal"
)

// maxTries is how many times the previous closure's script is run that does not end well.
// After that the host is on the previous closure as far as it gets there, and has to be
// free for a release that mends it.
const maxTries = 5

// switchBack runs the previous closure's own script, since the bad one's may be what is
// bad. Its pre-checks must not keep the host in a bad state. A script that did not end
// well is the first error; the second is one of the host.
func (u *Undoer) switchBack(ctx context.Context, j *journal.Journal) (unwell, err error) {
	err = u.run(ctx, nixops.SwitchRequest{Closure: j.Before.Current, Action: nixops.ActionTest, Unit: j.Units.Undo,
		Env: noCheck})
	var bad *ExitError
	if !errors.As(err, &bad) {
		return nil, err
	}
	u.Log.Warn().Str("exit", bad.Exit.String()).Msg("the previous closure's script did not end well")
	if bad.Exit.Meaning() == nixops.MeaningUnits {
		units, err := u.Host.Units(ctx)
		if err != nil {
			return nil, err
		}
		if j.Baseline().Failing(units) == "" {
			return nil, nil // they had failed before
		}
	}
	return fmt.Errorf("the previous closure's script: %w", bad), nil
}

// restoreUnits starts what ran before and does not now: the bad switch may have stopped
// units that nothing else starts. A script that did not end well is an error, so that the
// undo is tried again, until it has been tried often enough; what is not as it was is then
// written down for the report.
func (u *Undoer) restoreUnits(ctx context.Context, j *journal.Journal, unwell error) error {
	if unwell != nil && j.UndoTries+1 < maxTries {
		u.write(j, journal.Undoing, func(j *journal.Journal) {
			j.UndoTries++
			j.UndoTrouble = unwell.Error()
		})
		return unwell
	}
	trouble := ""
	if unwell != nil {
		trouble = unwell.Error()
	}
	down, err := u.Host.StartAgain(ctx, j.Baseline().Ran)
	switch {
	case err != nil:
		u.Log.Warn().Err(err).Msg("units that ran before cannot be checked")
	case len(down) > 0:
		u.Log.Warn().Strs("units", down).Msg("units that ran before do not run")
		if trouble != "" {
			trouble += "; "
		}
		trouble += fmt.Sprintf("units that ran before do not run: %v", down)
	}
	if trouble == j.UndoTrouble {
		return nil
	}
	u.write(j, journal.Undoing, func(j *journal.Journal) { j.UndoTrouble = trouble })
	return nil
}
