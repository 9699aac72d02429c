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
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/rs/zerolog"

	"nixfleet/roles/rollout"
)

// A child writes and tells what was acknowledged; it is killed; all of that is
// there, also when the next child goes on with what the killed one left.
func TestAcknowledgedRowsSurviveAKill(t *testing.T) {
	if path := os.Getenv("NIXFLEET_STORE_CHILD"); path != "" {
		s, err := Open(t.Context(), Config{Path: path, Log: zerolog.Nop()})
		if err != nil {
			t.Fatal(err)
		}
		for i := 0; ; i++ {
			if err := s.UseToken(t.Context(), fmt.Sprint(os.Getenv("NIXFLEET_STORE_ROUND"), "-", i), "h",
				time.Now().Add(time.Hour)); err != nil {
				t.Fatal(err)
			}
			fmt.Println("acknowledged", i)
		}
	}
	path := filepath.Join(t.TempDir(), "state.db")
	var acknowledged []string
	for round := range 3 {
		cmd := exec.Command(os.Args[0], "-test.run=^TestAcknowledgedRowsSurviveAKill$")
		cmd.Env = append(os.Environ(), "NIXFLEET_STORE_CHILD="+path, fmt.Sprint("NIXFLEET_STORE_ROUND=", round))
		out, err := cmd.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		for i := -1; i < 20; {
			if _, err := fmt.Fscanf(out, "acknowledged %d\n", &i); err != nil {
				t.Fatal(err)
			}
			acknowledged = append(acknowledged, fmt.Sprint(round, "-", i))
		}
		if err := cmd.Process.Kill(); err != nil {
			t.Fatal(err)
		}
		// It was killed: that is its error.
		_ = cmd.Wait()
	}
	s := open(t, path)
	for _, nonce := range acknowledged {
		if used, err := s.TokenUsed(t.Context(), nonce); !used || err != nil {
			t.Errorf("acknowledged row %s is lost: %v", nonce, err)
		}
	}
}

// image copies the database as a power cut would leave it: the file, then its log.
func image(t *testing.T, s *Store) (file, log []byte) {
	t.Helper()
	file, err := os.ReadFile(s.path)
	if err != nil {
		t.Fatal(err)
	}
	if log, err = os.ReadFile(s.path + "-wal"); err != nil {
		t.Fatal(err)
	}
	return file, log
}

func restore(t *testing.T, file, log []byte) *Store {
	t.Helper()
	path := filepath.Join(t.TempDir(), "state.db")
	if err := errors.Join(os.WriteFile(path, file, 0o600), os.WriteFile(path+"-wal", log, 0o600)); err != nil {
		t.Fatal(err)
	}
	return openWith(t, path, nil)
}

func TestAcknowledgedRowsAreInTheImageOfAPowerCut(t *testing.T) {
	s := fresh(t)
	// The log is not folded into the file between the two reads of an image.
	if _, err := s.write.Exec("PRAGMA wal_autocheckpoint = 0"); err != nil {
		t.Fatal(err)
	}
	var acknowledged atomic.Int64
	stop, stopped := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(stopped)
		for n := 0; ; n++ {
			select {
			case <-stop:
				return
			default:
			}
			if err := s.UseToken(t.Context(), fmt.Sprint(n), "h", time.Now().Add(time.Hour)); err != nil {
				t.Error(err)
				return
			}
			acknowledged.Store(int64(n + 1))
			time.Sleep(100 * time.Microsecond) // a fast disk makes no larger test
		}
	}()
	for range 10 {
		before := acknowledged.Load()
		file, log := image(t, s)
		cut := restore(t, file, log)
		var there int64
		if err := cut.read.QueryRow(`SELECT count(*) FROM token_replay WHERE CAST(nonce AS INTEGER) < ?`, before).
			Scan(&there); err != nil || there != before {
			t.Errorf("%d of %d acknowledged rows are there: %v", there, before, err)
		}
		if err := cut.Close(); err != nil {
			t.Error(err)
		}
		time.Sleep(2 * time.Millisecond)
	}
	close(stop)
	<-stopped
}

// A log whose end never reached the disk opens, with a prefix of the history.
func TestATornLogGivesAPrefixOfTheHistory(t *testing.T) {
	s := fresh(t)
	const rows = 30
	for i := range rows {
		if err := s.UseToken(t.Context(), fmt.Sprintf("%02d", i), "h", time.Now().Add(time.Hour)); err != nil {
			t.Fatal(err)
		}
	}
	file, log := image(t, s)
	last := rows + 1
	for cut := len(log); cut > 0; cut -= len(log)/12 + 1 {
		for name, torn := range map[string][]byte{
			"cut": log[:cut], "zeros": append(slices.Clone(log[:cut]), make([]byte, len(log)-cut)...),
			"noise": append(slices.Clone(log[:cut]), bytes.Repeat([]byte{0xa5}, len(log)-cut)...),
		} {
			s := restore(t, file, torn)
			var n int
			var newest sql.NullString
			if err := s.read.QueryRow(`SELECT count(*), max(nonce) FROM token_replay`).Scan(&n, &newest); err != nil {
				t.Fatal(err)
			}
			if n > 0 && newest.String != fmt.Sprintf("%02d", n-1) {
				t.Errorf("%s at %d: %d rows up to %s", name, cut, n, newest.String)
			}
			if n > last {
				t.Errorf("%s at %d: %d rows, with more of the log %d", name, cut, n, last)
			}
			s.Close()
			if name == "cut" {
				last = n
			}
		}
	}
	if last >= rows/2 {
		t.Errorf("%d rows left at the shortest cut: nothing was torn", last)
	}
}

