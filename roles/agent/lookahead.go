package agent

import (
	"context"
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"sync/atomic"
	"time"

	"github.com/rs/zerolog"

	"nixfleet/nixops"
	"nixfleet/nixops/fleet"
	"nixfleet/roles/agent/journal"
	"nixfleet/roles/agent/verify"
	"nixfleet/roles/protocol/client"
)

// A closure may be brought into the store before its wave starts. Which it is, is
// proven by the signed head as for a target; nothing is activated by it. Hosts
// spread their downloads by their names, so that they do not ask a cache all at once.

// ahead is a closure to be fetched ahead, and when.
type ahead struct {
	closure string
	at      time.Time
}

// lookahead brings closures into the store before their wave starts.
type lookahead struct {
	cfg      *Config
	log      zerolog.Logger
	host     nixops.Host
	dir      journal.Directory
	work     *work
	memory   *memory
	verifier *verify.Verifier
	client   *client.Client

	ahead       atomic.Pointer[ahead]
	planned     chan *ahead // the newest plan; only the loop of check-ins sends
	lookedAhead string      // head that was looked at for it
}

// spread is where in a duration a host's turn for a closure is: the same at every
// look, another for each closure, even over the hosts.
func spread(hostname, closure string, over time.Duration) time.Duration {
	sum := sha256.Sum256([]byte(hostname + "\n" + closure))
	turn := float64(binary.BigEndian.Uint64(sum[:8])>>11) / (1 << 53)
	return time.Duration(turn * float64(over))
}

// plan looks at each new head for what it means for this host.
func (l *lookahead) plan(ctx context.Context) {
	if l.cfg.PrefetchSpread == 0 || !l.verifier.Mine() || l.verifier.HeadHash() == l.lookedAhead {
		return
	}
	entry, err := l.verifier.Entry(ctx, source{l.client})
	if err != nil {
		l.log.Warn().Err(err).Msg("prefetch not planned")
		return
	}
	l.lookedAhead = l.verifier.HeadHash()
	if p := l.ahead.Load(); p != nil && p.closure == entry.TargetClosure {
		return
	}
	p := &ahead{entry.TargetClosure, time.Now().Add(spread(l.cfg.MachineID, entry.TargetClosure, l.cfg.PrefetchSpread))}
	l.ahead.Store(p)
	select {
	case <-l.planned: // an older plan that was not taken
	default:
	}
	l.planned <- p
}

// run fetches what is planned, when it is time.
func (l *lookahead) run(ctx context.Context) {
	var next *ahead
	var failures uint32
	for {
		var due <-chan time.Time
		if next != nil {
			due = time.After(time.Until(next.at))
		}
		select {
		case <-ctx.Done():
			return
		case next = <-l.planned:
			failures = 0
		case <-due:
			if err := l.fetch(ctx, next.closure); err != nil {
				l.log.Warn().Err(err).Str("closure", next.closure).Msg("fetch ahead of the wave failed")
				next = &ahead{next.closure, time.Now().Add(backoff(failures))}
				failures++
				continue
			}
			next = nil
		}
	}
}

func (l *lookahead) fetch(ctx context.Context, closure string) error {
	current, err := l.host.CurrentSystem(ctx)
	if err != nil {
		return err
	}
	switch q := l.memory.quarantine.Load(); {
	case current == closure, l.work.busy.Load():
		return nil // an activation brings its own
	case l.memory.hold.Load() != nil:
		return journal.ErrHeld
	case q != nil && q.Closure == closure && q.Failures > 0:
		return nil
	}
	space, err := l.host.Space(ctx, "")
	if err != nil {
		return err
	}
	if space.StoreFree < minStoreFree {
		return fmt.Errorf("%d MiB are left in the store: %w", space.StoreFree>>20, nixops.ErrNoSpace)
	}
	limited, cancel := context.WithTimeout(ctx, fetchLimit)
	defer cancel()
	if err := l.host.Realise(limited, closure, nil); err != nil {
		return err
	}
	l.log.Info().Str("closure", closure).Msg("closure fetched ahead of its wave")
	return l.drop(ctx, closure)
}

// drop lets go what was fetched before and is wanted by nothing any more.
func (l *lookahead) drop(ctx context.Context, keep string) error {
	// The roots first: an activation that begins meanwhile makes its own afterwards.
	roots, err := l.host.Roots(ctx)
	if err != nil {
		return err
	}
	wanted := map[string]bool{keep: true}
	if j, err := l.dir.Journal(); err != nil {
		return err
	} else if j != nil {
		wanted[j.Closure] = true
	}
	for name := range roots {
		if !fleet.ValidClosure(name) || wanted[name] {
			continue
		}
		if err := l.host.RemoveRoot(ctx, name); err != nil {
			return err
		}
	}
	return nil
}
