package verify

import (
	"os"
	"path/filepath"
	"testing"
	"time"

	"nixfleet/pki"
	"nixfleet/roles/agent/journal"
)

func openDir(t testing.TB) journal.Directory {
	t.Helper()
	dir, err := journal.Open(filepath.Join(t.TempDir(), "state"))
	if err != nil {
		t.Fatal(err)
	}
	return dir
}

func TestTheMarkSurvivesItsStateDirectory_T11(t *testing.T) {
	state, outside := openDir(t), openDir(t)
	m := Marks{state, outside}
	want := &Mark{SignedAt: pki.At(time.Unix(2e9, 0)), Intent: "i", SeenHead: true}
	if err := m.store(want); err != nil {
		t.Fatal(err)
	}
	if err := os.RemoveAll(string(state)); err != nil {
		t.Fatal(err)
	}
	got, err := Marks{openDir(t), outside}.Load()
	if err != nil || got == nil || *got != *want {
		t.Errorf("%+v %v", got, err)
	}
}

func TestMarkAdmits_T15(t *testing.T) {
	at := time.Unix(2e9, 0)
	m := &Mark{SignedAt: pki.At(at), Intent: "i", Closure: "c"}
	for _, c := range []struct {
		name            string
		at              time.Time
		intent, closure string
		ok              bool
	}{
		{"newer", at.Add(1), "x", "", true}, {"older", at.Add(-1), "i", "c", false}, {"the same", at, "i", "", true},
		{"another of the same time", at, "x", "d", false}, {"same closure, same time", at, "x", "c", true},
	} {
		if err := m.admits(c.at, c.intent, c.closure); (err == nil) != c.ok {
			t.Errorf("%s: %v", c.name, err)
		}
	}
	if err := (*Mark)(nil).admits(at, "", ""); err != nil {
		t.Errorf("no mark: %v", err)
	}
}

func TestClampsOfWhatItIsTold(t *testing.T) {
	for in, want := range map[time.Duration]time.Duration{0: baseWindow, time.Second: minWindow,
		100 * time.Hour: maxWindow, 5 * time.Minute: 5 * time.Minute} {
		if got := clampWindow(in); got != want {
			t.Errorf("window %s becomes %s, want %s", in, got, want)
		}
	}
	for _, c := range [][3]string{
		{"auto", "enforce", "enforce"}, {"enforce", "permissive", "enforce"}, {"disabled", "enforce", "enforce"},
		{"", "typo", "permissive"}, {"permissive", "disabled", "permissive"},
	} {
		if got := stricter(c[0], c[1]); got != c[2] {
			t.Errorf("local %q, signed %q: %q, want %q", c[0], c[1], got, c[2])
		}
	}
}
