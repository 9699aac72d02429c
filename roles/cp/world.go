package cp

import (
	"context"
	"fmt"
	"maps"
	"sync"
	"time"

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
}

func (s *server) limits() rollout.Limits {
	l := rollout.DefaultLimits()
	l.ConfirmWindow = s.cfg.ConfirmDeadline
	l.OfflineAfter = max(3*s.cfg.CheckinInterval, 3*time.Second)
	return l
}

// loadWorld reads the rollouts. Its caller holds the lock or is alone.
func (s *server) loadWorld(ctx context.Context) error {
	state := rollout.State{Empty: true}
	if s.store != nil {
		var err error
		if state, err = s.store.LoadRollouts(ctx); err != nil {
			return err
		}
	}
	s.world.World = rollout.New(state, s.limits(), time.Now())
	return nil
}

// change runs one step of the decision procedure, puts what it changed on disk,
// and then wakes whom it concerns. It returns after the commit: nobody is told
// what is not on disk. A change that cannot be stored is forgotten: the next
// step starts again from what is.
func (s *server) change(ctx context.Context, step func(*rollout.World, time.Time) rollout.Change, because ...store.Report) error {
	// A commit is not given up when the caller hangs up: the world has moved on.
	ctx = context.WithoutCancel(ctx)
	c, epoch, pending, err := s.take(ctx, step, because)
	if err != nil {
		return err
	}
	if pending != nil {
		if err := pending.Wait(ctx); err != nil {
			s.world.mu.Lock()
			s.world.stale = s.world.stale || s.world.epoch == epoch
			s.world.mu.Unlock()
			return err
		}
	}
	if !c.Empty() {
		s.published(c)
	}
	return nil
}

// take makes the step and queues what it changed.
func (s *server) take(
	ctx context.Context, step func(*rollout.World, time.Time) rollout.Change, because []store.Report,
) (c rollout.Change, epoch int, pending *store.Pending, err error) {
	s.world.mu.Lock()
	defer s.world.mu.Unlock()
	if s.world.stale {
		if err := s.reloadWorld(ctx); err != nil {
			return c, 0, nil, fmt.Errorf("load rollouts again: %w", err)
		}
	}
	c = step(s.world.World, time.Now())
	return c, s.world.epoch, s.submit(c, because...), nil
}

// submit queues the rows of a change and the reports that led to it; nil when there are none.
func (s *server) submit(c rollout.Change, because ...store.Report) *store.Pending {
	c.Wake = nil
	if s.store == nil || c.Empty() && len(because) == 0 {
		return nil
	}
	return s.store.SubmitRollout(c, because...)
}

// reloadWorld starts again from the database and the release in force. Its
// caller holds the lock, so that nothing is queued meanwhile.
func (s *server) reloadWorld(ctx context.Context) error {
	// What is queued comes to its end first.
	if err := s.store.SubmitRollout(rollout.Change{}).Wait(ctx); err != nil {
		return err
	}
	if err := s.loadWorld(ctx); err != nil {
		return err
	}
	s.world.epoch++
	if snap := s.snapshot.Load(); snap != nil {
		if pending := s.submit(s.world.Accept(snap.rel, time.Now())); pending != nil {
			if err := pending.Wait(ctx); err != nil {
				return err
			}
		}
	}
	s.world.stale = false
	s.log.Warn().Msg("rollouts loaded again after a change that was not stored")
	return nil
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

// wakeRevoked has held requests look again whose host was revoked since the last
// tick by a row that somebody inserted by hand: nobody else tells them.
func (s *server) wakeRevoked(ctx context.Context) {
	if s.store == nil {
		return
	}
	now, err := s.store.Revocations(ctx)
	if err != nil {
		s.log.Error().Err(err).Msg("revocations not read")
		return
	}
	before := s.revoked
	if s.revoked = now; maps.EqualFunc(now, before, time.Time.Equal) {
		return
	}
	s.waiters.wakeIf(func(host string) bool { return !s.revokedIn(now, host).Equal(s.revokedIn(before, host)) })
}

// warnDisplaced says once that the database's file was taken away, as when a
// backup is put in its place: a revocation inserted there would count for nobody.
func (s *server) warnDisplaced() {
	if s.store == nil || s.displaced || !s.store.Displaced() {
		return
	}
	s.displaced = true
	s.log.Error().Str("file", s.cfg.DBPath).Str("hint", "restart the control plane").Msg("database file was replaced or removed, rows inserted by hand are not seen")
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
		} else {
			s.log.Error().Err(err).Msg("tick failed")
		}
		s.wakeRevoked(ctx)
		s.warnDisplaced()
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
