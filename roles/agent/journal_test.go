package agent

import (
	"bytes"
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"nixfleet/nixops"
	"nixfleet/pki"
	"nixfleet/roles/command"
)

func openDir(t testing.TB) directory {
	t.Helper()
	dir, err := openDirectory(filepath.Join(t.TempDir(), "state"))
	if err != nil {
		t.Fatal(err)
	}
	return dir
}

func anyJournal() *journal {
	return &journal{Step: stepFetching, Closure: "target", Before: recorded{Current: "before", Profile: "before"}, BootID: "boot",
		StartedAt: pki.At(time.Unix(1e9, 0)), Since: pki.At(time.Unix(1e9, 0)), WindowSecs: 60, Units: newUnits("1"), FailedBefore: []string{}, Restarts: map[string]uint64{}}
}

func TestJournalMovesOnlyFromWhereItIs(t *testing.T) {
	dir := openDir(t)
	if err := dir.begin(anyJournal()); err != nil {
		t.Fatal(err)
	}
	if err := dir.begin(anyJournal()); !errors.Is(err, errMoved) {
		t.Errorf("a second activation: %v", err)
	}
	if _, err := dir.advance(time.Now(), []step{stepProven}, stepCommitting, nil); !errors.Is(err, errMoved) {
		t.Errorf("commit of what is not proven: %v", err)
	}
	j, err := dir.advance(time.Now(), []step{stepFetching}, stepArming, func(j *journal) { j.Component = "x" })
	if err != nil || j.Step != stepArming || j.Component != "x" {
		t.Fatalf("%+v %v", j, err)
	}
	if err := dir.end(stepUndone); !errors.Is(err, errMoved) {
		t.Errorf("end of what goes on: %v", err)
	}
}

// Undo and commit race for the journal; exactly one wins.
func TestUndoAndCommitExcludeEachOther(t *testing.T) {
	for range 50 {
		dir := openDir(t)
		j := anyJournal()
		j.Step = stepProven
		if err := dir.begin(j); err != nil {
			t.Fatal(err)
		}
		var won [2]error
		var wg sync.WaitGroup
		wg.Go(func() { _, won[0] = dir.advance(time.Now(), []step{stepProven}, stepCommitted, nil) })
		wg.Go(func() { _, won[1] = dir.advance(time.Now(), revertible, stepUndoing, nil) })
		wg.Wait()
		if (won[0] == nil) == (won[1] == nil) {
			t.Fatalf("commit %v, undo %v", won[0], won[1])
		}
	}
}

