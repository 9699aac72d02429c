package cp

import (
	"errors"
	"os"
	"path/filepath"
	"testing"
	"time"
)

func TestReloadedReadsWhatChangedAndComplainsOnce(t *testing.T) {
	path, none := filepath.Join(t.TempDir(), "file"), filepath.Join(t.TempDir(), "none")
	write := func(text string) {
		t.Helper()
		if err := os.WriteFile(path+".tmp", []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := os.Rename(path+".tmp", path); err != nil {
			t.Fatal(err)
		}
	}
	loads, complaints := 0, 0
	r := newReloaded(func(error) { complaints++ }, func() (string, error) {
		loads++
		text, err := os.ReadFile(path)
		if err == nil && string(text) == "bad" {
			err = errors.New("bad")
		}
		return string(text), err
	}, path, "", none)
	expect := func(value string, generation uint64, failed bool, wantLoads, wantComplaints int) {
		t.Helper()
		got, g, err := r.get()
		if got != value || g != generation || (err != nil) != failed || loads != wantLoads || complaints != wantComplaints {
			t.Fatalf("%q, generation %d, %v after %d loads and %d complaints", got, g, err, loads, complaints)
		}
	}
	// Before there is any value the caller is who complains.
	expect("", 0, true, 1, 0)
	write("one")
	expect("one", 1, false, 2, 0)
	expect("one", 1, false, 2, 0) // paths that do not exist are not a change
	write("bad")
	expect("one", 1, true, 3, 1)
	expect("one", 1, true, 4, 1)
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	expect("one", 1, true, 5, 2)
	write("two")
	expect("two", 2, false, 6, 2)
	write("bad")
	expect("two", 2, true, 7, 3)
	// The same size and another time is a change.
	write("own")
	expect("own", 3, false, 8, 3)
	if err := os.Chtimes(path, time.Time{}, time.Now().Add(-time.Hour)); err != nil {
		t.Fatal(err)
	}
	expect("own", 4, false, 9, 3)
}
