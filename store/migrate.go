package store

import (
	"cmp"
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

// migrate brings the file to the newest schema of cfg.migrations, and reports whether
// another file took the place of a newer one.
func migrate(ctx context.Context, path string, cfg Config) (replaced bool, err error) {
	list, err := migrations(cfg.migrations)
	if err != nil {
		return false, err
	}
	version, err := upgrade(ctx, path, list, func(db *sql.DB, number int) error {
		return copyDatabase(ctx, db, copyBefore(path, number))
	})
	if err != nil || version <= len(list) {
		return false, err
	}
	aside, err := setAside(ctx, path, version, list)
	if err != nil {
		return false, fmt.Errorf("set aside schema %d, known is %d: %w", version, len(list), err)
	}
	cfg.Log.Warn().Int("schema", version).Int("known", len(list)).Str("file", aside).
		Msg("database of a newer nixfleet set aside")
	return true, nil
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
			return 0, fmt.Errorf("%w (%w)", cmp.Or(kindOf(err), ErrDamaged), err)
		}
	}
	switch {
	case verdict != "ok":
		return 0, fmt.Errorf("%w (%s)", ErrDamaged, verdict)
	case version == 0 && tables == 0 && application == 0:
		return 0, nil
	case application == 0 && version == 0:
		return 0, fromDump(ctx, db)
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

// shapeOf is what a schema looks like, without the words in which it was written.
func shapeOf(ctx context.Context, db *sql.DB) (shape string, err error) {
	err = db.QueryRowContext(ctx, `SELECT group_concat(line, char(10)) FROM (
		SELECT m.type || ' ' || m.name || ' ' || coalesce(c.name, '') || ' ' || coalesce(c.type, '') AS line
		FROM sqlite_master m LEFT JOIN pragma_table_info(m.name) c WHERE m.name NOT LIKE 'sqlite_%' ORDER BY 1)`).Scan(&shape)
	return shape, err
}

// fromDump tells a database of ours that went through .dump, which leaves out the two
// numbers that mark it, from one of another program.
func fromDump(ctx context.Context, db *sql.DB) error {
	shape, err := shapeOf(ctx, db)
	if err != nil {
		return named(err)
	}
	list, err := migrations(embedded)
	if err != nil {
		return err
	}
	model, err := sql.Open("sqlite3", ":memory:")
	if err != nil {
		return err
	}
	defer model.Close()
	model.SetMaxOpenConns(1)
	for _, m := range list {
		if _, err := model.ExecContext(ctx, m.sql); err != nil {
			return err
		}
		if modelled, err := shapeOf(ctx, model); err != nil {
			return err
		} else if modelled == shape {
			return &dumped{m.number}
		}
	}
	return ErrForeign
}

// dumped is ErrDump with the number of its schema.
type dumped struct{ schema int }

func (d *dumped) Error() string { return ErrDump.Error() }
func (d *dumped) Unwrap() error { return ErrDump }

// Hint is the command that puts the marks back.
func (d *dumped) Hint() string {
	return fmt.Sprintf("mark it as what it is: sqlite3 FILE 'PRAGMA application_id=%d; PRAGMA user_version=%d'",
		applicationID, d.schema)
}
