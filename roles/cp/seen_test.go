package cp

import (
	"testing"
	"time"
)

// TestAnAttestationIsTriedOncePerId: a host whose closure a new intent left alone attests an
// id of before at every check-in, and a rollout that is signed again each hour has many ids.
func TestAnAttestationIsTriedOncePerId(t *testing.T) {
	l, now := newLastSeen(), time.Now()
	tried := 0
	attest := func(key, signature, good string, wantTried int, ids ...string) {
		t.Helper()
		tried = 0
		got := l.attested("a", key, signature, now, ids, func(id string) bool { tried++; return id == good })
		if got != good || tried != wantTried {
			t.Errorf("%s of %v: %q after %d tries, want %q after %d", signature, ids, got, tried, good, wantTried)
		}
	}
	attest("k", "s", "", 3, "1", "2", "3")
	attest("k", "s", "", 0, "1", "2", "3")
	attest("k", "s", "", 2, "1", "2", "3", "4", "5")
	attest("k", "s", "", 0, "3", "4", "5") // the oldest are forgotten
	attest("k", "s", "", 2, "x", "y")      // another intent
	attest("k", "new", "y", 2, "x", "y")
	attest("k", "new", "y", 0, "x", "y", "z")
	attest("other", "new", "", 3, "x", "y", "z")
}
