package nixops_test

import (
	"errors"
	"os"
	"path/filepath"
	"testing"

	"nixfleet/nixops"
	"nixfleet/nixops/testnix"
)

// A power cut after a download leaves emptied or damaged files in a store that calls their
// paths valid. They are found by their contents and fetched again (A14).
func TestDamagedPathsAreFetchedAgain(t *testing.T) {
	nix := testnix.Find(t)
	store, cache, key := nix.NewStore(t), nix.NewCache(t), nix.NewKey(t, "cache-1")
	closure := store.Build(t, testnix.Spec{Name: "nixos-system-damaged", Files: map[string]string{"etc/hostname": "a"}})
	cache.Push(t, store, key, closure)
	root := testnix.TempDir(t)
	host, err := nixops.NewHost(nix.Config(root, []*testnix.Cache{cache}, key))
	must(t, err)
	must(t, host.Realise(t.Context(), closure, nil))
	must(t, host.Realise(t.Context(), closure, nil, nixops.Verified)) // all is well

	file := root + "/nix/store/" + closure + "/etc/hostname"
	if real, err := filepath.EvalSymlinks(file); err == nil {
		file = real
	}
	damage := func() {
		must(t, os.Chmod(filepath.Dir(file), 0o755))
		must(t, os.Chmod(file, 0o644))
		must(t, os.Truncate(file, 0))
	}
	damage()
	must(t, host.Realise(t.Context(), closure, nil)) // nobody looks at the contents
	if err := host.Realise(t.Context(), closure, nil, nixops.Verified); !errors.Is(err, nixops.ErrRepaired) {
		t.Errorf("damaged: %v", err)
	}
	if text, err := os.ReadFile(file); err != nil || string(text) != "a" {
		t.Errorf("afterwards: %q, %v", text, err)
	}
	must(t, host.Realise(t.Context(), closure, nil, nixops.Verified))

	damage()
	cache.Stop()
	if err := host.Realise(t.Context(), closure, nil, nixops.Verified); err == nil || errors.Is(err, nixops.ErrRepaired) {
		t.Errorf("damaged, and the cache is away: %v", err)
	}
}
