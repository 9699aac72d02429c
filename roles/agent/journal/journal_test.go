package journal

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"nixfleet/pki"
)

func openDir(t testing.TB) Directory {
	t.Helper()
	dir, err := Open(filepath.Join(t.TempDir(), "state"))
	if err != nil {
		t.Fatal(err)
	}
	return dir
}

func anyJournal() *Journal {
	return &Journal{Step: Fetching, Closure: "target", Before: Recorded{Current: "before", Profile: "before"},
		BootID:    "boot",
		StartedAt: pki.At(time.Unix(1e9, 0)), Since: pki.At(time.Unix(1e9,
			0)), WindowSecs: 60, Units: NewUnits("1"), FailedBefore: []string{}, Restarts: map[string]uint64{}}
}

func TestJournalMovesOnlyFromWhereItIs(t *testing.T) {
	dir := openDir(t)
	if err := dir.Begin(anyJournal()); err != nil {
		t.Fatal(err)
	}
	if err := dir.Begin(anyJournal()); !errors.Is(err, ErrMoved) {
		t.Errorf("a second activation: %v", err)
	}
	if _, err := dir.Advance(time.Now(), []Step{Proven}, Committing, nil); !errors.Is(err, ErrMoved) {
		t.Errorf("commit of what is not proven: %v", err)
	}
	j, err := dir.Advance(time.Now(), []Step{Fetching}, Arming, func(j *Journal) { j.Component = "x" })
	if err != nil || j.Step != Arming || j.Component != "x" {
		t.Fatalf("%+v %v", j, err)
	}
	if err := dir.End(Undone); !errors.Is(err, ErrMoved) {
		t.Errorf("end of what goes on: %v", err)
	}
}

// Undo and commit race for the journal; exactly one wins.
func TestUndoAndCommitExcludeEachOther(t *testing.T) {
	for range 50 {
		dir := openDir(t)
		j := anyJournal()
		j.Step = Proven
		if err := dir.Begin(j); err != nil {
			t.Fatal(err)
		}
		var won [2]error
		var wg sync.WaitGroup
		wg.Go(func() { _, won[0] = dir.Advance(time.Now(), []Step{Proven}, Committed, nil) })
		wg.Go(func() { _, won[1] = dir.Advance(time.Now(), Revertible, Undoing, nil) })
		wg.Wait()
		if (won[0] == nil) == (won[1] == nil) {
			t.Fatalf("commit %v, undo %v", won[0], won[1])
		}
	}
}

func TestDamagedJournalsAreNotBelieved(t *testing.T) {
	dir := openDir(t)
	if err := dir.Begin(anyJournal()); err != nil {
		t.Fatal(err)
	}
	whole, err := os.ReadFile(dir.Path(File))
	if err != nil {
		t.Fatal(err)
	}
	for name, doc := range map[string][]byte{
		"empty": {}, "half": whole[:len(whole)/2], "flipped": bytes.Replace(whole, []byte("target"), []byte("tarGet"), 1),
		"future": bytes.Replace(whole, []byte(`"version":1`), []byte(`"version":2`), 1), "foreign": []byte(`{"phase":"x"}`),
		"null": []byte("null"), "huge": bytes.Repeat([]byte(" "), largest+1),
	} {
		if err := os.WriteFile(dir.Path(File), doc, 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := dir.Journal(); !errors.Is(err, ErrUnfit) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if err := os.WriteFile(dir.Path(File), whole, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(dir.Path(File), 0o622); err != nil {
		t.Fatal(err)
	}
	if _, err := dir.Journal(); !errors.Is(err, ErrUnfit) {
		t.Errorf("writable by others: %v", err)
	}
}

func FuzzState(f *testing.F) {
	dir, err := Open(filepath.Join(f.TempDir(), "state"))
	if err != nil {
		f.Fatal(err)
	}
	if err := dir.Begin(anyJournal()); err != nil {
		f.Fatal(err)
	}
	seed, err := os.ReadFile(dir.Path(File))
	if err != nil {
		f.Fatal(err)
	}
	f.Add(seed)
	f.Fuzz(func(t *testing.T, doc []byte) {
		var j Journal
		if err := Decode(doc, &j); err != nil && !errors.Is(err, ErrUnfit) {
			t.Errorf("unexpected kind of error: %v", err)
		}
	})
}
