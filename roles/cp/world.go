package cp

import (
	"context"
	"sync"
	"time"

	"nixfleet/nixops/fleet"
	"nixfleet/roles/rollout"
	"nixfleet/store"
)

// world is the decision procedure with the order in which its changes reach
// the disk: a change is queued under the lock under which it was made.
type world struct {
	mu sync.Mutex
	*rollout.World
}

func (s *server) limits() rollout.Limits {
	l := rollout.DefaultLimits()
	l.ConfirmWindow = s.cfg.ConfirmDeadline
	l.OfflineAfter = max(3*s.cfg.CheckinInterval, 3*time.Second)
	return l
}

// loadWorld reads the rollouts and, when there is a snapshot, its release.
func (s *server) loadWorld(ctx context.Context) error {
	state := rollout.State{Empty: true}
	if s.store != nil {
		var err error
		if state, err = s.store.LoadRollouts(ctx); err != nil {
			return err
		}
	}
	s.world.mu.Lock()
	s.world.World = rollout.New(state, s.limits(), time.Now())
	s.world.mu.Unlock()
	return nil
}

// change runs one step of the decision procedure, puts what it changed on disk,
// and then wakes whom it concerns. It returns after the commit: nobody is told
// what is not on disk. A change that cannot be stored is forgotten, by starting
// again from what is.
func (s *server) change(ctx context.Context, step func(*rollout.World, time.Time) rollout.Change) error {
	s.world.mu.Lock()
	c := step(s.world.World, time.Now())
	if c.Empty() {
		s.world.mu.Unlock()
		return nil
	}
	var pending *store.Pending
	if s.store != nil {
		pending = s.store.SubmitRollout(c)
	}
	s.world.mu.Unlock()
	if pending != nil {
		// The commit is not given up when the caller hangs up: the world has moved on.
		if err := pending.Wait(context.WithoutCancel(ctx)); err != nil {
			s.log.Error().Err(err).Msg("rollout change not stored")
			s.reloadWorld()
			return err
		}
	}
	s.published(c)
	return nil
}

// reloadWorld starts again from the database and the release in force.
func (s *server) reloadWorld() {
	if err := s.loadWorld(context.Background()); err != nil {
		s.log.Error().Err(err).Msg("rollouts not reloaded")
		return
	}
	if snap := s.snapshot.Load(); snap != nil {
		s.world.mu.Lock()
		s.world.Accept(snap.rel, time.Now())
		s.world.mu.Unlock()
	}
}

// published tells the waiting, after the commit.
func (s *server) published(c rollout.Change) {
	for _, host := range c.Wake {
		s.waiters.wake(host)
	}
	for _, e := range c.Events {
		s.metrics.events.WithLabelValues(e.Kind).Inc()
	}
	if len(c.Events) > 0 {
		s.feed.announce()
	}
	s.kickTimer()
}

func (s *server) acceptInWorld(rel *fleet.Release) error {
	return s.change(context.Background(), func(w *rollout.World, now time.Time) rollout.Change { return w.Accept(rel, now) })
}

// look reads the world under its lock.
func look[T any](s *server, read func(*rollout.World, time.Time) T) T {
	s.world.mu.Lock()
	defer s.world.mu.Unlock()
	return read(s.world.World, time.Now())
}

func (s *server) kickTimer() {
	select {
	case s.kick <- struct{}{}:
	default:
	}
}

// maxTickWait bounds the sleep between two ticks: the clock may be set.
const maxTickWait = 30 * time.Second

// tickLoop runs what is due: ended leases, soaks, failing probes.
func (s *server) tickLoop(ctx context.Context) {
	for {
		next := time.Time{}
		err := s.change(ctx, func(w *rollout.World, now time.Time) (c rollout.Change) {
			c, next = w.Tick(now)
			return c
		})
		if err == nil {
			s.lastTick.Store(time.Now().UnixMilli())
		}
		wait := maxTickWait
		if !next.IsZero() {
			wait = min(max(time.Until(next), time.Millisecond), maxTickWait)
		}
		timer := time.NewTimer(wait)
		select {
		case <-ctx.Done():
			timer.Stop()
			return
		case <-s.kick:
			timer.Stop()
		case <-timer.C:
		}
	}
}
