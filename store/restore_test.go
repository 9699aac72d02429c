package store

import (
	"errors"
	"os"
	"path/filepath"
	"slices"
	"syscall"
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

// The control plane runs as a user of its own, and people restore as root: what they bring
// must belong to that user, also when the restore is refused.
func TestARestoreByRootLeavesFilesThatTheControlPlaneCanOpen(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("not root: nobody else can be the owner of the state directory")
	}
	const user = 12345
	s := open(t, filepath.Join(t.TempDir(), "of-root.db"))
	backup := filepath.Join(t.TempDir(), "backup.db")
	if err := s.Backup(t.Context(), backup); err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	if err := os.Chown(dir, user, user); err != nil {
		t.Fatal(err)
	}
	belongToUser := func(want ...string) {
		t.Helper()
		entries, err := os.ReadDir(dir)
		if err != nil {
			t.Fatal(err)
		}
		var names []string
		for _, entry := range entries {
			names = append(names, entry.Name())
			info, err := entry.Info()
			if err != nil {
				t.Fatal(err)
			}
			if stat := info.Sys().(*syscall.Stat_t); stat.Uid != user || stat.Gid != user {
				t.Errorf("%s belongs to %d:%d", entry.Name(), stat.Uid, stat.Gid)
			}
		}
		if !slices.Equal(names, want) {
			t.Errorf("%v, not %v", names, want)
		}
	}
	to := filepath.Join(dir, "state.db")
	if _, err := RestoreFile(t.Context(), filepath.Join(dir, "none"), to); err == nil {
		t.Error("restored from nothing")
	}
	belongToUser("state.db.lock")
	for range 2 {
		if _, err := RestoreFile(t.Context(), backup, to); err != nil {
			t.Fatal(err)
		}
	}
	belongToUser("state.db", "state.db.lock", "state.db.replaced")

	// That user may write there, and must not be given another's file by a link.
	other := filepath.Join(t.TempDir(), "other")
	if err := os.WriteFile(other, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for name, link := range map[string]func(string, string) error{"a": os.Link, "b": os.Symlink} {
		to := filepath.Join(dir, name)
		if err := link(other, to+".lock"); err != nil {
			t.Skipf("no link from one temporary directory to another: %v", err)
		}
		if _, err := RestoreFile(t.Context(), backup, to); err == nil {
			t.Errorf("%s: the lock is a link, and was taken", name)
		}
	}
	if info, err := os.Stat(other); err != nil || info.Sys().(*syscall.Stat_t).Uid != 0 {
		t.Errorf("another's file was given away: %v", err)
	}
}
