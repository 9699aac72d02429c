package store

import (
	"context"
	"database/sql"
	"embed"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"slices"
	"strconv"
	"strings"
)

//go:embed migrations/*.sql
var embeddedFiles embed.FS

var embedded = func() fs.FS {
	sub, err := fs.Sub(embeddedFiles, "migrations")
	if err != nil {
		panic(err)
	}
	return sub
}()

// applicationID marks our files; the first migration sets it ('nixf').
const applicationID = 0x6e697866

// refusal is an error that says what its reader can do next.
type refusal struct{ text, hint string }

func (r *refusal) Error() string { return r.text }

// Hint is one line, lowercase, without a full stop.
func (r *refusal) Hint() string { return r.hint }

// Why a file is refused; test with errors.Is.
var (
	// ErrDamaged means that the file is not a database that can be read.
	ErrDamaged error = &refusal{"the database is damaged",
		"restore a backup, or move the file away: all but local revocations, used tokens and holds comes back within one " +
			"check-in cycle"}
	// ErrForeign means that the file is a database of some other program, a v1 control
	// plane included.
	ErrForeign error = &refusal{"not a database of this program",
		"move the file away or give another one; revocations in its table cert_revocations must be entered again, with " +
			"nixfleet revoke"}
	// ErrDowngrade means that the database of a newer nixfleet cannot be set aside without
	// forgetting revocations or used tokens, or while another program has it open.
	ErrDowngrade error = &refusal{"the database of a newer nixfleet cannot be set aside",
		"run the newer nixfleet again, or close what else has the database open"}
)

type migration struct {
	number int
	sql    string
}

// migrations reads NNNN_name.sql, numbered from 1 without a gap.
func migrations(fsys fs.FS) ([]migration, error) {
	names, err := fs.Glob(fsys, "*.sql")
	if err != nil {
		return nil, err
	}
	slices.Sort(names)
	var list []migration
	for i, name := range names {
		digits, _, _ := strings.Cut(name, "_")
		number, err := strconv.Atoi(digits)
		if err != nil || number != i+1 {
			return nil, fmt.Errorf("migration %s is out of order", name)
		}
		sql, err := fs.ReadFile(fsys, name)
		if err != nil {
			return nil, err
		}
		list = append(list, migration{number, string(sql)})
	}
	return list, nil
}

// copyBefore is the copy that is taken before migration number: its schema is
// number-1.
func copyBefore(path string, number int) string {
	return fmt.Sprintf("%s.before-%04d", path, number)
}

// connect opens one connection, for work that ends before anybody else's
// begins. It leaves the journal mode alone: the file may be another program's.
func connect(path string) (*sql.DB, error) {
	db, err := sql.Open("sqlite3", dsn(path, nil))
	if err == nil {
		db.SetMaxOpenConns(1)
	}
	return db, err
}

// migrate brings the file to the newest schema of cfg.migrations.
func migrate(ctx context.Context, path string, cfg Config) error {
	list, err := migrations(cfg.migrations)
	if err != nil {
		return err
	}
	version, err := upgrade(ctx, path, list, func(db *sql.DB, number int) error {
		return copyDatabase(ctx, db, copyBefore(path, number))
	})
	if err != nil || version <= len(list) {
		return err
	}
	aside, err := setAside(ctx, path, version, list)
	if err != nil {
		return fmt.Errorf("set aside schema %d, known is %d: %w", version, len(list), err)
	}
	cfg.Log.Warn().Int("schema", version).Int("known", len(list)).Str("file", aside).
		Msg("database of a newer nixfleet set aside")
	return nil
}

// upgrade applies what is missing and returns the schema that the file has
// then. keep, unless nil, is called before each migration of a file that has
// something to lose. A schema that is newer than the list is left alone.
func upgrade(ctx context.Context, path string, list []migration,
	keep func(*sql.DB, int) error) (version int, err error) {
	db, err := connect(path)
	if err != nil {
		return 0, err
	}
	defer func() { err = errors.Join(err, db.Close()) }()
	if version, err = inspect(ctx, db); err != nil {
		return 0, err
	}
	hasData := version > 0
	for version < len(list) {
		m := list[version]
		if hasData && keep != nil {
			if err := keep(db, m.number); err != nil {
				return 0, fmt.Errorf("copy before migration %d: %w", m.number, err)
			}
		}
		if err := apply(ctx, db, m); err != nil {
			return 0, fmt.Errorf("migration %d: %w", m.number, err)
		}
		version = m.number
	}
	return version, nil
}

// inspect returns the schema's number, 0 for an empty file, and refuses what
// is damaged or not ours.
func inspect(ctx context.Context, db *sql.DB) (version int, err error) {
	var application, tables int
	var verdict string
	for _, ask := range []struct {
		query string
		to    any
	}{
		{"PRAGMA user_version", &version}, {"PRAGMA application_id", &application},
		{"SELECT count(*) FROM sqlite_master", &tables}, {"PRAGMA quick_check(1)", &verdict},
	} {
		if err := db.QueryRowContext(ctx, ask.query).Scan(ask.to); err != nil {
			if ctx.Err() != nil {
				return 0, err
			}
			return 0, fmt.Errorf("%w (%w)", ErrDamaged, err)
		}
	}
	switch {
	case verdict != "ok":
		return 0, fmt.Errorf("%w (%s)", ErrDamaged, verdict)
	case version == 0 && tables == 0 && application == 0:
		return 0, nil
	case application != applicationID || version < 1:
		return 0, ErrForeign
	}
	return version, nil
}

// apply runs one migration in a transaction, unless another process was faster.
func apply(ctx context.Context, db *sql.DB, m migration) error {
	tx, err := db.BeginTx(ctx, nil)
	if err != nil {
		return err
	}
	// After a commit there is nothing left to roll back.
	defer func() { _ = tx.Rollback() }()
	var version int
	if err := tx.QueryRowContext(ctx, "PRAGMA user_version").Scan(&version); err != nil || version >= m.number {
		return err
	}
	if _, err := tx.ExecContext(ctx, m.sql); err != nil {
		return err
	}
	if _, err := tx.ExecContext(ctx, "PRAGMA user_version = "+strconv.Itoa(m.number)); err != nil {
		return err
	}
	return tx.Commit()
}

// exists is false only for a file that is not there.
func exists(path string) (bool, error) {
	_, err := os.Lstat(path)
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	return err == nil, err
}