func TestDamagedJournalsAreNotBelieved(t *testing.T) {
	dir := openDir(t)
	if err := dir.begin(anyJournal()); err != nil {
		t.Fatal(err)
	}
	whole, err := os.ReadFile(dir.path(journalFile))
	if err != nil {
		t.Fatal(err)
	}
	for name, doc := range map[string][]byte{
		"empty": {}, "half": whole[:len(whole)/2], "flipped": bytes.Replace(whole, []byte("target"), []byte("tarGet"), 1),
		"future": bytes.Replace(whole, []byte(`"version":1`), []byte(`"version":2`), 1), "foreign": []byte(`{"phase":"x"}`),
		"null": []byte("null"), "huge": bytes.Repeat([]byte(" "), maxStateFile+1),
	} {
		if err := os.WriteFile(dir.path(journalFile), doc, 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := dir.journal(); !errors.Is(err, errUnfit) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if err := os.WriteFile(dir.path(journalFile), whole, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(dir.path(journalFile), 0o622); err != nil {
		t.Fatal(err)
	}
	if _, err := dir.journal(); !errors.Is(err, errUnfit) {
		t.Errorf("writable by others: %v", err)
	}
}

func FuzzState(f *testing.F) {
	dir, err := openDirectory(filepath.Join(f.TempDir(), "state"))
	if err != nil {
		f.Fatal(err)
	}
	if err := dir.begin(anyJournal()); err != nil {
		f.Fatal(err)
	}
	seed, err := os.ReadFile(dir.path(journalFile))
	if err != nil {
		f.Fatal(err)
	}
	f.Add(seed)
	f.Fuzz(func(t *testing.T, doc []byte) {
		var j journal
		if err := decodeState(doc, &j); err != nil && !errors.Is(err, errUnfit) {
			t.Errorf("unexpected kind of error: %v", err)
		}
	})
}

func TestTheMarkSurvivesItsStateDirectory_T11(t *testing.T) {
	state, outside := openDir(t), openDir(t)
	m := marks{state, outside}
	want := &mark{SignedAt: pki.At(time.Unix(2e9, 0)), Intent: "i", SeenHead: true}
	if err := m.store(want); err != nil {
		t.Fatal(err)
	}
	if err := os.RemoveAll(string(state)); err != nil {
		t.Fatal(err)
	}
	got, err := marks{openDir(t), outside}.load()
	if err != nil || got == nil || *got != *want {
		t.Errorf("%+v %v", got, err)
	}
}

func TestMarkAdmits_T15(t *testing.T) {
	at := time.Unix(2e9, 0)
	m := &mark{SignedAt: pki.At(at), Intent: "i", Closure: "c"}
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
	if err := (*mark)(nil).admits(at, "", ""); err != nil {
		t.Errorf("no mark: %v", err)
	}
}

func TestClampsOfWhatItIsTold(t *testing.T) {
	for in, want := range map[time.Duration]time.Duration{0: baseWindow, time.Second: minWindow, 100 * time.Hour: maxWindow, 5 * time.Minute: 5 * time.Minute} {
		if got := clampWindow(in); got != want {
			t.Errorf("window %s becomes %s, want %s", in, got, want)
		}
	}
	for _, c := range [][3]string{
		{"auto", "enforce", "enforce"}, {"enforce", "permissive", "enforce"}, {"disabled", "enforce", "enforce"}, {"", "typo", "permissive"}, {"permissive", "disabled", "permissive"},
	} {
		if got := stricter(c[0], c[1]); got != c[2] {
			t.Errorf("local %q, signed %q: %q, want %q", c[0], c[1], got, c[2])
		}
	}
}

func TestQuarantineHoldsUntilAnotherClosure_A12(t *testing.T) {
	now := time.Unix(2e9, 0)
	q := &quarantine{Closure: "bad", Failures: 1, Reason: "r", At: pki.At(now)}
	if q.blocked("bad", now.Add(1000*time.Hour)) == "" || q.blocked("good", now) != "" {
		t.Error("a failed closure must stay blocked and another must not be")
	}
	// An undo without blame is tried again, with patience, three times.
	q = &quarantine{Closure: "c", Unreachable: 1, At: pki.At(now)}
	if q.blocked("c", now) == "" || q.blocked("c", now.Add(time.Hour)) != "" {
		t.Error("no patience after an undo without blame (A25)")
	}
	if why := q.blocked("c", now.Add(-48*time.Hour)); why != "" {
		t.Errorf("after the clock was set back: %s", why)
	}
	q.Unreachable = unreachableTries + 1
	if q.blocked("c", now.Add(time.Hour)) == "" {
		t.Error("no end of tries")
	}
}

// A second agent on one state directory does not start, and leaves the activation of
// the first alone.
func TestOneAgentAtATime(t *testing.T) {
	bubble(t, func(t *testing.T) {
		p := newPlane(t)
		m := newMachine(t, p, with(nixops.SimClosure{FetchTime: time.Minute}))
		stop := m.start(m.sim)
		time.Sleep(30 * time.Second)
		if err := Run(context.Background(), m.config(m.sim)); err == nil || !strings.Contains(err.Error(), "another agent runs") || command.HintOf(err) == "" {
			t.Errorf("a second agent: %v", err)
		}
		time.Sleep(3 * time.Minute)
		stop()
		if m.where() != all(target) || m.fetches(target) != 1 {
			t.Errorf("at %v, fetched %d times", m.where(), m.fetches(target))
		}
		stop = m.start(m.sim)
		time.Sleep(time.Minute)
		stop()
	})
}
