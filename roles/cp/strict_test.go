package cp

import (
	"testing"

	"nixfleet/nixops/fleet"
)

// TestStrictModeWantsBothLists also of a source that is not a pair of URLs: there
// the lists are the release's own.
func TestStrictModeWantsBothLists(t *testing.T) {
	e := newEstate(t, "a")
	strict := func(c *Config) { c.Strict = true }
	nonces := &fleet.BootstrapNonces{SchemaVersion: 1, BootstrapNonces: []fleet.BootstrapNonce{},
		Meta: fleet.Meta{SchemaVersion: 1}}
	revocations := e.revocations

	e.nonces = nonces
	e.publish()
	complete, old := e.sign(), e.signed
	for _, v1 := range []bool{false, true} { // without members, too
		e.v1 = v1
		for name, lists := range map[string]func(){
			"no nonces":      func() { e.revocations, e.nonces = revocations, nil },
			"no revocations": func() { e.revocations, e.nonces = nil, nonces },
		} {
			lists()
			e.empty()
			e.publish()
			s := e.primed(t, strict, func(c *Config) { c.StateDir = t.TempDir() })
			if s.release.snapshot.Load() != nil {
				t.Errorf("%s, v1 %v: the release is served", name, v1)
			}
			s.store.Close()
		}
	}

	// What was accepted before is not served either, and nothing older is for it.
	s := e.primed(t)
	if s.release.snapshot.Load() == nil {
		t.Fatal("without strict the release is not served")
	}
	s.store.Close()
	e.empty()
	e.restore(complete)
	s = e.primed(t, strict)
	if snap := s.release.snapshot.Load(); snap != nil || s.release.floor == nil || !s.release.floor.SignedAt.After(old) {
		t.Errorf("served: %v, there is a floor: %v", snap != nil, s.release.floor != nil)
	}
	e.v1, e.revocations, e.nonces = false, revocations, nonces
	e.publish()
	if s.release.poll(t.Context(), ""); s.release.snapshot.Load() == nil {
		t.Error("a newer release with both lists is not served")
	}
}
