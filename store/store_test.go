package store

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/rs/zerolog"
	"go.uber.org/goleak"

	"nixfleet/pki"
	"nixfleet/roles/protocol"
	"nixfleet/roles/rollout"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func open(t testing.TB, path string) *Store {
	t.Helper()
	s, err := Open(t.Context(), Config{Path: path, Log: zerolog.Nop()})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
	return s
}

func fresh(t testing.TB) *Store { return open(t, filepath.Join(t.TempDir(), "state.db")) }

// shell is another process's connection to the database.
func shell(t testing.TB, s *Store) *sql.DB {
	t.Helper()
	db, err := sql.Open("sqlite3", s.path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { db.Close() })
	return db
}

var t0 = time.Date(2026, 3, 1, 12, 0, 0, 120e6, time.UTC)

func change() rollout.Change {
	later := t0.Add(time.Minute)
	return rollout.Change{
		Rollouts: []rollout.Rollout{{Intent: "i", RolloutID: "id2", Channel: "stable", ChannelRef: "c",
			IDs:   []string{"id1", "id2"},
			State: rollout.Executing, Wave: 1, WaveSince: t0, OpenedAt: t0, CreatedAt: t0,
			Hold: &rollout.Hold{Action: "pause", By: "jo", Reason: "lunch", At: t0}}},
		Hosts: []rollout.HostRecord{{Host: "web-01", Intent: "i", Channel: "stable", State: rollout.Healthy, Wave: 1,
			Closure:  "new",
			Previous: "old", Since: t0, HealthySince: &later, Attempt: 2, Failures: []string{"compliance:a"}}},
		Dispatches: []rollout.Dispatch{
			{Host: "web-01", RolloutID: "id2", Intent: "i", Channel: "stable", Wave: 1, Closure: "new", ChannelRef: "id2",
				State: rollout.DispatchPending, DispatchedAt: t0, ConfirmDeadline: later, StartBy: later, SlotUntil: later,
				KnowsLease: true}},
		Quarantines: []rollout.Quarantine{{Channel: "stable", Closure: "bad", Reason: "activation-failed", Since: t0}},
		Twins:       []rollout.Twins{{Host: "web-01", BootIDs: [2]string{"one", "other"}, Since: t0, Held: true}},
		Freezes:     []rollout.Freeze{{Channel: "stable", By: "jo", Reason: "holidays", At: t0, Until: later}},
		Events: []protocol.Event{
			{At: pki.At(t0), Intent: "i", RolloutID: "id2", Channel: "stable", Host: "web-01", Kind: "dispatched", Reason: "r",
				Detail: "d"}},
	}
}

