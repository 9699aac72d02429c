package sim

import (
	"path/filepath"
	"testing"
	"time"

	"nixfleet/nixops"
)

// TestSimAlone: a machine that is open here alone remembers the same, sees what
// happens by itself, and leaves on disk what another process will find.
func TestSimAlone(t *testing.T) {
	dir, cache := t.TempDir(), t.TempDir()
	const first, next = "00000000000000000000000000000000-nixos-system-a-1",
		"00000000000000000000000000000000-nixos-system-a-2"
	for _, closure := range []string{first, next} {
		if err := WriteClosure(cache, closure, Closure{Script: Script{SwitchTime: 20 * time.Millisecond}}); err != nil {
			t.Fatal(err)
		}
	}
	open := func() *Host {
		s, err := New(filepath.Join(dir, "machine"), cache)
		if err != nil {
			t.Fatal(err)
		}
		return s
	}
	expect := func(s *Host, want string) {
		t.Helper()
		if got, err := s.CurrentSystem(t.Context()); err != nil || got != want {
			t.Fatalf("it runs %q (%v), want %q", got, err, want)
		}
	}
	s := open()
	s.Alone()
	if err := s.Install(first); err != nil {
		t.Fatal(err)
	}
	expect(s, first)
	if err := s.Realise(t.Context(), next, nil); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Switch(t.Context(),
		nixops.SwitchRequest{Closure: next, Action: nixops.ActionTest, Unit: "nixfleet-switch-1"}); err != nil {
		t.Fatal(err)
	}
	expect(s, next)
	s.Close()
	if _, err := s.CurrentSystem(t.Context()); err == nil {
		t.Error("a closed machine answers")
	}
	again := open()
	defer again.Close()
	expect(again, next)
	if failed, err := again.failed(); err != nil || len(failed) > 0 {
		t.Errorf("failed units %v, %v", failed, err)
	}
}
