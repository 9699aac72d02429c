package store

import (
	"database/sql"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/fstest"
	"time"

	"github.com/rs/zerolog"
)

// later are migrations that nixfleet does not have yet.
var later = []string{
	"CREATE TABLE second (x TEXT) STRICT; INSERT INTO second VALUES ('kept');",
	"ALTER TABLE second ADD COLUMN y TEXT NOT NULL DEFAULT 'new'; DROP TABLE audit;",
}

// known is how many migrations this version has.
func known(t testing.TB) int {
	t.Helper()
	list, err := migrations(embedded)
	if err != nil {
		t.Fatal(err)
	}
	return len(list)
}

// upTo is the embedded migrations and the first n of later.
func upTo(t testing.TB, n int) fstest.MapFS {
	t.Helper()
	list, err := migrations(embedded)
	if err != nil {
		t.Fatal(err)
	}
	fsys := fstest.MapFS{}
	for _, m := range list {
		fsys[fmt.Sprintf("%04d_m.sql", m.number)] = &fstest.MapFile{Data: []byte(m.sql)}
	}
	for i := range n {
		fsys[fmt.Sprintf("%04d_m.sql", len(list)+1+i)] = &fstest.MapFile{Data: []byte(later[i])}
	}
	return fsys
}

// firstOnly is a prefix of the migrations.
func firstOnly(fsys fstest.MapFS, n int) fstest.MapFS {
	out := fstest.MapFS{}
	for i := range n {
		name := fmt.Sprintf("%04d_m.sql", i+1)
		out[name] = fsys[name]
	}
	return out
}

func openWith(t testing.TB, path string, migrations fs.FS) *Store {
	t.Helper()
	s, err := Open(t.Context(), Config{Path: path, Log: zerolog.Nop(), migrations: migrations})
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func refused(t testing.TB, path string, migrations fs.FS) error {
	t.Helper()
	s, err := Open(t.Context(), Config{Path: path, Log: zerolog.Nop(), migrations: migrations})
	if err == nil {
		s.Close()
		t.Fatal("opened")
	}
	return err
}

func schemaOf(t testing.TB, path string) int {
	t.Helper()
	db, err := connect(path)
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	version, err := inspect(t.Context(), db)
	if err != nil {
		t.Fatal(err)
	}
	return version
}

func TestTheFixedTablesHaveTheirColumns(t *testing.T) {
	s := fresh(t)
	for table, want := range map[string]string{
		"pending_confirms": "id hostname rollout_id channel wave target_closure_hash target_channel_ref state " +
			"dispatched_at confirm_deadline confirmed_at",
		"cert_revocations": "hostname not_before reason revoked_by revoked_at",
		"token_replay":     "nonce hostname used_at keep_until",
	} {
		var got string
		if err := s.read.QueryRow(`SELECT group_concat(name, ' ') FROM pragma_table_info(?)`, table).Scan(&got); err != nil ||
			got != want {
			t.Errorf("%s: %s, %v", table, got, err)
		}
	}
}

// Every migration comment says how the table comes back.
func TestEachTableSaysHowItIsRebuilt(t *testing.T) {
	list, err := migrations(embedded)
	if err != nil {
		t.Fatal(err)
	}
	for _, m := range list {
		comment := ""
		for line := range strings.Lines(m.sql) {
			switch {
			case strings.HasPrefix(line, "--"):
				comment += line
			case strings.HasPrefix(line, "CREATE TABLE ") && !strings.Contains(comment, "-- Lost:"):
				t.Errorf("migration %d: no \"-- Lost:\" before %s", m.number, line)
			default:
				comment = ""
			}
		}
	}
}

func TestEachOlderSchemaIsUpgraded(t *testing.T) {
	all := upTo(t, len(later))
	for from := 1; from <= len(all); from++ {
		path := filepath.Join(t.TempDir(), "state.db")
		old := openWith(t, path, firstOnly(all, from))
		if err := fill(t, old, from); err != nil {
			t.Fatal(err)
		}
		old.Close()
		s := openWith(t, path, all)
		if st, err := s.LoadRollouts(t.Context()); err != nil || len(st.Rollouts) != 1 || len(st.Dispatches) != 1 {
			t.Errorf("from %d: %+v, %v", from, st, err)
		}
		var x, y string
		if err := s.read.QueryRow(`SELECT x, y FROM second`).Scan(&x, &y); err != nil || x != "kept" || y != "new" {
			t.Errorf("from %d: %q %q %v", from, x, y, err)
		}
		s.Close()
		for number := 1; number <= len(all); number++ {
			made, err := exists(copyBefore(path, number))
			if err != nil || made != (number > from) {
				t.Errorf("from %d: copy before %d: %v %v", from, number, made, err)
			}
			if made && schemaOf(t, copyBefore(path, number)) != number-1 {
				t.Errorf("from %d: copy before %d has schema %d", from, number, schemaOf(t, copyBefore(path, number)))
			}
		}
	}
}

// fill writes a rollout and a dispatch as a program of that schema did.
func fill(t *testing.T, s *Store, schema int) error {
	if schema >= known(t) {
		return s.SubmitRollout(change()).Wait(t.Context())
	}
	rows, err := os.ReadFile(fmt.Sprintf("testdata/schema-%d.sql", schema))
	if err == nil {
		_, err = s.write.Exec(string(rows))
	}
	return err
}

func TestAFailedMigrationChangesNothing(t *testing.T) {
	path := filepath.Join(t.TempDir(), "state.db")
	openWith(t, path, nil).Close()
	bad := upTo(t, 1)
	next := known(t) + 1
	bad[fmt.Sprintf("%04d_m.sql", next)] = &fstest.MapFile{Data: []byte("CREATE TABLE half (x TEXT); SELECT nonsense;")}
	if err := refused(t, path, bad); !strings.Contains(err.Error(), fmt.Sprintf("migration %d", next)) {
		t.Fatalf("error %v", err)
	}
	s := open(t, path)
	var n int
	if err := s.read.QueryRow(`SELECT count(*) FROM sqlite_master WHERE name = 'half'`).Scan(&n); err != nil || n != 0 {
		t.Errorf("%d tables of the failed migration, %v", n, err)
	}
}

func TestMigrationsAreNumberedWithoutAGap(t *testing.T) {
	for _, names := range [][]string{{"0002_a.sql"}, {"0001_a.sql", "0003_b.sql"}, {"0001_a.sql", "0001_b.sql"},
		{"first.sql"}} {
		fsys := fstest.MapFS{}
		for _, name := range names {
			fsys[name] = &fstest.MapFile{}
		}
		if _, err := migrations(fsys); err == nil {
			t.Errorf("%v pass", names)
		}
	}
}

// newer is a database with one or two migrations more than known, in which things happened that an older
// nixfleet must not forget.
func newer(t *testing.T, extra int) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "state.db")
	s := openWith(t, path, nil)
	if err := s.SubmitRollout(change()).Wait(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := s.Revoke(t.Context(), Revocation{Hostname: "forgiven", NotBefore: t0}, AuditEntry{At: t0}); err != nil {
		t.Fatal(err)
	}
	s.Close()
	s = openWith(t, path, upTo(t, extra))
	if err := s.UseToken(t.Context(), "n", "h", time.Now().Add(time.Hour)); err != nil {
		t.Fatal(err)
	}
	if _, err := s.write.Exec(
		`DELETE FROM cert_revocations; INSERT INTO cert_revocations (hostname, not_before) VALUES ('h', 'gibberish')`); err != nil {
		t.Fatal(err)
	}
	s.Close()
	return path
}

