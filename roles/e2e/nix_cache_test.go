package e2e

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"nixfleet/nixops"
	"nixfleet/nixops/testnix"
	"nixfleet/pki"
)

// TestNixReleaseIntoACacheThatLost releases into a cache over http that lost everything, and then rotates its key as
// docs/rotation.md says. Nix on the CI machine remembers what the cache answered all the while.
func TestNixReleaseIntoACacheThatLost(t *testing.T) {
	t.Parallel()
	f := newNixFleet(t, map[string]string{"web-1": "stable"})
	f.cache.TakeUploads(true)
	push := func(key string) []string { return []string{"--copy-to", f.cache.URL, "--cache-key", f.key(key)} }
	trusts := func(lines ...string) testnix.Key { return testnix.Key{Public: strings.Join(lines, " ")} }
	// newHost is one that was installed today and trusts one key.
	newHost := func(key testnix.Key) error {
		host, err := nixops.NewHost(f.nix.Config(testnix.TempDir(t), []*testnix.Cache{f.cache}, key))
		if err != nil {
			t.Fatal(err)
		}
		return host.Realise(t.Context(), f.declared("web-1"), nil)
	}
	first := trusts(f.cacheKeys()...)
	f.edit("one", "web-1")
	f.release(push("cache.key")...)
	f.startControlPlane()

	f.cache.Empty(t)
	if err := newHost(first); err == nil {
		t.Fatal("the cache has lost nothing")
	}
	f.release(push("cache.key")...)
	f.startAgent(f.hosts["web-1"])
	f.converged("web-1")

	// A hook that pushes nothing, and a copy that is not all of it, are found before anything is signed.
	f.cache.Empty(t)
	f.edit("two", "web-1")
	f.release(push("cache.key")...)
	f.converged("web-1")

	// A key that no host trusts yet signs nothing that hosts could fetch.
	second := f.nix.NewKey(t, "cache."+nixSuffix+"-2")
	data, err := os.ReadFile(second.SecretFile)
	if err != nil {
		t.Fatal(err)
	}
	f.write(f.key("cache-2.key"), string(data), 0o600)
	f.edit("three", "web-1")
	f.refused("trusts no such key", push("cache-2.key")...)
	// The trust file is what stands in the repository: with the second key beside the first all goes on.
	f.trustAlso(second.Public)
	f.release(push("cache.key")...)
	f.release(push("cache-2.key")...)
	for _, key := range []testnix.Key{first, second} {
		if err := newHost(key); err != nil {
			t.Errorf("a host that trusts %s alone: %v", key.Public, err)
		}
	}
	f.converged("web-1")
}

// cacheKeys are those of the trust file.
func (f *nixFleet) cacheKeys() []string {
	f.t.Helper()
	trust, _, err := pki.LoadTrust(f.key("trust.json"))
	if err != nil {
		f.t.Fatal(err)
	}
	return trust.CacheKeys
}

// trustAlso adds a cache's key to the trust file.
func (f *nixFleet) trustAlso(public string) {
	f.t.Helper()
	text, err := os.ReadFile(f.key("trust.json"))
	if err != nil {
		f.t.Fatal(err)
	}
	old := `"` + f.cacheKeys()[0] + `"`
	f.write(filepath.Join(f.key("trust.json")), strings.Replace(string(text), old, old+`,"`+public+`"`, 1), 0o644)
	if len(f.cacheKeys()) != 2 {
		f.t.Fatalf("the trust file has the keys %v", f.cacheKeys())
	}
}
