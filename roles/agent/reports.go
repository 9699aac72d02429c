package agent

import (
	"context"
	"errors"
	"io/fs"
	"sync"
	"time"

	"nixfleet/pki"
	"nixfleet/roles/protocol"
)

const (
	reportsFile = "reports.json"
	// maxReports bounds the queue; the oldest give way.
	maxReports = 64
)

// outbox keeps reports on disk until the control plane has them.
type outbox struct {
	dir directory

	mu    sync.Mutex
	queue []protocol.ReportRequest
}

type outboxFile struct {
	Reports []protocol.ReportRequest `json:"reports" shape:"R"`
}

func openOutbox(dir directory) (*outbox, error) {
	o := &outbox{dir: dir}
	var f outboxFile
	switch err := dir.read(reportsFile, &f); {
	case err == nil:
		o.queue = f.Reports
	case errors.Is(err, errUnfit):
		// Reports are worth less than a start of the agent.
		_, err := dir.setAside(reportsFile)
		return o, err
	case !errors.Is(err, fs.ErrNotExist):
		return nil, err
	}
	return o, nil
}

func (o *outbox) add(r protocol.ReportRequest) error {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.queue = append(o.queue, r)
	if over := len(o.queue) - maxReports; over > 0 {
		o.queue = o.queue[over:]
	}
	return o.dir.write(reportsFile, outboxFile{o.queue})
}

// waiting: there is something that the control plane does not know yet.
func (o *outbox) waiting() bool {
	o.mu.Lock()
	defer o.mu.Unlock()
	return len(o.queue) > 0
}

func (o *outbox) first() (protocol.ReportRequest, bool) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if len(o.queue) == 0 {
		return protocol.ReportRequest{}, false
	}
	return o.queue[0], true
}

func (o *outbox) sent() error {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.queue = o.queue[1:]
	if len(o.queue) == 0 {
		return o.dir.remove(reportsFile)
	}
	return o.dir.write(reportsFile, outboxFile{o.queue})
}

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

// report signs an event, where the contract wants it, and queues it.
func (a *agent) report(event string, rollout *string, details any) {
	doc, err := protocol.SignEvidence(a.identity.host, a.cfg.MachineID, rollout, event, details)
	if err == nil {
		err = a.outbox.add(protocol.ReportRequest{
			Hostname: a.cfg.MachineID, AgentVersion: a.cfg.Version, OccurredAt: pki.At(a.now().Truncate(time.Millisecond)),
			Rollout: rollout, Event: event, Details: doc,
		})
	}
	if err != nil {
		a.log.Error().Err(err).Str("event", event).Msg("report lost")
	}
}

// other reports what the contract has no event for.
func (a *agent) other(kind, text string) {
	detail, err := pki.Marshal(map[string]string{"text": text})
	if err != nil {
		return
	}
	a.report(protocol.EventOther, nil, protocol.Other{Kind: kind, Detail: detail})
}

// staleReport is when a report that the control plane still answers with a failure is
// given up: it holds up the others, and a host with reports neither reboots nor retries.
const staleReport = 24 * time.Hour

// deliver sends what is queued, in order. One that the control plane calls
// wrong would be wrong again, and is dropped. Who waits for another delivery
// waits no longer than ctx.
func (a *agent) deliver(ctx context.Context) {
	if a.delivering.Acquire(ctx, 1) != nil {
		return
	}
	defer a.delivering.Release(1)
	for {
		r, ok := a.outbox.first()
		if !ok {
			return
		}
		if _, err := a.client.Report(ctx, &r); err != nil {
			var refused *protocol.Error
			wrong := errors.As(err, &refused) && (refused.Status == 400 || refused.Status == 413 || refused.Status == 422)
			old := refused != nil && refused.Status == 500 && a.now().Sub(r.OccurredAt.Time) > staleReport
			if !wrong && !old {
				a.log.Debug().Err(err).Str("event", r.Event).Msg("report waits")
				return
			}
			a.log.Error().Err(err).Str("event", r.Event).Msg("report refused")
		}
		if err := a.outbox.sent(); err != nil {
			a.log.Error().Err(err).Msg("report queue not written")
			return
		}
	}
}

// deliverTime is what the loop of check-ins spends on reports at a time.
const deliverTime = 2 * time.Minute

// deliverWithin is deliver for who has no time to lose; the rest goes with the
// next check-in.
func (a *agent) deliverWithin(ctx context.Context, limit time.Duration) {
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	a.deliver(ctx)
}
