package agent

import (
	"context"
	"time"

	"nixfleet/nixops"
	"nixfleet/roles/agent/journal"
	"nixfleet/roles/agent/undo"
	"nixfleet/roles/protocol"
)

// readExit reads the exit of a switch by what has changed since the activation began: an
// earlier agent may have begun the run, and an earlier run may have died in its middle.
func (s *switcher) readExit(ctx context.Context, j *journal.Journal, exit nixops.Exit) (nixops.Exit, error) {
	current, err := s.host.CurrentSystem(ctx)
	if err != nil {
		return exit, err
	}
	output, err := s.host.UnitOutput(ctx, j.Units.Switch)
	if err != nil {
		output = ""
	}
	return exit.After(j.Before.Current, current, output), nil
}

// judge tells the exits of the switch script apart. Exit 4 says that some unit failed,
// which the health gate compares with those that had failed before.
func (s *switcher) judge(ctx context.Context, j *journal.Journal, exit nixops.Exit) (*journal.Journal, error) {
	code := int32(exit.Code)
	output, err := s.host.UnitOutput(ctx, j.Units.Switch)
	if err != nil {
		output = ""
	}
	noted := func(j *journal.Journal) { j.ExitCode, j.Output = &code, tail(output) }
	s.log.Info().Str("closure", j.Closure).Str("exit", exit.String()).Msg("switch ended")
	switch exit.Meaning() {
	case nixops.MeaningDone, nixops.MeaningUnits:
		if did := nixops.ChangesOf(output).String(); did != "" {
			s.log.Info().Str("closure", j.Closure).Str("units", did).Msg("the switch changed units")
			s.reporter.other(protocol.KindSwitched, did)
		}
		return s.watchUnits(ctx, noted)
	case nixops.MeaningLocked:
		return nil, s.settler.undo(ctx, undo.Locked)
	case nixops.MeaningReboot:
		why := journal.Because(protocol.CauseSuperseded, "the init interface changed; staged for the next boot")
		if err := s.undoer.Undo(ctx, why); err != nil {
			return nil, err
		}
		return s.dir.Advance(time.Now(), []journal.Step{journal.Undone}, journal.Staging, func(j *journal.Journal) {
			j.Component, j.Reason = "systemd", journal.Reason{}
		})
	}
	if exit.Changed == nixops.ChangedSystem && !j.Again {
		return s.switchAgain(noted)
	}
	if _, err := s.dir.Advance(time.Now(), []journal.Step{journal.Switching}, journal.Switching, noted); err != nil {
		return nil, err
	}
	cause := protocol.CauseSwitch
	if exit.Meaning() == nixops.MeaningNotBegun {
		cause = protocol.CausePreflight // the number of an error of this host
	}
	return nil, s.settler.undo(ctx, journal.Because(cause, exit.String()))
}

// switchAgain has the switch script run once more that died in its middle: what it had
// stopped, which its lists name, is started by the second run.
func (s *switcher) switchAgain(noted func(*journal.Journal)) (*journal.Journal, error) {
	j, err := s.dir.Advance(time.Now(), []journal.Step{journal.Switching}, journal.Switching, func(j *journal.Journal) {
		noted(j)
		j.Again = true
		j.Units.Switch += "-again"
	})
	if err == nil {
		s.status.waiting("switching to %s once more: its script died in the middle", j.Closure)
	}
	return j, err
}

// watchUnits goes on to the health gate.
func (s *switcher) watchUnits(ctx context.Context, noted func(*journal.Journal)) (*journal.Journal, error) {
	s.prober.reset()
	restarts, err := restarts(ctx, s.host)
	if err != nil {
		return nil, err
	}
	return s.dir.Advance(time.Now(), []journal.Step{journal.Switching}, journal.Checking, func(j *journal.Journal) {
		noted(j)
		j.Restarts = restarts
	})
}

// restarts are the counts of automatic restarts by unit.
func restarts(ctx context.Context, host nixops.Host) (map[string]uint64, error) {
	units, err := host.Units(ctx)
	if err != nil {
		return nil, err
	}
	counts := map[string]uint64{}
	for _, u := range units {
		if u.Restarts > 0 {
			counts[u.Name] = u.Restarts
		}
	}
	return counts, nil
}
