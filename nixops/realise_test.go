package nixops_test

import (
	"context"
	"errors"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"nixfleet/nixops"
	"nixfleet/nixops/testnix"
)

// TestRefusals runs real Nix into each way a fetch goes wrong, because what they
// mean is read from its words.
func TestRefusals(t *testing.T) {
	nix := testnix.Find(t)
	store := nix.NewStore(t)
	key := nix.NewKey(t, "cache-1")
	good := store.Build(t, testnix.Spec{Name: "nixos-system-good", Files: map[string]string{"etc/hostname": "a"}})
	other := store.Build(t, testnix.Spec{Name: "nixos-system-other", Files: map[string]string{"etc/hostname": "b"}})

	broken := func(status int, what string) func(*testing.T, *testnix.Cache) {
		return func(t *testing.T, c *testnix.Cache) {
			c.Hook(func(w http.ResponseWriter, r *http.Request) bool {
				if !strings.Contains(r.URL.Path, what) {
					return false
				}
				w.WriteHeader(status)
				return true
			})
		}
	}
	for name, c := range map[string]struct {
		spoil func(*testing.T, *testnix.Cache)
		want  error
	}{
		"good":         {nil, nil},
		"corrupt byte": {func(t *testing.T, c *testnix.Cache) { c.Corrupt(t, good) }, nixops.ErrUnsigned},
		"swapped NAR":  {func(t *testing.T, c *testnix.Cache) { c.Swap(t, good, other) }, nixops.ErrUnsigned},
		"no signature": {func(t *testing.T, c *testnix.Cache) { c.DropSignatures(t, good) }, nixops.ErrUnsigned},
		"broken NAR": {func(t *testing.T, c *testnix.Cache) {
			c.EditNAR(t, good, func([]byte) []byte { return []byte("not an archive at all") })
		}, nixops.ErrUnsigned},
		"other hash": {editNarinfo(good, "NarHash: sha256:1", "NarHash: sha256:0"), nixops.ErrUnsigned},
		"garbage": {func(t *testing.T, c *testnix.Cache) {
			c.EditNarinfo(t, good, func(string) string { return "<html>" })
		}, nixops.ErrUnsigned},
		"truncated NAR": {func(t *testing.T, c *testnix.Cache) {
			c.EditNAR(t, good, func(b []byte) []byte { return b[:len(b)/2] })
		}, nixops.ErrUnreachable},
		"NAR missing":    {func(t *testing.T, c *testnix.Cache) { os.Remove(c.NAR(t, good)) }, nixops.ErrNotFound},
		"never pushed":   {broken(http.StatusNotFound, ".narinfo"), nixops.ErrNotFound},
		"error 503":      {broken(http.StatusServiceUnavailable, ""), nixops.ErrUnreachable},
		"error 503 late": {broken(http.StatusServiceUnavailable, "/nar/"), nixops.ErrUnreachable},
		"gone":           {func(t *testing.T, c *testnix.Cache) { c.Stop() }, nixops.ErrUnreachable},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			cache := nix.NewCache(t)
			cache.Push(t, store, key, good, other)
			if c.spoil != nil {
				c.spoil(t, cache)
			}
			host, err := nixops.NewHost(nix.Config(testnix.TempDir(t), []*testnix.Cache{cache}, key))
			must(t, err)
			if err := host.Realise(t.Context(), good, nil); !errors.Is(err, c.want) || (err == nil) != (c.want == nil) {
				t.Errorf("realise: %v, want %v", err, c.want)
			}
			_, err = host.Inspect(t.Context(), good)
			if (err == nil) != (c.want == nil) {
				t.Errorf("valid afterwards: %v", err)
			}
			if c.want == nil {
				return
			}
			// Nothing is remembered: a cache that was mended is believed at once. [A20]
			mended := nix.NewCache(t)
			mended.Push(t, store, key, good)
			cache.Hook(func(w http.ResponseWriter, r *http.Request) bool {
				http.ServeFile(w, r, filepath.Join(mended.Dir, r.URL.Path))
				return true
			})
			if name != "gone" {
				must(t, host.Realise(t.Context(), good, nil))
			}
		})
	}
}

func editNarinfo(closure, old, new string) func(*testing.T, *testnix.Cache) {
	return func(t *testing.T, c *testnix.Cache) {
		c.EditNarinfo(t, closure, func(text string) string {
			if !strings.Contains(text, old) {
				// The first digit of the hash is 0 or 1.
				return strings.Replace(text, new, old, 1)
			}
			return strings.Replace(text, old, new, 1)
		})
	}
}

