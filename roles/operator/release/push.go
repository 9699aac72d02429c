package release

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"

	"golang.org/x/sync/errgroup"

	"nixfleet/nixops"
	"nixfleet/nixops/fleet"

	"nixfleet/roles/command"
)

// push hands every closure to the cache before anything names it, and makes sure that it arrived.
func (r *releaser) push(ctx context.Context, b *built) error {
	cfg := r.cfg.Push
	if r.cfg.DryRun || len(b.closures) == 0 {
		return nil
	}
	if cfg.Hook != "" {
		if err := r.pushBy(ctx, cfg.Hook, b.closures); err != nil {
			return command.Coded(2, err)
		}
	}
	delivery := nixops.Delivery{Dest: cfg.CopyTo, Unverified: cfg.Unverified, Say: r.say}
	if delivery.Dest != "" {
		r.say("copying %s to %s", command.Plural(len(b.closures), "closure"), delivery.Dest)
		delivery.Closures = slices.Compact(slices.Sorted(maps.Values(b.closures)))
	}
	if !delivery.Unverified {
		var err error
		if delivery.Systems, err = r.systems(ctx, b); err != nil {
			return err
		}
	}
	err := r.cfg.Keys.Clear(cfg.CacheKey, func(key string) error {
		delivery.KeyFile = key
		return r.nix().Deliver(ctx, delivery)
	})
	switch {
	case errors.Is(err, nixops.ErrUnsigned):
		return command.Hinted(err, "--cache-key must be a key that the hosts trust already, see docs/rotation.md; "+
			"--no-verify-cache releases anyway")
	case errors.Is(err, nixops.ErrNotFound), errors.Is(err, nixops.ErrUnreachable):
		return command.Hinted(err, "push what is missing, or make the cache answer, and release again; --no-verify-cache "+
			"releases anyway")
	}
	return err
}

// systems are what hosts will fetch and how: as their new system says and, where this machine still has it, as the
// system of the present release says. A fetcher is left out when nothing says what could be asked for it.
func (r *releaser) systems(ctx context.Context, b *built) ([]nixops.System, error) {
	previous, err := r.shelf().fleet(ctx)
	if err != nil {
		return nil, err
	}
	copied := r.cfg.Push.CopyTo != ""
	var systems []nixops.System
	for _, name := range sortedKeys(b.closures) {
		system := nixops.System{Path: b.closures[name]}
		brings, err := r.nix().FetcherOf(system.Path)
		if err != nil {
			return nil, fmt.Errorf("host %s: %w", name, err)
		}
		if brings == nil && copied {
			brings = &nixops.Fetcher{Keys: r.signer.cacheKeys}
		}
		runs, err := r.fetcherBefore(previous, name)
		if err != nil {
			return nil, fmt.Errorf("current system of host %s: %w", name, err)
		}
		for _, f := range []*nixops.Fetcher{brings, runs} {
			if f != nil && (copied || slices.ContainsFunc(f.Caches, ofTheFleet)) {
				system.Fetchers = append(system.Fetchers, *f)
			}
		}
		systems = append(systems, system)
	}
	return systems, nil
}

// ofTheFleet tells a fleet's cache from the one that every NixOS asks.
func ofTheFleet(cache string) bool {
	return strings.TrimSuffix(cache, "/") != "https://cache.nixos.org"
}

// fetcherBefore is how a host fetches as the present release has it, nil when this machine does not know.
func (r *releaser) fetcherBefore(previous *fleet.Fleet, name string) (*nixops.Fetcher, error) {
	if previous == nil || previous.Hosts[name] == nil || previous.Hosts[name].ClosureHash == nil {
		return nil, nil
	}
	return r.nix().FetcherOf("/nix/store/" + *previous.Hosts[name].ClosureHash)
}

// pushBy runs the push hook for each host, in the order of their names. As soon as
// one fails no other is begun; what is under way comes to its own end, for what it
// uploads is wanted by the next attempt.
func (r *releaser) pushBy(ctx context.Context, hook string, closures map[string]string) error {
	names := sortedKeys(closures)
	failures := make([]error, len(names))
	var failed atomic.Bool
	var group errgroup.Group
	group.SetLimit(r.cfg.Push.Jobs)
	for i, name := range names {
		group.Go(func() error {
			if failed.Load() {
				return nil
			}
			r.say("pushing %s (%d of %d)", name, i+1, len(names))
			path := closures[name]
			base := filepath.Base(path)
			if base == path {
				path = "/nix/store/" + base
			}
			out := newLineWriter(r.lines, false, "push "+name+": ")
			if err := runHook(ctx, hook, out, "NIXFLEET_HOST="+name, "NIXFLEET_PATH="+path,
				"NIXFLEET_CLOSURE_HASH="+base); err != nil {
				failures[i] = fmt.Errorf("push %s: %w", name, err)
				failed.Store(true)
			}
			return nil
		})
	}
	// Its functions give no errors; theirs are in failures, each of its host.
	_ = group.Wait()
	return errors.Join(failures...)
}