// remembers checks what every way back to an older schema must keep.
func remembers(t *testing.T, path string, rollouts int) {
	t.Helper()
	s := openWith(t, path, nil)
	defer s.Close()
	if st, err := s.LoadRollouts(t.Context()); err != nil || len(st.Rollouts) != rollouts {
		t.Errorf("%d rollouts, want %d, %v", len(st.Rollouts), rollouts, err)
	}
	if used, err := s.TokenUsed(t.Context(), "n"); !used || err != nil {
		t.Errorf("a used token was forgotten: %v", err)
	}
	if at, ok, err := s.RevokedSince(t.Context(), "h"); !ok || !at.Equal(lastMoment) || err != nil {
		t.Errorf("a revocation was forgotten: %v %v", at, err)
	}
	if _, ok, _ := s.RevokedSince(t.Context(), "forgiven"); ok {
		t.Error("a revocation that was taken back is in force again (T9)")
	}
	if schemaOf(t, path) != known(t) {
		t.Errorf("schema %d", schemaOf(t, path))
	}
}

func TestANewerSchemaIsSetAside(t *testing.T) {
	for extra := 1; extra <= len(later); extra++ {
		path := newer(t, extra)
		remembers(t, path, 1)
		aside := fmt.Sprintf("%s.schema-%d", path, known(t)+extra)
		if got := schemaOf(t, aside); got != known(t)+extra {
			t.Errorf("set aside: schema %d", got)
		}
		// Up and down once more: the first file that was set aside stays.
		openWith(t, path, upTo(t, extra)).Close()
		remembers(t, path, 1)
		if got := schemaOf(t, aside+".2"); got != known(t)+extra {
			t.Errorf("second set aside: schema %d", got)
		}
		if got := schemaOf(t, aside); got != known(t)+extra {
			t.Errorf("first set aside is gone: schema %d", got)
		}
	}
}

