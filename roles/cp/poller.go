package cp

import (
	"context"
	"path/filepath"
	"runtime/debug"
	"time"

	"nixfleet/roles/command"
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
func (f *inForce) prime(ctx context.Context) (revision string, ok bool) {
	f.restore()
	patience := primeTimeout
	if f.snapshot.Load() != nil {
		patience = restoredTimeout
	}
	first, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	if revision, ok = f.poll(first, ""); !ok && first.Err() != nil && ctx.Err() == nil {
		f.log.Warn().Str("source", f.source.String()).Msg("source does not answer")
	}
	if f.snapshot.Load() == nil && f.cfg.Artifact != "" && f.cfg.localFallback() {
		local := source.NewFiles(f.cfg.Artifact, f.cfg.Signature)
		got, err := local.Fetch(ctx, "")
		if err == nil {
			err = f.consider(got, filepath.Base(f.cfg.Artifact))
		}
		if err != nil {
			f.log.Warn().Err(err).Str("source", local.String()).Msg("release not accepted")
		}
	}
	return revision, ok
}

// poll looks at the source once and returns the revision that was accepted last.
func (f *inForce) poll(ctx context.Context, known string) (revision string, ok bool) {
	if f.unkept != nil {
		f.keep(f.unkept)
	}
	got, err := f.source.Fetch(ctx, known)
	if err == nil && got.Unchanged {
		f.verifyAgain()
		f.answered.Store(time.Now().Unix())
		f.failing.Store(0)
		f.metrics.polls.WithLabelValues("unchanged").Inc()
		return known, true
	}
	if err == nil {
		err = f.consider(got, f.cfg.fleetName())
		// What was read to judge it is given back, whatever the forge had put there.
		defer debug.FreeOSMemory()
	}
	if err != nil {
		f.failing.CompareAndSwap(0, time.Now().Unix())
		if ctx.Err() == nil {
			f.metrics.polls.WithLabelValues("failed").Inc()
			line := f.log.Warn().Err(err).Str("source", f.source.String())
			if hint := command.HintOf(err); hint != "" {
				line = line.Str("hint", hint)
			}
			line.Msg("release not accepted")
		}
		return known, false
	}
	f.failing.Store(0)
	f.answered.Store(time.Now().Unix())
	f.metrics.polls.WithLabelValues("accepted").Inc()
	return got.Revision, true
}

func (f *inForce) pollLoop(ctx context.Context, revision string, ok bool) {
	retry := time.Duration(0)
	if !ok {
		retry = firstRetry
	}
	for {
		wait := f.cfg.PollInterval
		if retry > 0 {
			wait = min(wait, retry)
		}
		timer := time.NewTimer(wait)
		select {
		case <-ctx.Done():
			timer.Stop()
			return
		case <-f.poked:
			timer.Stop()
		case <-timer.C:
		}
		if revision, ok = f.poll(ctx, revision); ok {
			retry = 0
		} else {
			retry = min(max(firstRetry, 2*retry), maxPollInterval)
		}
	}
}
