package nixops_test

import (
	"errors"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	"nixfleet/nixops"
	"nixfleet/nixops/testnix"
)

// delivering is a CI with a cache that takes uploads over http.
type delivering struct {
	ci    nixops.CI
	nix   testnix.Nix
	store *testnix.Store
	cache *testnix.Cache

	mu   sync.Mutex
	said []string
}

func newDelivering(t *testing.T) *delivering {
	nix := testnix.Find(t)
	d := &delivering{nix: nix, store: nix.NewStore(t), cache: nix.NewCache(t)}
	d.ci = nixops.CI{Nix: nix.Bin(), NixConfDir: nix.ConfDir(), Store: d.store.Dir}
	// What Nix remembers of caches is to last from one delivery to the next.
	t.Setenv("XDG_CACHE_HOME", t.TempDir())
	d.cache.TakeUploads(true)
	return d
}

func (d *delivering) delivery(key testnix.Key, trusted []testnix.Key, closures ...string) nixops.Delivery {
	var by nixops.Fetcher
	for _, k := range trusted {
		by.Keys = append(by.Keys, k.Public)
	}
	out := nixops.Delivery{Dest: d.cache.URL, KeyFile: key.SecretFile, Say: func(format string, args ...any) {
		d.mu.Lock()
		defer d.mu.Unlock()
		d.said = append(d.said, fmt.Sprintf(format, args...))
	}}
	for _, c := range closures {
		out.Closures = append(out.Closures, "/nix/store/"+c)
		out.Systems = append(out.Systems, nixops.System{Path: "/nix/store/" + c, Fetchers: []nixops.Fetcher{by}})
	}
	return out
}

// realises says whether a new host that trusts these keys can have the closure.
func (d *delivering) realises(t *testing.T, closure string, trusted ...testnix.Key) error {
	t.Helper()
	host, err := nixops.NewHost(d.nix.Config(testnix.TempDir(t), []*testnix.Cache{d.cache}, trusted...))
	must(t, err)
	return host.Realise(t.Context(), closure, nil)
}

func (d *delivering) heard(words string) bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	return slices.ContainsFunc(d.said, func(line string) bool { return strings.Contains(line, words) })
}

// sharing are two systems that have a path in common.
func (d *delivering) sharing(t *testing.T) (a, b, common string) {
	common = d.store.Build(t, testnix.Spec{Name: "common"})
	part := map[string]string{"part": common}
	a = d.store.Build(t, testnix.Spec{Name: "nixos-system-a", Specialisations: part})
	b = d.store.Build(t, testnix.Spec{Name: "nixos-system-b", Specialisations: part})
	return a, b, common
}

// TestACacheThatWasEmptiedIsFilledAgain_C25: Nix believes for a month that the cache still has everything.
func TestACacheThatWasEmptiedIsFilledAgain_C25(t *testing.T) {
	d := newDelivering(t)
	a, b, _ := d.sharing(t)
	key := d.nix.NewKey(t, "cache-1")
	delivery := d.delivery(key, []testnix.Key{key}, a, b)
	must(t, d.ci.Deliver(t.Context(), delivery))
	d.cache.Empty(t)
	must(t, d.ci.Deliver(t.Context(), delivery))
	if err := d.realises(t, a, key); err != nil {
		t.Errorf("after the cache was filled again: %v", err)
	}
}

// TestANewKeyReachesWhatTheCacheHas_C25: nix copy leaves alone what the destination has.
func TestANewKeyReachesWhatTheCacheHas_C25(t *testing.T) {
	d := newDelivering(t)
	a, _, _ := d.sharing(t)
	first, second := d.nix.NewKey(t, "cache-1"), d.nix.NewKey(t, "cache-2")
	must(t, d.ci.Deliver(t.Context(), d.delivery(first, []testnix.Key{first}, a)))
	// Hosts still trust the first key; the signatures of the second come beside.
	must(t, d.ci.Deliver(t.Context(), d.delivery(second, []testnix.Key{first, second}, a)))
	for _, k := range []testnix.Key{first, second} {
		if err := d.realises(t, a, k); err != nil {
			t.Errorf("a host that trusts %s: %v", k.Public, err)
		}
	}
	before := len(d.said)
	must(t, d.ci.Deliver(t.Context(), d.delivery(second, []testnix.Key{second}, a)))
	if slices.ContainsFunc(d.said[before:], func(l string) bool { return strings.Contains(l, "adding signatures") }) {
		t.Errorf("signed again: %q", d.said[before:])
	}
}