func TestStoreFull_A14(t *testing.T) {
	nix := testnix.Find(t)
	root := t.TempDir()
	if err := exec.Command("mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", root).Run(); err != nil {
		t.Skip("a small file system cannot be mounted here")
	}
	t.Cleanup(func() { must(t, exec.Command("umount", root).Run()) })
	store, cache, key := nix.NewStore(t), nix.NewCache(t), nix.NewKey(t, "cache-1")
	fat := store.Build(t, testnix.Spec{Name: "nixos-system-fat", Padding: 4 << 20})
	cache.Push(t, store, key, fat)
	host, err := nixops.NewHost(nix.Config(root, []*testnix.Cache{cache}, key))
	must(t, err)
	if err := host.Realise(t.Context(), fat, nil); !errors.Is(err, nixops.ErrNoSpace) {
		t.Errorf("a full store: %v", err)
	}
	space, err := host.Space(t.Context(), "")
	if err != nil || space.StoreFree > 2<<20 {
		t.Errorf("space %+v, %v", space, err)
	}
	if volatile, kind, err := nixops.Volatile(root); err != nil || !volatile || kind != "tmpfs" {
		t.Errorf("volatile: %v %s %v", volatile, kind, err)
	}
}

// TestCollectorDuringFetch_A13 collects garbage again and again while a closure
// arrives slowly. A link among the roots is not enough then, see register.
func TestCollectorDuringFetch_A13(t *testing.T) {
	nix := testnix.Find(t)
	store, cache, key := nix.NewStore(t), nix.NewCache(t), nix.NewKey(t, "cache-1")
	closure := store.Build(t, testnix.Spec{Name: "nixos-system-slow", Padding: 100 << 10})
	cache.Push(t, store, key, closure)
	cache.Hook(func(w http.ResponseWriter, r *http.Request) bool {
		if strings.HasPrefix(r.URL.Path, "/nar/") {
			time.Sleep(400 * time.Millisecond)
		}
		return false
	})
	root := testnix.TempDir(t)
	host, err := nixops.NewHost(nix.Config(root, []*testnix.Cache{cache}, key))
	must(t, err)
	done := make(chan error, 1)
	go func() { done <- host.Realise(context.Background(), closure, nil) }()
	for running := true; running; {
		select {
		case err := <-done:
			must(t, err)
			running = false
		case <-time.After(20 * time.Millisecond):
			if text, err := nix.Try("nix-store", "--store", root, "--gc"); err != nil {
				t.Errorf("collect: %v\n%s", err, text)
			}
		}
	}
	must(t, host.AddRoot(t.Context(), "current", closure))
	must(t, host.RemoveRoot(t.Context(), closure))
	nix.Run(t, "nix-store", "--store", root, "--gc")
	if _, err := host.Inspect(t.Context(), closure); err != nil {
		t.Errorf("collected: %v", err)
	}
}

// TestExistenceIsNoProof: something lies at the path, and the store does not vouch for it.
func TestExistenceIsNoProof(t *testing.T) {
	nix := testnix.Find(t)
	root := testnix.TempDir(t)
	cache := nix.NewCache(t)
	host, err := nixops.NewHost(nix.Config(root, []*testnix.Cache{cache}))
	must(t, err)
	fake := "79wqc9mdy0p3ps928658npmkbwf7km19-nixos-system-fake"
	bin := filepath.Join(root, "nix/store", fake, "bin")
	must(t, os.MkdirAll(bin, 0o755))
	must(t, os.WriteFile(filepath.Join(bin, "switch-to-configuration"), []byte("#!/bin/sh\n"), 0o755))
	if _, err := host.Inspect(t.Context(), fake); !errors.Is(err, nixops.ErrNotClosure) {
		t.Errorf("inspect: %v", err)
	}
	if err := host.SetProfile(t.Context(), fake); !errors.Is(err, nixops.ErrNotClosure) {
		t.Errorf("set profile: %v", err)
	}
	if err := host.Realise(t.Context(), fake, nil); !errors.Is(err, nixops.ErrNotFound) {
		t.Errorf("realise: %v", err)
	}
}

// TestProfileGenerations_A6: the generations of the real profile stay as they are
// when the same path is set again.
func TestProfileGenerations_A6(t *testing.T) {
	nix := testnix.Find(t)
	store, cache, key := nix.NewStore(t), nix.NewCache(t), nix.NewKey(t, "cache-1")
	root := testnix.TempDir(t)
	host, err := nixops.NewHost(nix.Config(root, []*testnix.Cache{cache}, key))
	must(t, err)
	var closures []string
	for _, name := range []string{"nixos-system-1", "nixos-system-2", "nixos-system-3"} {
		c := store.Build(t, testnix.Spec{Name: name})
		cache.Push(t, store, key, c)
		must(t, host.Realise(t.Context(), c, nil))
		must(t, host.SetProfile(t.Context(), c))
		closures = append(closures, c)
	}
	list := func() int {
		links, err := filepath.Glob(filepath.Join(root, "nix/var/nix/profiles/system-*-link"))
		must(t, err)
		return len(links)
	}
	for range 3 {
		must(t, host.SetProfile(t.Context(), closures[1]))
	}
	if n := list(); n != 4 {
		t.Errorf("%d generations, want the three and one that returns", n)
	}
	if now, err := host.Profile(t.Context()); err != nil || now != closures[1] {
		t.Errorf("profile %q, %v", now, err)
	}
}
