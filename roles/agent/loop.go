package agent

import (
	"context"
	"errors"
	"net/http"
	"time"

	"github.com/rs/zerolog"

	"nixfleet/roles/protocol/client"
)

const (
	holdTime = 300 * time.Second
	// firstHold is for a check-in after a failure or an enrolment: its answer, which says that
	// all is well again, is shown at once, and still tells whether this control plane holds.
	firstHold = time.Second
	// doubtHold is for a check-in after an answer that did not verify: that it is over is shown
	// soon, and a control plane that sends nothing else is not asked much more often.
	doubtHold = 15 * time.Second
	// floorPause is the shortest time between two check-ins.
	floorPause = time.Second
)

// loop checks in for ever, and does between two check-ins what is due.
type loop struct {
	cfg       *Config
	log       zerolog.Logger
	status    *statusFile
	work      *work
	reporter  *reporter
	contact   *contact
	enroller  *enroller
	answers   *answers
	activator *activator
	settler   *settler
	sleeper   *sleeper
	metrics   *metricsFile
}

// stallLimit is how long the loop may be silent before systemd restarts us.
const stallLimit = holdTime + 5*time.Minute

// alive says that the loop goes on, to systemd's watchdog.
func (l *loop) alive() bool { return time.Since(l.status.lastTurn()) < stallLimit }

// run checks in until ctx ends.
func (l *loop) run(ctx context.Context) {
	failures := 0
	for ctx.Err() == nil {
		l.status.turn()
		if !l.work.busy.Load() { // a worker settles its own, or goes on from it
			l.sleeper.undoOverslept(ctx)
			l.settler.settle(ctx)
		}
		l.activator.takeMissed(ctx)
		l.reporter.deliverWithin(ctx, deliverTime)
		l.enroller.renew(ctx)
		pause, err := l.turn(ctx)
		switch {
		case ctx.Err() != nil:
			return
		case errors.Is(err, errLocalChange):
			pause = floorPause
		case err != nil:
			failures++
			pause = l.failed(err, failures)
			if err := l.enroller.enrolAnew(ctx, err, failures); err != nil && ctx.Err() == nil {
				l.log.Error().Err(err).Msg("enrolment with the token failed")
			}
		default:
			failures = 0
		}
		l.metrics.write()
		if l.status.rest(ctx, pause) != nil {
			return
		}
	}
}

// errLocalChange means that a held check-in was given up to send a newer one.
var errLocalChange = errors.New("local change")

// turn is one check-in and what follows from its answer.
func (l *loop) turn(ctx context.Context) (pause time.Duration, err error) {
	hold := holdTime
	switch {
	case !l.reporter.outbox.empty():
		hold = 0 // what could not be delivered just now is not to wait for so long
	case l.status.overdue.Load():
		hold = firstHold
	case l.answers.doubtful:
		hold = doubtHold
	}
	answer, sent, trial := l.enroller.checkinTrial(ctx)
	if answer == nil {
		answer, sent, err = l.contact.checkin(ctx, hold)
		l.enroller.judgeTrial(trial, err)
		if err != nil {
			answer, sent, err = l.enroller.checkinPrevious(ctx, err)
		}
	}
	if errors.Is(err, errUnproven) {
		return floorPause, nil
	}
	if err != nil {
		return 0, err
	}
	l.answers.handle(ctx, answer, sent)
	if answer.Held {
		return floorPause, nil
	}
	next := min(time.Duration(answer.NextCheckinSecs)*time.Second, maxContact)
	next = max(min(next, l.cfg.PollInterval), floorPause)
	if answer.Head == nil {
		return next, nil // a v1 control plane counts on the interval
	}
	return next/2 + l.cfg.Jitter(next/2+1), nil
}

// failed is how long to wait after a failure: full jitter over a doubling
// time, and what the control plane asks for, within 15 minutes.
func (l *loop) failed(err error, failures int) time.Duration {
	limit := min(l.cfg.PollInterval<<min(failures-1, 3), maxContact)
	pause := max(floorPause, l.cfg.Jitter(limit)+limit/10)
	var refused *client.Error
	if errors.As(err, &refused) && refused.RetryAfter > 0 {
		pause = min(refused.RetryAfter, maxContact)/2 + l.cfg.Jitter(min(refused.RetryAfter, maxContact)/2+1)
	}
	l.reporter.answered.Store(false)
	l.status.overdue.Store(true)
	if refused != nil && refused.Status == http.StatusRequestEntityTooLarge {
		l.contact.brevity.Store(min(l.contact.brevity.Load()+1, briefest))
	}
	l.log.Warn().Err(err).Int("failures", failures).Dur("retry_in", pause).Msg("check-in failed")
	l.status.note(func(s *status) { s.ContactError = err.Error() })
	l.answers.reportStale()
	return pause
}