// TestACacheThatTakesNoSignatures is told of, and is fatal only where hosts accept none that it has.
func TestACacheThatTakesNoSignatures(t *testing.T) {
	d := newDelivering(t)
	a, _, _ := d.sharing(t)
	first, second := d.nix.NewKey(t, "cache-1"), d.nix.NewKey(t, "cache-2")
	must(t, d.ci.Deliver(t.Context(), d.delivery(first, []testnix.Key{first}, a)))
	d.cache.TakeUploads(false)
	must(t, d.ci.Deliver(t.Context(), d.delivery(second, []testnix.Key{first}, a)))
	if !d.heard("does not accept signatures") {
		t.Errorf("said %q", d.said)
	}
	err := d.ci.Deliver(t.Context(), d.delivery(second, []testnix.Key{second}, a))
	if !errors.Is(err, nixops.ErrUnsigned) || !strings.Contains(err.Error(), "it is signed by cache-1 at "+d.cache.URL) {
		t.Errorf("hosts trust only the second key: %v", err)
	}
	// Another key of the same name is another key.
	impostor := d.nix.NewKey(t, "cache-1")
	err = d.ci.Deliver(t.Context(), d.delivery(testnix.Key{}, []testnix.Key{impostor}, a))
	if !errors.Is(err, nixops.ErrUnsigned) {
		t.Errorf("hosts trust another key of that name: %v", err)
	}
	// Where it may sign, it is beside the other one of that name.
	d.cache.TakeUploads(true)
	must(t, d.ci.Deliver(t.Context(), d.delivery(impostor, []testnix.Key{impostor}, a)))
	must(t, d.ci.Deliver(t.Context(), d.delivery(first, []testnix.Key{first}, a)))
	d.cache.TakeUploads(false)
	unverified := d.delivery(second, []testnix.Key{second}, a)
	unverified.Unverified = true
	must(t, d.ci.Deliver(t.Context(), unverified))
}

// TestEachPathIsAskedForOnce has a hook push, and asks the caches that the systems name.
func TestEachPathIsAskedForOnce(t *testing.T) {
	d := newDelivering(t)
	a, b, common := d.sharing(t)
	key := d.nix.NewKey(t, "cache-1")
	d.cache.Push(t, d.store, key, a, b)
	delivery := d.delivery(key, nil, a, b)
	delivery.Dest, delivery.Closures = "", nil
	other := d.nix.NewCache(t)
	for i := range delivery.Systems {
		delivery.Systems[i].Fetchers = []nixops.Fetcher{
			{Caches: []string{"file:///of/the/host", d.cache.URL, other.URL}, Keys: []string{key.Public}},
			{Caches: []string{d.cache.URL}, Keys: []string{"not a key", key.Public}},
		}
	}
	before := len(d.cache.Requests())
	must(t, d.ci.Deliver(t.Context(), delivery))
	asked := map[string]int{}
	for _, r := range d.cache.RequestLines()[before:] {
		if strings.HasPrefix(r, "GET ") {
			asked[r]++
		}
	}
	for _, closure := range []string{a, b, common} {
		if n := asked["GET /"+closure[:32]+".narinfo"]; n != 1 {
			t.Errorf("%s was asked for %d times", closure, n)
		}
	}
	if asked := other.Requests(); len(asked) > 0 {
		t.Errorf("nothing was open and another cache was asked for %v", asked)
	}
	must(t, os.Remove(filepath.Join(d.cache.Dir, common[:32]+".narinfo")))
	err := d.ci.Deliver(t.Context(), delivery)
	if !errors.Is(err, nixops.ErrNotFound) || !strings.Contains(err.Error(), common) || strings.Contains(err.Error(), a) ||
		!strings.Contains(err.Error(), d.cache.URL) {
		t.Errorf("one path is lost: %v", err)
	}
	// The second cache has it, for those who ask there.
	other.Push(t, d.store, key, common)
	for i := range delivery.Systems {
		delivery.Systems[i].Fetchers = delivery.Systems[i].Fetchers[:1]
	}
	must(t, d.ci.Deliver(t.Context(), delivery))
	d.cache.Stop()
	if err := d.ci.Deliver(t.Context(), delivery); !errors.Is(err, nixops.ErrUnreachable) {
		t.Errorf("the cache is away: %v", err)
	}
}