func TestRolloutsSurviveARestart_C8(t *testing.T) {
	path := filepath.Join(t.TempDir(), "state.db")
	first, err := Open(t.Context(), Config{Path: path, Log: zerolog.Nop()})
	if err != nil {
		t.Fatal(err)
	}
	if st, err := first.LoadRollouts(t.Context()); err != nil || !st.Empty {
		t.Fatalf("a new database: %+v %v", st, err)
	}
	c := change()
	if err := first.SubmitRollout(c).Wait(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := first.Close(); err != nil {
		t.Fatal(err)
	}
	st, err := open(t, path).LoadRollouts(t.Context())
	if err != nil || st.Empty {
		t.Fatalf("empty %v, %v", st.Empty, err)
	}
	want := rollout.State{Rollouts: c.Rollouts, Hosts: c.Hosts, Dispatches: c.Dispatches, Quarantines: c.Quarantines,
		Twins: c.Twins, Freezes: c.Freezes}
	want.Dispatches[0].ID = 1
	if got, want := fmt.Sprintf("%+v", deref(st)), fmt.Sprintf("%+v", deref(want)); got != want {
		t.Errorf("loaded\n%s\nwant\n%s", got, want)
	}
}

// deref replaces pointers by what %+v can compare.
func deref(s rollout.State) string {
	text := ""
	for _, r := range s.Rollouts {
		hold := *r.Hold
		r.Hold = nil
		text += fmt.Sprintf("%+v %+v\n", r, hold)
	}
	for _, h := range s.Hosts {
		healthy := *h.HealthySince
		h.HealthySince = nil
		text += fmt.Sprintf("%+v %v\n", h, healthy)
	}
	return text + fmt.Sprintf("%+v\n%+v\n%+v\n%+v", s.Dispatches, s.Quarantines, s.Twins, s.Freezes)
}

func TestADispatchIsUpdatedNotRepeated(t *testing.T) {
	s, c := fresh(t), change()
	confirmed := t0.Add(time.Minute)
	for range 2 {
		if err := s.SubmitRollout(c).Wait(t.Context()); err != nil {
			t.Fatal(err)
		}
		c.Dispatches[0].State, c.Dispatches[0].ConfirmedAt = rollout.DispatchConfirmed, &confirmed
	}
	rows, err := s.Trace(t.Context(), "id1")
	if err != nil || len(rows) != 1 || rows[0].State != rollout.DispatchConfirmed ||
		!rows[0].ConfirmedAt.Equal(confirmed) {
		t.Errorf("trace by an older id: %+v, %v", rows, err)
	}
}

// The recipe's own query, its times compared as text by SQLite itself.
func TestPendingConfirmsReadAsTheRecipeReadsThem_C1(t *testing.T) {
	s := fresh(t)
	if err := s.SubmitRollout(change()).Wait(t.Context()); err != nil {
		t.Fatal(err)
	}
	var id int
	var rolloutID, state, at string
	var confirmed *string
	err := shell(t, s).QueryRow(`SELECT id, rollout_id, state, datetime(dispatched_at), datetime(confirmed_at)
		FROM pending_confirms WHERE hostname = "web-01" ORDER BY id DESC LIMIT 5;`).Scan(&id, &rolloutID, &state, &at, &confirmed)
	if err != nil || rolloutID != "id2" || state != "pending" || at != "2026-03-01 12:00:00" || confirmed != nil {
		t.Errorf("%d %s %s %s %v: %v", id, rolloutID, state, at, confirmed, err)
	}
	var overdue bool
	err = shell(t, s).QueryRow(`SELECT confirm_deadline < datetime('now') FROM pending_confirms`).Scan(&overdue)
	if err != nil || !overdue {
		t.Errorf("a deadline in the past does not compare as past: %v, %v", overdue, err)
	}
}

const recipe = `INSERT INTO cert_revocations (hostname, not_before, reason, revoked_by) VALUES ('newhost', datetime('now'), 'compromised', 'jo');`

func TestARowFromTheShellCountsAtOnce(t *testing.T) {
	s := fresh(t)
	if _, ok, err := s.RevokedSince(t.Context(), "newhost"); ok || err != nil {
		t.Fatalf("revoked before: %v %v", ok, err)
	}
	db := shell(t, s)
	for range 2 { // twice for one host
		if _, err := db.Exec(recipe); err != nil {
			t.Fatal(err)
		}
		at, ok, err := s.RevokedSince(t.Context(), "newhost")
		if err != nil || !ok || time.Since(at) > time.Minute {
			t.Fatalf("revoked since %v: %v %v", at, ok, err)
		}
	}
	if _, err := db.Exec(`DELETE FROM cert_revocations`); err != nil {
		t.Fatal(err)
	}
	if _, ok, _ := s.RevokedSince(t.Context(), "newhost"); ok {
		t.Error("still revoked after the rows were deleted (T9)")
	}
}

func TestARowFromTheRealShellCountsAtOnce(t *testing.T) {
	bin, err := exec.LookPath("sqlite3")
	if err != nil {
		t.Skip("needs the sqlite3 shell")
	}
	s := fresh(t)
	if out, err := exec.Command(bin, s.path, recipe).CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	if _, ok, err := s.RevokedSince(t.Context(), "newhost"); !ok || err != nil {
		t.Errorf("revoked %v, %v", ok, err)
	}
}

func TestTheLatestRevocationCountsAndAnUnreadableOneDenies(t *testing.T) {
	s := fresh(t)
	db := shell(t, s)
	for _, at := range []string{"2026-03-01T12:00:00Z", "2026-02-01 12:00:00", "2026-02-20"} {
		if _, err := db.Exec(`INSERT INTO cert_revocations (hostname, not_before) VALUES ('a', ?)`, at); err != nil {
			t.Fatal(err)
		}
	}
	if at, _, err := s.RevokedSince(t.Context(), "a"); err != nil ||
		!at.Equal(time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)) {
		t.Errorf("latest is %v, %v", at, err)
	}
	for _, bad := range []any{"next tuesday", "", 7, "now", 1772368000123456, []byte{0xff}} {
		if _, err := db.Exec(`INSERT INTO cert_revocations (hostname, not_before) VALUES ('b', ?)`, bad); err != nil {
			t.Fatal(err)
		}
	}
	if at, ok, err := s.RevokedSince(t.Context(), "b"); err != nil || !ok || at.Before(time.Now().AddDate(100, 0, 0)) {
		t.Errorf("unreadable time: %v %v %v", at, ok, err)
	}
}

