package agent

import (
	"context"
	"slices"
	"time"

	"github.com/rs/zerolog"

	"nixfleet/nixops"
	"nixfleet/roles/agent/journal"
	"nixfleet/roles/agent/undo"
)

const (
	// sleepPoll is how often an activation under way is looked at for time asleep.
	sleepPoll = 5 * time.Second
	// sleepMargin is how far behind a deadline that the machine itself runs may be.
	sleepMargin = 10 * time.Second
)

// sleeper undoes an activation whose window has passed while the machine was asleep. The
// deadline outside of this process does not count that time.
type sleeper struct {
	log    zerolog.Logger
	host   nixops.Host
	dir    journal.Directory
	undoer *undo.Undoer
	work   *work
}

// watchSleep undoes the activation when its window has passed while the machine was
// asleep, until ctx ends. The deadline outside of this process does not count that time.
func (s *sleeper) watchSleep(ctx context.Context) {
	for nixops.Sleep(ctx, sleepPoll) == nil {
		s.undoOverslept(ctx)
	}
}

// undoOverslept does what the deadline would have done by now, had the machine been
// awake. The worker of the activation finds its journal moved on.
func (s *sleeper) undoOverslept(ctx context.Context) {
	j, err := s.dir.Journal()
	if err != nil || j == nil || !s.overslept(ctx, j) {
		return
	}
	s.log.Warn().Str("closure", j.Closure).Msg("the deadline has passed while the machine was asleep")
	if err := s.undoer.Deadline(ctx, j.Units.Deadline); err != nil {
		s.log.Error().Err(err).Msg("undo failed")
		return
	}
	s.work.tellChange()
}

// overslept says whether a deadline of this boot is late by more than it can be of a
// machine that was awake.
func (s *sleeper) overslept(ctx context.Context, j *journal.Journal) bool {
	waits := []journal.Step{journal.Switching, journal.Checking, journal.Proven, journal.Committing}
	if j.ArmedAtMs == 0 || !slices.Contains(waits, j.Step) {
		return false
	}
	boot, err := s.host.BootID(ctx)
	if err != nil || boot != j.BootID {
		return false
	}
	now, err := s.host.SinceBoot(ctx)
	if err != nil {
		s.log.Warn().Err(err).Msg("time asleep cannot be determined")
		return false
	}
	window := time.Duration(j.WindowSecs) * time.Second
	return now > time.Duration(j.ArmedAtMs)*time.Millisecond+window+sleepMargin
}
