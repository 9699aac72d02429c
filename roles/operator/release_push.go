package operator

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"path/filepath"
	"slices"
	"sync/atomic"

	"golang.org/x/sync/errgroup"

	"nixfleet/roles/command"
)

// push hands every closure to the cache before anything names it.
func (r *releaser) push(ctx context.Context, d *draft) error {
	if hook := r.c.String("push-cmd"); hook != "" {
		if err := r.pushBy(ctx, hook, d.closures); err != nil {
			return command.Coded(2, err)
		}
	}
	if store := r.c.String("copy-to"); store != "" && len(d.closures) > 0 {
		r.say("copying %d closures to %s", len(d.closures), store)
		paths := slices.Compact(slices.Sorted(maps.Values(d.closures)))
		err := inTheClear(r.c.String("cache-key"), r.c.String("identity"), func(key string) error {
			return r.nix().Copy(ctx, paths, store, key)
		})
		if err != nil {
			return fmt.Errorf("copy to %s: %w", store, err)
		}
	}
	return nil
}

// pushBy runs the push hook for each host, in the order of their names. As soon as
// one fails no other is begun; what is under way comes to its own end, for what it
// uploads is wanted by the next attempt.
func (r *releaser) pushBy(ctx context.Context, hook string, closures map[string]string) error {
	names := sortedKeys(closures)
	failures := make([]error, len(names))
	var failed atomic.Bool
	var group errgroup.Group
	group.SetLimit(r.c.Int("push-jobs"))
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
			out := &lineWriter{w: r.out, prefix: "push " + name + ": "}
			if err := runHook(ctx, hook, out, "NIXFLEET_HOST="+name, "NIXFLEET_PATH="+path, "NIXFLEET_CLOSURE_HASH="+base); err != nil {
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
