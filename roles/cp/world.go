package cp

import (
	"context"
	"fmt"
	"sync"
	"time"

	"github.com/rs/zerolog"

	"nixfleet/roles/rollout"
	"nixfleet/store"
)

// world is the decision procedure with the order in which its changes reach
// the disk: a change is queued under the lock under which it was made.
type world struct {
	mu sync.Mutex
	*rollout.World
	epoch int  // grows when it is loaded anew
	stale bool // it is ahead of the disk and must be loaded anew

	limits   rollout.Limits
	log      zerolog.Logger
	store    store.Database
	snapshot *current
	waiters  *waiters
	feed     *feed
	metrics  *metrics
	took     *latencies
	kick     chan struct{} // the tick has something to do
}

// load reads the rollouts. Its caller holds the lock or is alone.
func (w *world) load(ctx context.Context) error {
	state, err := w.store.LoadRollouts(ctx)
	if err != nil {
		return err
	}
	w.World = rollout.New(state, w.limits, time.Now())
	return nil
}

// change runs one step of the decision procedure, puts what it changed on disk, and
// then wakes the hosts that it concerns. It returns after the commit: no host is told
// what is not on disk. A change that cannot be stored is forgotten: the next
// step starts again from what is.
func (w *world) change(
	ctx context.Context, step func(*rollout.World, time.Time) rollout.Change, because ...store.Report,
) error {
	// A commit is not given up when the caller hangs up: the world has moved on.
	ctx = context.WithoutCancel(ctx)
	c, epoch, pending, err := w.take(ctx, step, because)
	if err != nil {
		return err
	}
	if pending != nil {
		queued := time.Now()
		err := pending.Wait(ctx)
		w.took.commit.observe(time.Since(queued))
		if err != nil {
			w.mu.Lock()
			w.stale = w.stale || w.epoch == epoch
			w.mu.Unlock()
			return err
		}
	}
	if !c.Empty() {
		w.published(c)
	}
	return nil
}

// take makes the step and queues what it changed.
func (w *world) take(
	ctx context.Context, step func(*rollout.World, time.Time) rollout.Change, because []store.Report,
) (c rollout.Change, epoch int, pending *store.Pending, err error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.stale {
		if err := w.reload(ctx); err != nil {
			return c, 0, nil, fmt.Errorf("load rollouts again: %w", err)
		}
	}
	c = step(w.World, time.Now())
	return c, w.epoch, w.submit(c, because...), nil
}

// submit queues the rows of a change and the reports that led to it; nil when there are none.
func (w *world) submit(c rollout.Change, because ...store.Report) *store.Pending {
	c.Wake = nil
	if c.Empty() && len(because) == 0 {
		return nil
	}
	return w.store.SubmitRollout(c, because...)
}

// reload starts again from the database and the release in force. Its
// caller holds the lock, so that nothing is queued meanwhile.
func (w *world) reload(ctx context.Context) error {
	// What is queued comes to its end first.
	if err := w.store.SubmitRollout(rollout.Change{}).Wait(ctx); err != nil {
		return err
	}
	if err := w.load(ctx); err != nil {
		return err
	}
	w.epoch++
	if snap := w.snapshot.Load(); snap != nil {
		if pending := w.submit(w.Accept(snap.rel, time.Now())); pending != nil {
			if err := pending.Wait(ctx); err != nil {
				return err
			}
		}
	}
	w.stale = false
	// What was heard of hosts is forgotten; those that hold a check-in say it again now.
	w.waiters.wakeIf(func(string) bool { return true })
	w.log.Warn().Msg("a change was not stored; rollouts loaded again from the database")
	return nil
}

// published tells the waiting, after the commit.
func (w *world) published(c rollout.Change) {
	for _, host := range c.Wake {
		w.waiters.wake(host)
	}
	w.took.note(c, w.openedAt)
	for _, e := range c.Events {
		w.metrics.events.WithLabelValues(e.Kind).Inc()
	}
	if len(c.Events) > 0 {
		w.feed.announce()
	}
	w.kickTimer()
}

// look reads the world under its lock.
func look[T any](w *world, read func(*rollout.World, time.Time) T) T {
	w.mu.Lock()
	defer w.mu.Unlock()
	return read(w.World, time.Now())
}

// view is one rollout.
func (w *world) view(id string) (rollout.RolloutView, bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.Rollout(id, time.Now())
}

// openedAt is when a rollout was opened.
func (w *world) openedAt(id string) (time.Time, bool) {
	v, ok := w.view(id)
	return v.CreatedAt, ok
}

// ids are those of a rollout, the oldest first.
func (w *world) ids(id string) []string {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.IDs(id)
}

func (w *world) kickTimer() {
	select {
	case w.kick <- struct{}{}:
	default:
	}
}
