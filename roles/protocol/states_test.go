package protocol

import "testing"

// Every state has its place in the one list, and what is not a state counts as queued.
func TestHostStatesHaveTheirPlace(t *testing.T) {
	for i, s := range HostStates {
		if got := s.Index(); got != i {
			t.Errorf("%s has place %d, want %d", s, got, i)
		}
	}
	for _, s := range []HostState{"", "Quoted", "failed", "Skyward", "a word that is longer than any state"} {
		if got := s.Index(); HostStates[got] != HostQueued {
			t.Errorf("%q counts as %s", s, HostStates[got])
		}
	}
}