// TestARevocationInEveryFormOfSQLite: datetime() and we read the same moment.
func TestARevocationInEveryFormOfSQLite(t *testing.T) {
	s := fresh(t)
	db := shell(t, s)
	for _, form := range []string{
		`datetime('2026-03-01 12:30:15')`, `strftime('%Y-%m-%d %H:%M:%f', '2026-03-01 12:30:15.250')`,
		`'2026-03-01T12:30:15.250'`, `'2026-03-01 12:30'`,
		`'2026-03-01T12:30'`, `'2026-03-01'`, `date('2026-03-01')`, `'2026-03-01 12:30:15Z'`, `'2026-03-01 12:30:15+02:00'`,
		`'2026-03-01 12:30:15 -02:00'`,
		`'2026-03-01 12:30+02:00'`, `'2026-03-01T12:30Z'`, `'2026-03-01 12:30 '`, `unixepoch('2026-03-01 12:30:15')`,
		`strftime('%s', '2026-03-01 12:30:15')`,
		`julianday('2026-03-01 12:30:15')`, `CAST(julianday('2026-03-01 12:30:15') AS TEXT)`,
	} {
		if _, err := db.Exec(
			`DELETE FROM cert_revocations; INSERT INTO cert_revocations (hostname, not_before) VALUES ('a', ` + form +
				`)`); err != nil {
			t.Fatal(err)
		}
		var want string
		if err := db.QueryRow(`SELECT strftime('%Y-%m-%d %H:%M:%f', not_before, 'auto') FROM cert_revocations`).
			Scan(&want); err != nil {
			t.Fatalf("%s: %v", form, err)
		}
		if at, ok, err := s.RevokedSince(t.Context(), "a"); err != nil || !ok || text(at) != want {
			t.Errorf("%s: %s %v %v, SQLite reads %s", form, text(at), ok, err, want)
		}
	}
}

func TestATokenIsUsedOnce_T4(t *testing.T) {
	s := fresh(t)
	var wg sync.WaitGroup
	outcomes := make(chan error, 50)
	for range 50 {
		wg.Go(func() { outcomes <- s.UseToken(t.Context(), "nonce", "web-01", time.Now().Add(time.Hour)) })
	}
	wg.Wait()
	close(outcomes)
	won := 0
	for err := range outcomes {
		switch {
		case err == nil:
			won++
		case !errors.Is(err, ErrTokenUsed):
			t.Error(err)
		}
	}
	if won != 1 {
		t.Errorf("%d of 50 concurrent attempts used the token", won)
	}
	if err := s.Prune(t.Context(), time.Now().Add(30*time.Minute)); err != nil {
		t.Fatal(err)
	}
	if used, err := s.TokenUsed(t.Context(), "nonce"); !used || err != nil {
		t.Errorf("forgotten before its time: %v %v", used, err)
	}
	if err := s.Prune(t.Context(), time.Now().Add(2*time.Hour)); err != nil {
		t.Fatal(err)
	}
	if used, _ := s.TokenUsed(t.Context(), "nonce"); used {
		t.Error("kept beyond its time")
	}
}

func TestAFailedOperationLeavesItsGroupAlone(t *testing.T) {
	s := fresh(t)
	block := make(chan struct{})
	s.submit(func(*sql.Tx) error { <-block; return nil })
	bad := s.submit(func(tx *sql.Tx) error {
		if _, err := tx.Exec(`INSERT INTO token_replay VALUES ('lost', 'h', '', '')`); err != nil {
			return err
		}
		return errors.New("no")
	})
	good := s.SubmitRollout(change())
	close(block)
	if err := bad.Wait(t.Context()); err == nil || err.Error() != "no" {
		t.Errorf("the failed operation: %v", err)
	}
	if err := good.Wait(t.Context()); err != nil {
		t.Errorf("its neighbour: %v", err)
	}
	if used, _ := s.TokenUsed(t.Context(), "lost"); used {
		t.Error("the failed operation left a row")
	}
}

