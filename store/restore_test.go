package store

import (
	"errors"
	"os"
	"path/filepath"
	"testing"
	"time"
)

func TestARestoreForgetsNoRevocation(t *testing.T) {
	s := fresh(t)
	revoke(t, s, "before")
	backup := backedUp(t, s)
	revoke(t, s, "later")
	if err := s.UseToken(t.Context(), "used", "h", time.Now().Add(time.Hour)); err != nil {
		t.Fatal(err)
	}
	if _, err := RestoreFile(t.Context(), backup, s.path); !errors.Is(err, ErrInUse) {
		t.Errorf("under a control plane: %v", err)
	}
	_, log := image(t, s)
	s.Close()
	// What a crash leaves.
	if err := os.WriteFile(s.path+"-wal", log, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := RestoreFile(t.Context(), backup, s.path); !errors.Is(err, ErrLogBeside) {
		t.Errorf("beside a log: %v", err)
	}
	if err := os.Remove(s.path + "-wal"); err != nil {
		t.Fatal(err)
	}
	done, err := RestoreFile(t.Context(), backup, s.path)
	if err != nil || !done.Carried || done.Aside == "" {
		t.Fatalf("%+v %v", done, err)
	}
	again := open(t, s.path)
	knows(t, again, "before", "later")
	if used, err := again.TokenUsed(t.Context(), "used"); !used || err != nil {
		t.Errorf("the used token is forgotten: %v", err)
	}
	again.Close()
	// A damaged one is replaced as well, and that is said.
	if err := os.WriteFile(s.path, []byte("damaged"), 0o600); err != nil {
		t.Fatal(err)
	}
	if done, err = RestoreFile(t.Context(), backup, s.path); err != nil || done.Carried {
		t.Errorf("in the place of a damaged one: %+v %v", done, err)
	}
	knows(t, open(t, s.path), "before")
	if _, err := RestoreFile(t.Context(), done.Aside, filepath.Join(t.TempDir(), "x.db")); !errors.Is(err, ErrDamaged) {
		t.Errorf("from a damaged one: %v", err)
	}
}