// overfill submits a change of a megabyte to a disk with eight pages left, and gives what came of it. A limit on the
// pages stands for the full disk: SQLite answers both alike.
func overfill(t *testing.T, s *Store) error {
	t.Helper()
	var pages int
	if err := s.write.QueryRow(`PRAGMA page_count`).Scan(&pages); err != nil {
		t.Fatal(err)
	}
	if _, err := s.write.Exec(fmt.Sprintf(`PRAGMA max_page_count = %d`, pages+8)); err != nil {
		t.Fatal(err)
	}
	big := change()
	big.Events[0].Detail = strings.Repeat("x", 1<<20)
	return s.SubmitRollout(big).Wait(t.Context())
}

func TestAFullDiskFailsTheGroupAndNothingElse(t *testing.T) {
	s := fresh(t)
	if err := overfill(t, s); err == nil {
		t.Fatal("a megabyte fits into eight pages")
	}
	if err := s.UseToken(t.Context(), "n", "h", time.Now().Add(time.Hour)); err != nil {
		t.Errorf("a small write afterwards: %v", err)
	}
	if st, err := s.LoadRollouts(t.Context()); err != nil || !st.Empty {
		t.Errorf("half of the big change is there: %+v %v", st, err)
	}
}

func TestAWriteWaitsForTheShell(t *testing.T) {
	s := fresh(t)
	conn, err := shell(t, s).Conn(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if _, err := conn.ExecContext(t.Context(), `BEGIN IMMEDIATE; `+recipe); err != nil {
		t.Fatal(err)
	}
	p := s.SubmitRollout(change())
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if err := p.Wait(ctx); !errors.Is(err, context.DeadlineExceeded) {
		t.Fatalf("written beside an open transaction: %v", err)
	}
	// Readers are not held up meanwhile, and see nothing that is not committed.
	if _, ok, err := s.RevokedSince(t.Context(), "newhost"); ok || err != nil {
		t.Errorf("%v %v", ok, err)
	}
	if _, err := conn.ExecContext(t.Context(), `COMMIT`); err != nil {
		t.Fatal(err)
	}
	if err := p.Wait(t.Context()); err != nil {
		t.Errorf("after the shell let go: %v", err)
	}
	if _, ok, err := s.RevokedSince(t.Context(), "newhost"); !ok || err != nil {
		t.Errorf("%v %v", ok, err)
	}
}

func TestSubmitNeverBlocksAndKeepsTheOrder(t *testing.T) {
	s := fresh(t)
	block := make(chan struct{})
	s.submit(func(*sql.Tx) error { <-block; return nil })
	var order []int
	var last *Pending
	for i := range 3 * maxGroup { // far more than one commit takes
		last = s.submit(func(*sql.Tx) error { order = append(order, i); return nil })
	}
	close(block)
	if err := last.Wait(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := last.Wait(t.Context()); err != nil || len(order) != 3*maxGroup || !slices.IsSorted(order) {
		t.Errorf("waited twice: %v; %d in order %v", err, len(order), slices.IsSorted(order))
	}
}

func TestCloseCommitsWhatIsQueued(t *testing.T) {
	path := filepath.Join(t.TempDir(), "state.db")
	s := openWith(t, path, nil)
	var all []*Pending
	for i := range 50 {
		c := change()
		c.Rollouts[0].Intent = fmt.Sprint(i)
		all = append(all, s.SubmitRollout(rollout.Change{Rollouts: c.Rollouts}))
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	for _, p := range all {
		if err := p.Wait(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	var n int
	if err := open(t, path).read.QueryRow(`SELECT count(*) FROM rollouts`).Scan(&n); err != nil || n != 50 {
		t.Errorf("%d rows, %v", n, err)
	}
}

func TestIdleLookupsTouchNoDisk(t *testing.T) {
	s := fresh(t)
	if err := s.Revoke(t.Context(), Revocation{Hostname: "a", NotBefore: t0}, AuditEntry{At: t0}); err != nil {
		t.Fatal(err)
	}
	if _, ok, err := s.RevokedSince(t.Context(), "a"); !ok || err != nil {
		t.Fatal(err)
	}
	stamp := func() string {
		text := ""
		for _, suffix := range []string{"", "-wal"} {
			info, err := os.Stat(s.path + suffix)
			if err != nil {
				t.Fatal(err)
			}
			text += fmt.Sprint(info.ModTime(), info.Size(), " ")
		}
		return text
	}
	before := stamp()
	for range 1000 {
		if _, _, err := s.RevokedSince(t.Context(), "a"); err != nil {
			t.Fatal(err)
		}
		if used, err := s.TokenUsed(t.Context(), "x"); used || err != nil {
			t.Fatal(err)
		}
	}
	if after := stamp(); after != before {
		t.Errorf("%s became %s", before, after)
	}
}