// TestANarinfoWithoutItsNARIsNotEnough loses NARs in caches of both kinds, and leaves the narinfos.
func TestANarinfoWithoutItsNARIsNotEnough(t *testing.T) {
	d := newDelivering(t)
	a, b, common := d.sharing(t)
	key := d.nix.NewKey(t, "cache-1")
	for name, dest := range map[string]string{"http": d.cache.URL, "file": "file://" + d.cache.Dir + "?compression=xz"} {
		t.Run(name, func(t *testing.T) {
			delivery := d.delivery(key, []testnix.Key{key}, a, b)
			delivery.Dest = dest
			must(t, d.ci.Deliver(t.Context(), delivery))
			whole, err := os.ReadFile(d.cache.NAR(t, common))
			must(t, err)
			must(t, os.WriteFile(d.cache.NAR(t, common), whole[:len(whole)-1], 0o644))
			err = d.ci.Deliver(t.Context(), delivery)
			if !errors.Is(err, nixops.ErrNotFound) || !strings.Contains(err.Error(), "bytes instead of") {
				t.Errorf("a NAR that was cut off: %v", err)
			}
			must(t, os.Remove(d.cache.NAR(t, common)))
			err = d.ci.Deliver(t.Context(), delivery)
			if !errors.Is(err, nixops.ErrNotFound) || !strings.Contains(err.Error(), common+": "+dest+
				" has its narinfo, but ") || strings.Contains(err.Error(), a) {
				t.Errorf("a NAR that is gone: %v", err)
			}
			// As the error says: without the narinfo, it is pushed again.
			must(t, os.Remove(filepath.Join(d.cache.Dir, common[:32]+".narinfo")))
			must(t, d.ci.Deliver(t.Context(), delivery))
			must(t, d.realises(t, a, key))
		})
	}
	for _, c := range []struct {
		status int
		of     string // whose NARs are answered so; "" means all
		fatal  bool
	}{
		{http.StatusForbidden, "common", true}, {http.StatusForbidden, "", false},
		{http.StatusMethodNotAllowed, "", false}, {http.StatusGone, "", true},
	} {
		nar := filepath.Base(d.cache.NAR(t, common))
		d.cache.Hook(func(w http.ResponseWriter, r *http.Request) bool {
			answers := r.Method == http.MethodHead && strings.Contains(r.URL.Path, "/nar/") &&
				(c.of == "" || filepath.Base(r.URL.Path) == nar)
			if answers {
				w.WriteHeader(c.status)
			}
			return answers
		})
		d.said = nil
		err := d.ci.Deliver(t.Context(), d.delivery(key, []testnix.Key{key}, a, b))
		if c.fatal != errors.Is(err, nixops.ErrNotFound) || !c.fatal && (err != nil || !d.heard("are believed")) {
			t.Errorf("%+v: %v, said %q", c, err, d.said)
		}
	}
}

func TestFetcherOfASystem(t *testing.T) {
	nix := testnix.Find(t)
	store := nix.NewStore(t)
	ci := nixops.CI{Nix: nix.Bin(), NixConfDir: nix.ConfDir(), Store: store.Dir}
	conf := "# written by a module\nsubstituters = https://a.example https://cache.nixos.org/\n" +
		"trusted-public-keys = a:AAAA c:BBBB # both\nextra-substituters = http://lan\nextra-trusted-public-keys = lan:CCCC\n"
	etc := store.Build(t, testnix.Spec{Name: "etc", Files: map[string]string{"nix/nix.conf": conf}, NoSwitch: true})
	system := store.Build(t, testnix.Spec{Links: map[string]string{"etc": "/nix/store/" + etc}})
	f, err := ci.FetcherOf("/nix/store/" + system)
	must(t, err)
	if f == nil || !slices.Equal(f.Caches, []string{"https://a.example", "https://cache.nixos.org/", "http://lan"}) ||
		!slices.Equal(f.Keys, []string{"a:AAAA", "c:BBBB", "lan:CCCC"}) {
		t.Errorf("%+v", f)
	}
	for _, path := range []string{"/nix/store/" + etc, "/nix/store/00000000000000000000000000000000-gone"} {
		if f, err := ci.FetcherOf(path); f != nil || err != nil {
			t.Errorf("%s: %+v, %v", path, f, err)
		}
	}
}