func TestAWriteOutlivesItsRequest(t *testing.T) {
	s := fresh(t)
	ctx, cancel := context.WithCancel(t.Context())
	block := make(chan struct{})
	s.submit(func(*sql.Tx) error { <-block; return nil })
	p := s.SubmitRollout(change())
	cancel()
	if err := p.Wait(ctx); !errors.Is(err, context.Canceled) {
		t.Errorf("wait: %v", err)
	}
	close(block)
	if err := s.Prune(t.Context(), t0); err != nil { // queued behind it
		t.Fatal(err)
	}
	if rows, _ := s.Trace(t.Context(), "id2"); len(rows) != 1 {
		t.Errorf("%d rows", len(rows))
	}
}

func TestEveryConnectionHasItsPragmas(t *testing.T) {
	s := fresh(t)
	ask := func(db *sql.DB, want ...string) {
		t.Helper()
		conn, err := db.Conn(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { conn.Close() })
		for i, name := range []string{"synchronous", "journal_mode", "foreign_keys", "busy_timeout", "query_only"} {
			var got string
			if err := conn.QueryRowContext(t.Context(), "PRAGMA "+name).Scan(&got); err != nil || got != want[i] {
				t.Errorf("%s is %s, want %s, %v", name, got, want[i], err)
			}
		}
	}
	ask(s.write, "2", "wal", "1", "10000", "0")
	for range 2 {
		ask(s.read, "2", "wal", "1", "10000", "1")
	}
}

func TestReportsAreARing(t *testing.T) {
	s, verified := fresh(t), "verified"
	for i := range 40 {
		if err := s.AddReport(t.Context(),
			Report{EventID: fmt.Sprint(i), Hostname: "a", Event: "other", ReceivedAt: t0, Verdict: &verified,
				Details: "{}"}); err != nil {
			t.Fatal(err)
		}
	}
	reports, err := s.Reports(t.Context(), "", 100)
	if err != nil || len(reports) != 32 || reports[0].EventID != "39" {
		t.Errorf("%d reports, %v", len(reports), err)
	}
	if reports, err := s.Reports(t.Context(), "b", 100); err != nil || len(reports) != 0 {
		t.Errorf("%d reports of another host, %v", len(reports), err)
	}
	if reports, err := s.Reports(t.Context(), "a", 5); err != nil || len(reports) != 5 {
		t.Errorf("%d reports of the host, %v", len(reports), err)
	}
	if n, err := s.VerifiedReports(t.Context()); err != nil || n["a"] != 32 {
		t.Errorf("%v %v", n, err)
	}
}

