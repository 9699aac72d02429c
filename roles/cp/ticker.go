package cp

import (
	"context"
	"errors"
	"maps"
	"sync/atomic"
	"time"

	"github.com/rs/zerolog"

	"nixfleet/roles/rollout"
	"nixfleet/store"
)

// ticker runs what is due in the world, and looks for rows that were inserted by hand.
type ticker struct {
	cfg     *Config
	log     zerolog.Logger
	store   store.Database
	world   *world
	waiters *waiters
	last    atomic.Int64 // Unix milliseconds of the last tick

	named     map[string]bool      // rows that concern no host, and that was said; the loop's own
	revoked   map[string]time.Time // by local rows, at the last tick; the loop's own
	displaced bool                 // the database's file is gone, and that was said; the loop's own
}

func newTicker(cfg *Config, db store.Database, w *world, held *waiters) *ticker {
	return &ticker{cfg: cfg, log: cfg.Log, store: db, world: w, waiters: held, named: map[string]bool{}}
}

// alive says that the ticks go on, to systemd's watchdog. A tick that waits for somebody's
// lock on the database is alive: a restart would wait as well, and know less.
func (t *ticker) alive() bool {
	return time.Since(time.UnixMilli(t.last.Load())) < 2*maxTickWait || errors.Is(t.store.Fault(), store.ErrLocked)
}

// wakeRevoked wakes held check-ins of hosts that were revoked since the last tick by a
// row inserted by hand: nothing else notices such rows.
func (t *ticker) wakeRevoked(ctx context.Context) {
	now, err := t.store.Revocations(ctx)
	if err != nil {
		t.log.Error().Err(err).Msg("revocations not read")
		return
	}
	t.nameUnmatched(now)
	before := t.revoked
	if t.revoked = now; maps.EqualFunc(now, before, time.Time.Equal) {
		return
	}
	t.waiters.wakeIf(func(host string) bool {
		names := namesOf(host, t.cfg.AgentSuffix)
		return !revokedIn(now, names).Equal(revokedIn(before, names))
	})
}

// warnDisplaced says once that another file took the place of the database, as when a
// backup is put there: a revocation inserted there would have no effect. What was only
// taken away, a write puts back.
func (t *ticker) warnDisplaced(ctx context.Context) {
	if t.displaced || !t.store.Displaced() {
		return
	}
	// Whether that succeeds is seen by what stands there then.
	_ = t.store.SubmitRollout(rollout.Change{}).Wait(ctx)
	if !errors.Is(t.store.Fault(), store.ErrDisplaced) {
		return
	}
	t.displaced = true
	t.log.Error().Str("file", t.cfg.DBPath).Str("hint", "restart the control plane").
		Msg("database file was replaced or removed; the control plane does not see rows inserted by hand")
}

// maxTickWait bounds the sleep between two ticks: the clock may be set.
const maxTickWait = 30 * time.Second

// tickLoop runs what is due: ended leases, soaks, failing probes.
func (t *ticker) loop(ctx context.Context) {
	for {
		next := time.Time{}
		err := t.world.change(ctx, func(w *rollout.World, now time.Time) (c rollout.Change) {
			c, next = w.Tick(now)
			return c
		})
		if err == nil {
			t.last.Store(time.Now().UnixMilli())
		} else {
			t.log.Error().Err(err).Msg("tick failed")
		}
		t.wakeRevoked(ctx)
		t.warnDisplaced(ctx)
		wait := maxTickWait
		if !next.IsZero() {
			wait = min(max(time.Until(next), time.Millisecond), maxTickWait)
		}
		timer := time.NewTimer(wait)
		select {
		case <-ctx.Done():
			timer.Stop()
			return
		case <-t.world.kick:
			timer.Stop()
		case <-timer.C:
		}
	}
}

// pruneLoop forgets what the database need not keep.
func (t *ticker) pruneLoop(ctx context.Context) {
	ticker := time.NewTicker(pruneInterval)
	defer ticker.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case now := <-ticker.C:
			if err := t.store.Prune(ctx, now); err != nil {
				t.log.Error().Err(err).Msg("database not pruned")
			}
		}
	}
}