func TestSettingAsideWithoutAWholeCopyStartsEmpty(t *testing.T) {
	for name, spoil := range map[string]func(copied string) error{
		"no copy":      os.Remove,
		"empty copy":   func(c string) error { return os.Truncate(c, 0) },
		"half a copy":  func(c string) error { return os.Truncate(c, 5000) },
		"no database":  func(c string) error { return os.WriteFile(c, []byte(strings.Repeat("x", 9000)), 0o600) },
		"foreign copy": func(c string) error { return foreign(c, 0) },
	} {
		t.Run(name, func(t *testing.T) {
			path := newer(t, 1)
			if err := spoil(copyBefore(path, known(t)+1)); err != nil {
				t.Fatal(err)
			}
			remembers(t, path, 0)
		})
	}
}

// A crash while setting aside leaves these behind.
func TestSettingAsideIsTakenUpAfterACrash(t *testing.T) {
	path := newer(t, 1)
	for _, suffix := range []string{".next", ".next-wal", ".next-shm", ".next-journal"} {
		if err := os.WriteFile(path+suffix, []byte("half"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	aside := fmt.Sprintf("%s.schema-%d", path, known(t)+1)
	if err := os.Link(path, aside); err != nil {
		t.Fatal(err)
	}
	remembers(t, path, 1)
	if again, _ := exists(aside + ".2"); again {
		t.Error("set aside under two names")
	}
}

func TestSettingAsideRefusesToForget(t *testing.T) {
	path := newer(t, 1)
	db, err := connect(path)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := db.Exec(`ALTER TABLE token_replay RENAME COLUMN nonce TO jti`); err != nil {
		t.Fatal(err)
	}
	db.Close()
	if err := refused(t, path, nil); !errors.Is(err, ErrDowngrade) {
		t.Errorf("error %v", err)
	}
	if schemaOf(t, path) != known(t)+1 {
		t.Error("the newer file was touched")
	}
}

func TestSettingAsideRefusesAFileInUse(t *testing.T) {
	path := newer(t, 1)
	// A shell has it open; a control plane could not be beside another one at all.
	user, err := connect(path)
	if err != nil {
		t.Fatal(err)
	}
	defer user.Close()
	const use = `INSERT INTO token_replay VALUES (?, 'h', '', '')`
	if _, err := user.Exec(use, "first"); err != nil {
		t.Fatal(err)
	}
	if err := refused(t, path, nil); !errors.Is(err, ErrDowngrade) {
		t.Errorf("error %v", err)
	}
	if _, err := user.Exec(use, "still"); err != nil {
		t.Errorf("the user of the file: %v", err)
	}
}

// foreign makes a database of another program.
func foreign(path string, version int) error {
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	db, err := sql.Open("sqlite3", path)
	if err != nil {
		return err
	}
	_, err = db.Exec(
		fmt.Sprintf(`CREATE TABLE cert_revocations (hostname TEXT PRIMARY KEY, not_before TEXT); PRAGMA user_version = %d`,
			version))
	return errors.Join(err, db.Close())
}

func TestRefusedFilesAreLeftAsTheyWere(t *testing.T) {
	whole := filepath.Join(t.TempDir(), "whole.db")
	s := openWith(t, whole, nil)
	for i := range 200 {
		if err := s.UseToken(t.Context(), fmt.Sprint("nonce ", i, strings.Repeat(".", 100)), "h", time.Now()); err != nil {
			t.Fatal(err)
		}
	}
	s.Close()
	good, err := os.ReadFile(whole)
	if err != nil {
		t.Fatal(err)
	}
	scribbled := append([]byte(nil), good...)
	for i := 4096; i < len(scribbled); i += 97 {
		scribbled[i] ^= 0x55
	}
	files := map[string][]byte{
		"text":      []byte(strings.Repeat("no database ", 100)),
		"header":    []byte("SQLite format 3\x00" + strings.Repeat("\x00", 200)),
		"truncated": good[:len(good)/2],
		"scribbled": scribbled,
	}
	for name, version := range map[string]int{"foreign": 0, "foreign and newer": 900} {
		path := filepath.Join(t.TempDir(), "other.db")
		if err := foreign(path, version); err != nil {
			t.Fatal(err)
		}
		if files[name], err = os.ReadFile(path); err != nil {
			t.Fatal(err)
		}
	}
	for name := range maps.Keys(files) {
		path := filepath.Join(t.TempDir(), "state.db")
		if err := os.WriteFile(path, files[name], 0o600); err != nil {
			t.Fatal(err)
		}
		want := ErrDamaged
		if strings.HasPrefix(name, "foreign") {
			want = ErrForeign
		}
		err := refused(t, path, nil)
		var hinted interface{ Hint() string }
		if !errors.Is(err, want) || !errors.As(err, &hinted) || hinted.Hint() == "" {
			t.Errorf("%s: %v", name, err)
		}
		if left, err := os.ReadFile(path); err != nil || string(left) != string(files[name]) {
			t.Errorf("%s was touched: %v", name, err)
		}
	}
	if err := refused(t, t.TempDir(), nil); err == nil {
		t.Error("a directory was opened")
	}
}