func TestEventsResume(t *testing.T) {
	s := fresh(t)
	for range 3 {
		if err := s.SubmitRollout(change()).Wait(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	if events, err := s.Events(t.Context(), "", 1, 10); err != nil || len(events) != 2 || events[0].Seq != 2 {
		t.Errorf("%+v %v", events, err)
	}
}

func TestHistoryIsReadBackwards(t *testing.T) {
	s := fresh(t)
	for range 3 {
		if err := s.SubmitRollout(change()).Wait(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	events, err := s.History(t.Context(), protocol.HistoryQuery{Limit: 2})
	if err != nil || len(events) != 2 || events[0].Seq != 3 || events[1].Seq != 2 {
		t.Fatalf("the newest two: %+v %v", events, err)
	}
	first := events[0]
	for _, c := range []struct {
		query protocol.HistoryQuery
		want  int
	}{
		{protocol.HistoryQuery{Before: 3}, 2},
		{protocol.HistoryQuery{Channel: first.Channel, Kind: first.Kind}, 3},
		{protocol.HistoryQuery{Channel: "none"}, 0},
		{protocol.HistoryQuery{Host: "none"}, 0},
		{protocol.HistoryQuery{Kind: "none"}, 0},
		{protocol.HistoryQuery{Actor: "none"}, 0},
		{protocol.HistoryQuery{Rollout: strings.Repeat("0", 64)}, 0},
	} {
		c.query.Limit = 10
		if events, err := s.History(t.Context(), c.query); err != nil || len(events) != c.want {
			t.Errorf("%+v: %d events, want %d, %v", c.query, len(events), c.want, err)
		}
	}
}

func TestAuditLogIsReadBackwards(t *testing.T) {
	s := fresh(t)
	for _, subject := range []string{"a", "b", "c"} {
		if err := s.Audit(t.Context(), AuditEntry{At: t0, Actor: "jo", Action: "retry", Subject: subject}); err != nil {
			t.Fatal(err)
		}
	}
	entries, err := s.AuditLog(t.Context(), 0, 2)
	if err != nil || len(entries) != 2 || entries[0].Subject != "c" || !entries[0].At.Equal(t0) {
		t.Fatalf("%+v %v", entries, err)
	}
	if entries, err = s.AuditLog(t.Context(), entries[1].Seq, 2); err != nil || len(entries) != 1 ||
		entries[0].Subject != "a" {
		t.Errorf("%+v %v", entries, err)
	}
}

func TestBackupWhileWriting(t *testing.T) {
	s := fresh(t)
	if err := s.SubmitRollout(change()).Wait(t.Context()); err != nil {
		t.Fatal(err)
	}
	written := make(chan int)
	stop := make(chan struct{})
	go func() {
		for n := 0; ; n++ {
			select {
			case <-stop:
				written <- n
				return
			default:
				if err := s.UseToken(t.Context(), fmt.Sprint(n), "h", time.Now().Add(time.Hour)); err != nil {
					t.Error(err)
				}
				time.Sleep(100 * time.Microsecond) // a fast disk makes no larger test
			}
		}
	}()
	for i := range 5 {
		to := filepath.Join(t.TempDir(), "backup.db")
		if err := s.Backup(t.Context(), to); err != nil {
			t.Fatal(err)
		}
		if info, err := os.Stat(to); err != nil || info.Mode().Perm() != 0o600 {
			t.Errorf("%v %v", info, err)
		}
		if st, err := open(t, to).LoadRollouts(t.Context()); err != nil || len(st.Rollouts) != 1 {
			t.Errorf("backup %d: %d rollouts, %v", i, len(st.Rollouts), err)
		}
	}
	close(stop)
	if n := <-written; n == 0 {
		t.Error("nothing could be written during the backups")
	}
}

func TestABackupReplacesNothing(t *testing.T) {
	s := fresh(t)
	to := filepath.Join(t.TempDir(), "backup.db")
	for path, content := range map[string]string{to: "precious", to + ".tmp": "left over"} {
		if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if err := s.Backup(t.Context(), to); !errors.Is(err, fs.ErrExist) {
		t.Errorf("over an existing file: %v", err)
	}
	if left, _ := os.ReadFile(to); string(left) != "precious" {
		t.Error("the file was replaced")
	}
	if err := BackupFile(t.Context(), filepath.Join(t.TempDir(), "none.db"), to+"2"); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("of nothing: %v", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := s.Backup(ctx, to+"3"); err == nil {
		t.Error("a cancelled backup succeeded")
	}
	if left, _ := exists(to + "3"); left {
		t.Error("a cancelled backup left a file")
	}
}

func TestClosedStoreSaysSo(t *testing.T) {
	s := fresh(t)
	s.Close()
	if err := s.SubmitRollout(change()).Wait(t.Context()); !errors.Is(err, ErrClosed) {
		t.Error(err)
	}
}

// BenchmarkGroupCommit commits what a commit as a rule holds, which rows of twins and of freezes are not.
func BenchmarkGroupCommit(b *testing.B) {
	s := fresh(b)
	b.SetParallelism(64)
	b.RunParallel(func(pb *testing.PB) {
		for pb.Next() {
			c := change()
			c.Twins, c.Freezes = nil, nil
			if err := s.SubmitRollout(c).Wait(b.Context()); err != nil {
				b.Fatal(err)
			}
		}
	})
}

func BenchmarkRevokedSince(b *testing.B) {
	s := fresh(b)
	for b.Loop() {
		if _, _, err := s.RevokedSince(b.Context(), "web-01"); err != nil {
			b.Fatal(err)
		}
	}
}

func TestAFileThatWasReplacedIsNoticed(t *testing.T) {
	s := fresh(t)
	if s.Displaced() {
		t.Error("displaced from the beginning")
	}
	backup := backedUp(t, s)
	if s.Displaced() {
		t.Error("displaced by a backup")
	}
	if err := os.Rename(backup, s.path); err != nil {
		t.Fatal(err)
	}
	if !s.Displaced() {
		t.Error("a backup in its place is not noticed")
	}
	if err := os.Remove(s.path); err != nil {
		t.Fatal(err)
	}
	if !s.Displaced() {
		t.Error("its absence is not noticed")
	}
}
