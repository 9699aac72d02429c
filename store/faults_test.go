package store

import (
	"bytes"
	"context"
	"database/sql"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/mattn/go-sqlite3"
	"github.com/rs/zerolog"
)

// revoke adds a local row, which must not be forgotten.
func revoke(t testing.TB, s *Store, name string) {
	t.Helper()
	if err := s.Revoke(t.Context(), Revocation{Hostname: name, NotBefore: t0}, AuditEntry{At: t0}); err != nil {
		t.Fatal(err)
	}
}

func knows(t testing.TB, s *Store, names ...string) {
	t.Helper()
	for _, name := range names {
		if _, ok, err := s.RevokedSince(t.Context(), name); !ok || err != nil {
			t.Errorf("the revocation of %s is forgotten: %v", name, err)
		}
	}
}

// backedUp is the path of a backup of now.
func backedUp(t *testing.T, s *Store) string {
	t.Helper()
	backup := filepath.Join(t.TempDir(), "backup.db")
	if err := s.Backup(t.Context(), backup); err != nil {
		t.Fatal(err)
	}
	return backup
}

func TestASecondControlPlaneIsRefused(t *testing.T) {
	s := fresh(t)
	if err := refused(t, s.path, nil); !errors.Is(err, ErrInUse) {
		t.Errorf("beside an open one: %v", err)
	}
	revoke(t, s, "a")
	// A child process that is just being started has a copy of the lock file.
	child, err := syscall.Dup(int(s.guard.file.Fd()))
	if err != nil {
		t.Fatal(err)
	}
	defer syscall.Close(child)
	s.Close()
	again := open(t, s.path)
	knows(t, again, "a")
}

func TestFilesThatAreNotToBeTrustedAreRefused(t *testing.T) {
	made := func(name string) string {
		s := open(t, filepath.Join(t.TempDir(), name))
		revoke(t, s, "a")
		s.Close()
		return s.path
	}
	for name, c := range map[string]struct {
		spoil func(path string) error
		want  error
	}{
		"empty":                {func(path string) error { return os.Truncate(path, 0) }, ErrEmpty},
		"written by others":    {func(path string) error { return os.Chmod(path, 0o666) }, ErrExposed},
		"written by its group": {func(path string) error { return os.Chmod(path, 0o620) }, ErrExposed},
		"directory of others":  {func(path string) error { return os.Chmod(filepath.Dir(path), 0o777) }, ErrExposed},
		"a log without a file": {func(path string) error {
			return errors.Join(os.Remove(path), os.WriteFile(path+"-wal", []byte("frames"), 0o600))
		}, ErrOtherLog},
	} {
		path := made("state.db")
		if err := c.spoil(path); err != nil {
			t.Fatal(err)
		}
		err := refused(t, path, nil)
		var fault *Fault
		if !errors.Is(err, c.want) || !errors.As(err, &fault) || fault.Hint() == "" || fault.Code() == "" {
			t.Errorf("%s: %v, want %v", name, err, c.want)
		}
	}
}

// A copy of before, put beside the log that a crash has left, would be mixed with it.
func TestALogIsNotAppliedToAnotherFile(t *testing.T) {
	s := fresh(t)
	revoke(t, s, "a")
	backup := backedUp(t, s)
	revoke(t, s, "b")
	file, log := image(t, s)
	guard, err := os.ReadFile(s.path + ".lock")
	if err != nil {
		t.Fatal(err)
	}
	copied, err := os.ReadFile(backup)
	if err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct {
		file []byte
		want error
	}{
		"the file of the log": {file, nil},
		"a backup":            {copied, ErrOtherLog},
	} {
		path := filepath.Join(t.TempDir(), "state.db")
		if err := errors.Join(os.WriteFile(path, c.file, 0o600), os.WriteFile(path+"-wal", log, 0o600),
			os.WriteFile(path+".lock", guard, 0o600)); err != nil {
			t.Fatal(err)
		}
		again, err := Open(t.Context(), Config{Path: path, Log: zerolog.Nop()})
		if !errors.Is(err, c.want) {
			t.Errorf("%s: %v, want %v", name, err, c.want)
		}
		if err == nil {
			knows(t, again, "a", "b")
			again.Close()
		}
	}
}

func TestAnOlderCopyIsNamed(t *testing.T) {
	s := fresh(t)
	backup := backedUp(t, s)
	revoke(t, s, "a")
	s.Close()
	said := func() string {
		var log bytes.Buffer
		again, err := Open(t.Context(), Config{Path: s.path, Log: zerolog.New(&log)})
		if err != nil {
			t.Fatal(err)
		}
		again.Close()
		return log.String()
	}
	if got := said(); got != "" {
		t.Errorf("of its own file: %s", got)
	}
	if err := os.Rename(backup, s.path); err != nil {
		t.Fatal(err)
	}
	if got := said(); !strings.Contains(got, "older than what was written") {
		t.Errorf("of a copy of before: %s", got)
	}
	if got := said(); got != "" {
		t.Errorf("said again: %s", got)
	}
}

func TestADumpIsNamedWithTheWayBack(t *testing.T) {
	program, err := exec.LookPath("sqlite3")
	if err != nil {
		t.Skip("no sqlite3 program")
	}
	s := fresh(t)
	revoke(t, s, "a")
	s.Close()
	path := filepath.Join(t.TempDir(), "state.db")
	if out, err := exec.Command("sh", "-c", fmt.Sprintf("umask 077; %s %s .dump | %s %s", program, s.path, program,
		path)).CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	err = refused(t, path, nil)
	var hinted interface{ Hint() string }
	if !errors.Is(err, ErrDump) || !errors.As(err, &hinted) {
		t.Fatalf("%v, want %v", err, ErrDump)
	}
	// The hint works when it is pasted.
	_, command, _ := strings.Cut(hinted.Hint(), ": ")
	if out, err := exec.Command("sh", "-c", strings.Replace(command, "FILE", path, 1)).CombinedOutput(); err != nil {
		t.Fatalf("%s: %v: %s", command, err, out)
	}
	knows(t, open(t, path), "a")
}

