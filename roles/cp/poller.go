package cp

import (
	"context"
	"errors"
	"path/filepath"
	"time"

	"nixfleet/roles/cp/source"
)

// firstRetry is the pause after a look that failed; it doubles up to the poll
// interval.
const firstRetry = 2 * time.Second

const (
	primeTimeout    = 30 * time.Second
	restoredTimeout = 5 * time.Second
)

// prime loads a release before anybody is answered: from disk what was accepted
// last, from the source what is new and, while there is neither, the local pair.
// It returns the revision that was accepted, and whether the source answered. A
// forge that hangs delays the start by no more than primeTimeout, and when there
// is something to serve by no more than restoredTimeout.
func (s *server) prime(ctx context.Context) (revision string, ok bool) {
	s.restore()
	patience := primeTimeout
	if s.snapshot.Load() != nil {
		patience = restoredTimeout
	}
	first, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	if revision, ok = s.poll(first, ""); !ok && first.Err() != nil && ctx.Err() == nil {
		s.log.Warn().Str("source", s.source.String()).Msg("source does not answer")
	}
	if s.snapshot.Load() == nil && s.cfg.Artifact != "" && s.cfg.localFallback() {
		local := source.NewFiles(s.cfg.Artifact, s.cfg.Signature)
		got, err := local.Fetch(ctx, "")
		if err == nil {
			err = s.consider(got, filepath.Base(s.cfg.Artifact))
		}
		if err != nil {
			s.log.Warn().Err(err).Str("source", local.String()).Msg("release not accepted")
		}
	}
	return revision, ok
}

// poll looks at the source once and returns the revision that was accepted last.
func (s *server) poll(ctx context.Context, known string) (revision string, ok bool) {
	if s.unkept != nil {
		s.keep(s.unkept)
	}
	got, err := s.source.Fetch(ctx, known)
	if err == nil && got.Unchanged {
		s.verifyAgain()
		s.metrics.polls.WithLabelValues("unchanged").Inc()
		return known, true
	}
	if err == nil {
		err = s.consider(got, s.cfg.fleetName())
	}
	if err != nil {
		if ctx.Err() == nil {
			s.metrics.polls.WithLabelValues("failed").Inc()
			line := s.log.Warn().Err(err).Str("source", s.source.String())
			if hinted := interface{ Hint() string }(nil); errors.As(err, &hinted) && hinted.Hint() != "" {
				line = line.Str("hint", hinted.Hint())
			}
			line.Msg("release not accepted")
		}
		return known, false
	}
	s.metrics.polls.WithLabelValues("accepted").Inc()
	return got.Revision, true
}

func (s *server) pollLoop(ctx context.Context, revision string, ok bool) {
	retry := time.Duration(0)
	if !ok {
		retry = firstRetry
	}
	for {
		wait := s.cfg.PollInterval
		if retry > 0 {
			wait = min(wait, retry)
		}
		timer := time.NewTimer(wait)
		select {
		case <-ctx.Done():
			timer.Stop()
			return
		case <-s.poked:
			timer.Stop()
		case <-timer.C:
		}
		if revision, ok = s.poll(ctx, revision); ok {
			retry = 0
		} else {
			retry = min(max(firstRetry, 2*retry), maxPollInterval)
		}
	}
}
