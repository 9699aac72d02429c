package agent

import (
	"context"
	"errors"
	"net/url"
	"sync/atomic"
	"time"

	"github.com/rs/zerolog"
	"golang.org/x/sync/semaphore"

	"nixfleet/pki"
	"nixfleet/roles/protocol"
	"nixfleet/roles/protocol/client"
)

// The same trouble, found again at every check-in, is reported again after sayAgain, and
// then half as often each time, down to once in sayLast: a control plane keeps the last
// few reports of a host only.
const (
	sayAgain = 10 * time.Second
	sayLast  = time.Hour
)

// said is the last thing that was said of some trouble.
type said struct {
	what  string
	at    time.Time
	pause time.Duration
}

// lately says whether this was said a short time ago; if not, it is now.
func (s *said) lately(what string) bool {
	switch {
	case s.what != what:
		s.what, s.pause = what, sayAgain
	case time.Since(s.at) < s.pause:
		return true
	default:
		s.pause = min(2*s.pause, sayLast)
	}
	s.at = time.Now()
	return false
}

// reporter signs reports and delivers them, in order and for as long as it takes.
type reporter struct {
	cfg      *Config
	log      zerolog.Logger
	clock    *clock
	identity *identity
	client   *client.Client
	outbox   *outbox
	given    *dispatches

	answered   atomic.Bool         // the last check-in was
	delivering *semaphore.Weighted // held over the network, so not a mutex
}

// report signs an event of a rollout, or of none, where the contract wants a signature, and
// queues it.
func (p *reporter) report(event, rollout string, details any) {
	p.reportOf(p.given.of(rollout), event, rollout, details)
}

// reportOf is report for what has a dispatch of its own, which this host did not take.
func (p *reporter) reportOf(dispatch, event, rollout string, details any) {
	of := nonEmpty(rollout)
	doc, err := protocol.SignEvidence(p.identity.signer(), p.cfg.MachineID, of, event, details)
	var lost []*protocol.ReportRequest
	if err == nil {
		lost, err = p.outbox.add(&protocol.ReportRequest{
			Hostname: p.cfg.MachineID, AgentVersion: p.cfg.Version, OccurredAt: pki.At(p.clock.now().Truncate(time.Millisecond)),
			Rollout: of, Event: event, Details: doc, Dispatch: dispatch,
		})
	}
	for _, r := range lost {
		p.log.Error().Str("event", r.Event).Str("rollout", rolloutOf(r)).Msg("report dropped: queue is full")
	}
	if err != nil {
		p.log.Error().Err(err).Str("event", event).Msg("report lost")
	}
}

// other reports what the contract has no event for.
func (p *reporter) other(kind, text string) {
	detail, err := pki.Marshal(map[string]string{"text": text})
	if err != nil {
		return
	}
	p.report(protocol.EventOther, "", protocol.Other{Kind: kind, Detail: detail})
}

// answer is what became of a report that was sent.
type answer int

const (
	taken    answer = iota
	wrong           // the control plane would call it wrong again
	absent          // the other side takes no reports, or none of this rollout
	doubtful        // it, or this host, or the control plane's own trouble
	later           // no word about this report at all
)

// answerOf tells refusals apart. Of wire.md section 3, whose order of checks this is, a
// report's own are those of its body (400, 413, 415, 422). 403 is also what all
// of a host get whose certificate names another; 404, 405 and 410 are not answers of a control
// plane that knows reports. Of the rest 401 is about the certificate, and others about
// the moment or about what stands between.
func answerOf(err error) answer {
	var refused *client.Error
	if err == nil {
		return taken
	}
	if !errors.As(err, &refused) {
		if errors.As(err, new(*url.Error)) {
			return later
		}
		return doubtful // an answer that cannot be read
	}
	switch refused.Status {
	case 400, 413, 415, 422:
		return wrong
	case 404, 405, 410:
		return absent
	case 401, 407, 408, 425, 426, 429, 502, 503, 504:
		return later
	}
	if refused.Status < 400 {
		return later
	}
	return doubtful
}

// limit is after how many refusals, and after what time at least, a report is given up
// that is not wrong by itself. Neither alone would do: an agent may start anew many
// times, and a clock may be set.
type limit struct {
	times uint32
	after time.Duration
}

var patience = map[answer]limit{absent: {6, 5 * time.Minute}, doubtful: {12, 24 * time.Hour}}

// vainAtOnce is how many reports of different rollouts are sent in vain at one delivery.
const vainAtOnce = 3

// deliver sends what is queued, in the order of each rollout. One that the control plane
// calls wrong would be wrong again, and is dropped. One that it refuses without saying
// so, while it answers check-ins, holds up only those of its own rollout, and not for
// ever: a host with reports neither reboots nor retries. A caller
// waits for another delivery no longer than ctx.
func (p *reporter) deliver(ctx context.Context) {
	if p.delivering.Acquire(ctx, 1) != nil {
		return
	}
	defer p.delivering.Release(1)
	for failed := map[string]bool{}; len(failed) < vainAtOnce; {
		r := p.outbox.next(time.Now(), failed)
		if r == nil {
			return
		}
		_, err := p.client.Report(ctx, r)
		log := p.log.With().Err(err).Str("event", r.Event).Str("rollout", rolloutOf(r)).Logger()
		switch what := answerOf(err); what {
		case taken:
			err = p.outbox.done(r)
		case wrong:
			log.Error().Msg("report refused")
			err = p.outbox.done(r)
		case later:
			log.Debug().Msg("report not delivered, will retry")
			p.outbox.vain(r, time.Now())
			return
		default:
			failed[rolloutOf(r)] = true
			err = p.refused(r, patience[what], log)
		}
		if err != nil {
			p.log.Error().Err(err).Msg("report queue not written")
			return
		}
	}
}

// refused counts a refusal and gives a report up that was refused for long enough. None
// counts while check-ins are not answered: it may be this host's certificate, or the
// control plane as a whole, that is in trouble.
func (p *reporter) refused(r *protocol.ReportRequest, upTo limit, log zerolog.Logger) error {
	if !p.answered.Load() {
		log.Debug().Msg("report not delivered, will retry")
		p.outbox.vain(r, time.Now())
		return nil
	}
	so, err := p.outbox.refuse(r, time.Now(), p.clock.now())
	if err != nil {
		return err
	}
	if so.Times >= upTo.times && p.clock.now().Sub(so.Since.Time) >= upTo.after {
		log.Error().Uint32("times", so.Times).Time("since", so.Since.Time).Msg("report dropped: refused for too long")
		return p.outbox.done(r)
	}
	level := zerolog.DebugLevel
	if so.Times == 1 {
		level = zerolog.WarnLevel
	}
	log.WithLevel(level).Msg("report refused; reports of other rollouts are still delivered")
	return nil
}

// deliverTime is what the loop of check-ins spends on reports at a time.
const deliverTime = 2 * time.Minute

// deliverWithin is deliver with a limit of time; the rest goes with the next check-in.
func (p *reporter) deliverWithin(ctx context.Context, limit time.Duration) {
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	p.deliver(ctx)
}

func nonEmpty(s string) *string {
	if s == "" {
		return nil
	}
	return &s
}