// Whatever is taken away while it is open: what was acknowledged before and after is
// in the file that is opened next.
func TestWhatIsTakenAwayIsPutBack(t *testing.T) {
	for name, gone := range map[string][]string{
		"the file": {""}, "the log": {"-wal"}, "the index of the log": {"-shm"}, "log and index": {"-wal", "-shm"},
		"all": {"", "-wal", "-shm"},
	} {
		for _, with := range []string{"nothing", "an empty file"} {
			if with != "nothing" && gone[0] == "" {
				continue // a file in the place of the database is another database
			}
			var log bytes.Buffer
			s, err := Open(t.Context(), Config{Path: filepath.Join(t.TempDir(), "state.db"), Log: zerolog.New(&log)})
			if err != nil {
				t.Fatal(err)
			}
			revoke(t, s, "before")
			for _, suffix := range gone {
				err := os.Remove(s.path + suffix)
				if with != "nothing" {
					err = errors.Join(err, os.WriteFile(s.path+suffix, nil, 0o600))
				}
				if err != nil {
					t.Fatal(err)
				}
			}
			if !s.Displaced() {
				t.Errorf("%s: not noticed", name)
			}
			revoke(t, s, "after")
			if s.Displaced() || s.Fault() != nil || !strings.Contains(log.String(), "was replaced or removed") {
				t.Errorf("%s replaced by %s: displaced %v, fault %v, said %s", name, with, s.Displaced(), s.Fault(), &log)
			}
			knows(t, s, "before", "after")
			// A row by hand is seen again.
			if _, err := shell(t, s).Exec(recipe); err != nil {
				t.Fatal(err)
			}
			knows(t, s, "newhost")
			s.Close()
			again := open(t, s.path)
			knows(t, again, "before", "after", "newhost")
		}
	}
}

// Where another database stands, what would be forgotten is refused.
func TestNothingIsAcknowledgedThatTheNextStartForgets(t *testing.T) {
	s := fresh(t)
	revoke(t, s, "before")
	backup := backedUp(t, s)
	revoke(t, s, "later")
	if err := os.Rename(backup, s.path); err != nil {
		t.Fatal(err)
	}
	err := s.Revoke(t.Context(), Revocation{Hostname: "a", NotBefore: t0}, AuditEntry{At: t0})
	if !errors.Is(err, ErrDisplaced) || !errors.Is(s.Fault(), ErrDisplaced) {
		t.Errorf("a revocation: %v, fault %v", err, s.Fault())
	}
	if err := s.UseToken(t.Context(), "n", "h", time.Now()); !errors.Is(err, ErrDisplaced) {
		t.Errorf("a token: %v", err)
	}
	s.Close()
	knows(t, open(t, s.path), "before")
	knows(t, open(t, s.path+".kept"), "before", "later")
}

func TestAFullDiskIsNotDamage(t *testing.T) {
	s := fresh(t)
	if err := overfill(t, s); !errors.Is(err, ErrFull) || errors.Is(err, ErrDamaged) {
		t.Errorf("%v, want %v", err, ErrFull)
	}
	revoke(t, s, "a")
	if s.Fault() != nil {
		t.Errorf("the fault is over: %v", s.Fault())
	}
	for code, want := range map[sqlite3.ErrNo]error{
		sqlite3.ErrFull: ErrFull, sqlite3.ErrIoErr: ErrDisk, sqlite3.ErrBusy: ErrLocked, sqlite3.ErrNotADB: ErrDamaged,
		sqlite3.ErrCorrupt: ErrDamaged, sqlite3.ErrReadonly: ErrUnwritable, sqlite3.ErrCantOpen: ErrUnwritable,
	} {
		if err := named(fmt.Errorf("x: %w", sqlite3.Error{Code: code})); !errors.Is(err, want) {
			t.Errorf("%v: %v, want %v", code, err, want)
		}
	}
}

// A lock that outlasts the patience of SQLite costs time and nothing else.
func TestALongLockLosesNothing(t *testing.T) {
	s := fresh(t)
	if _, err := s.write.Exec(`PRAGMA busy_timeout = 20`); err != nil {
		t.Fatal(err)
	}
	conn, err := shell(t, s).Conn(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if _, err := conn.ExecContext(t.Context(), `BEGIN IMMEDIATE`); err != nil {
		t.Fatal(err)
	}
	written := make(chan error, 1)
	go func() { written <- s.SubmitRollout(change()).Wait(context.Background()) }()
	for s.Fault() == nil {
		time.Sleep(time.Millisecond)
	}
	if !errors.Is(s.Fault(), ErrLocked) {
		t.Errorf("fault %v", s.Fault())
	}
	if _, err := conn.ExecContext(t.Context(), `ROLLBACK`); err != nil {
		t.Fatal(err)
	}
	if err := <-written; err != nil {
		t.Errorf("after the lock: %v", err)
	}
	if s.Fault() != nil {
		t.Errorf("the fault is over: %v", s.Fault())
	}
	// A control plane that ends beside a lock does not wait for ever.
	if _, err := conn.ExecContext(t.Context(), `BEGIN IMMEDIATE`); err != nil {
		t.Fatal(err)
	}
	p := s.submit(func(*sql.Tx) error { return nil })
	s.Close()
	if err := p.Wait(t.Context()); !errors.Is(err, ErrLocked) {
		t.Errorf("at the end: %v", err)
	}
}
