package notify

import (
	"context"
	"sync"
	"time"

	"github.com/rs/zerolog"
)

// Receiver is told one notice after the other.
type Receiver interface {
	// Name is the receiver's in the book, in logs and in metrics.
	Name() string
	// Deliver tells it. An error means that it is tried again.
	Deliver(ctx context.Context, n Notice) error
}

// deliverTimeout bounds one delivery.
const deliverTimeout = 20 * time.Second

// Try tells a receiver once that somebody asked for a test.
func Try(ctx context.Context, r Receiver, now time.Time) error {
	ctx, cancel := context.WithTimeout(ctx, deliverTimeout)
	defer cancel()
	return r.Deliver(ctx, Test(now))
}

// repeatEvery is how often an Alertmanager is told what holds: it forgets what it is not told again.
const repeatEvery = time.Minute

// Teller delivers what the book holds.
type Teller struct {
	Book      *Book
	Receivers []Receiver
	Alerts    *Alertmanager // nil for none
	Log       zerolog.Logger
}

// Run delivers until ctx ends. Each receiver has its own pace: one that is down holds up nobody.
func (t *Teller) Run(ctx context.Context) {
	var all sync.WaitGroup
	woken := make([]chan struct{}, 0, len(t.Receivers)+1)
	start := func(loop func(context.Context, <-chan struct{})) {
		more := make(chan struct{}, 1)
		woken = append(woken, more)
		all.Go(func() { loop(ctx, more) })
	}
	for _, r := range t.Receivers {
		start(func(ctx context.Context, more <-chan struct{}) { t.serve(ctx, r, more) })
	}
	if t.Alerts != nil {
		start(t.repeat)
	}
	for {
		select {
		case <-ctx.Done():
			all.Wait()
			return
		case <-t.Book.more:
			for _, more := range woken {
				select {
				case more <- struct{}{}:
				default:
				}
			}
		}
	}
}

// rest waits until there is more, d has passed or ctx has ended.
func rest(ctx context.Context, more <-chan struct{}, d time.Duration) {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-ctx.Done():
	case <-more:
	case <-timer.C:
	}
}

// serve tells one receiver what waits for it.
func (t *Teller) serve(ctx context.Context, r Receiver, more <-chan struct{}) {
	for ctx.Err() == nil {
		next, ok := t.Book.due(r.Name())
		if !ok {
			rest(ctx, more, repeatEvery)
			continue
		}
		if wait := time.Until(next.Due); wait > 0 {
			rest(ctx, more, min(wait, repeatEvery))
			continue
		}
		bounded, cancel := context.WithTimeout(ctx, deliverTimeout)
		err := r.Deliver(bounded, next.Notice)
		cancel()
		if err != nil && ctx.Err() != nil {
			return // we stop: it was not its fault
		}
		if err != nil {
			t.Log.Warn().Err(err).Str("receiver", r.Name()).Str("notice", next.Notice.ID).
				Str("kind", next.Notice.Kind).Int("attempts", next.Attempts+1).Msg("notification not delivered")
		}
		if err := t.Book.tried(r.Name(), next.Notice.ID, err, time.Now()); err != nil {
			t.Log.Error().Err(err).Msg("notifications not stored")
		}
	}
}

// repeat tells the Alertmanager again and again what holds.
func (t *Teller) repeat(ctx context.Context, more <-chan struct{}) {
	for ctx.Err() == nil {
		now := time.Now()
		bounded, cancel := context.WithTimeout(ctx, deliverTimeout)
		err := t.Alerts.tell(bounded, t.Book.holding(now), now)
		cancel()
		outcome := outcomeDelivered
		if err != nil {
			outcome = outcomeFailed
		}
		if ctx.Err() == nil {
			t.Book.ended(t.Alerts.Name(), outcome)
		}
		if err != nil && ctx.Err() == nil {
			t.Log.Warn().Err(err).Str("receiver", t.Alerts.Name()).Msg("alerts not delivered")
		}
		rest(ctx, more, repeatEvery)
	}
}
