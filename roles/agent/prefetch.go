package agent

import (
	"context"
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"time"

	"nixfleet/nixops"
	"nixfleet/nixops/fleet"
	"nixfleet/roles/agent/journal"
)

// A closure may be brought into the store before its wave starts. Which it is, is
// proven by the signed head as for a target; nothing is activated by it. Hosts
// spread their downloads by their names, so that they do not ask a cache all at once.

// ahead is a closure to be fetched ahead, and when.
type ahead struct {
	closure string
	at      time.Time
}

// spread is where in a duration a host's turn for a closure is: the same at every
// look, another for each closure, even over the hosts.
func spread(hostname, closure string, over time.Duration) time.Duration {
	sum := sha256.Sum256([]byte(hostname + "\n" + closure))
	turn := float64(binary.BigEndian.Uint64(sum[:8])>>11) / (1 << 53)
	return time.Duration(turn * float64(over))
}

// planAhead looks at each new head for what it means for this host.
func (a *agent) planAhead(ctx context.Context) {
	if a.cfg.PrefetchSpread == 0 || !a.verifier.Mine() || a.verifier.HeadHash() == a.lookedAhead {
		return
	}
	entry, err := a.verifier.Entry(ctx, source{a.client})
	if err != nil {
		a.log.Warn().Err(err).Msg("nothing fetched ahead")
		return
	}
	a.lookedAhead = a.verifier.HeadHash()
	if p := a.ahead.get(); p != nil && p.closure == entry.TargetClosure {
		return
	}
	p := &ahead{entry.TargetClosure, time.Now().Add(spread(a.cfg.MachineID, entry.TargetClosure, a.cfg.PrefetchSpread))}
	a.ahead.set(p)
	select {
	case <-a.planned: // an older plan that nobody took
	default:
	}
	a.planned <- p
}

// aheadLoop fetches what is planned, when it is time.
func (a *agent) aheadLoop(ctx context.Context) {
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
		case next = <-a.planned:
			failures = 0
		case <-due:
			if err := a.fetchAhead(ctx, next.closure); err != nil {
				a.log.Warn().Err(err).Str("closure", next.closure).Msg("not fetched ahead")
				next = &ahead{next.closure, time.Now().Add(backoff(failures))}
				failures++
				continue
			}
			next = nil
		}
	}
}

func (a *agent) fetchAhead(ctx context.Context, closure string) error {
	current, err := a.host.CurrentSystem(ctx)
	if err != nil {
		return err
	}
	switch q := a.quarantine.get(); {
	case current == closure, a.busy.get():
		return nil // an activation brings its own
	case a.hold.get() != nil:
		return journal.ErrHeld
	case q != nil && q.Closure == closure && q.Failures > 0:
		return nil
	}
	space, err := a.host.Space(ctx)
	if err != nil {
		return err
	}
	if space.StoreFree < minStoreFree {
		return fmt.Errorf("%d MiB are left in the store: %w", space.StoreFree>>20, nixops.ErrNoSpace)
	}
	limited, cancel := context.WithTimeout(ctx, fetchLimit)
	defer cancel()
	if err := a.host.Realise(limited, closure, nil); err != nil {
		return err
	}
	a.log.Info().Str("closure", closure).Msg("fetched ahead")
	return a.dropAhead(ctx, closure)
}

// dropAhead lets go what was fetched before and is wanted by nothing any more.
func (a *agent) dropAhead(ctx context.Context, keep string) error {
	// The roots first: an activation that begins meanwhile makes its own afterwards.
	roots, err := a.host.Roots(ctx)
	if err != nil {
		return err
	}
	wanted := map[string]bool{keep: true}
	if j, err := a.dir.Journal(); err != nil {
		return err
	} else if j != nil {
		wanted[j.Closure] = true
	}
	for name := range roots {
		if !fleet.ValidClosure(name) || wanted[name] {
			continue
		}
		if err := a.host.RemoveRoot(ctx, name); err != nil {
			return err
		}
	}
	return nil
}
