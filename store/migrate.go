package store

import (
	"context"
	"database/sql"
	"embed"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"sort"
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

// ErrDamaged: the file is no database that can be read.
var ErrDamaged = errors.New("the database is damaged; restore a backup, or move the file away: it is rebuilt from the agents within one check-in cycle")

type migration struct {
	number int
	sql    string
}

func migrations(fsys fs.FS) ([]migration, error) {
	names, err := fs.Glob(fsys, "*.sql")
	if err != nil {
		return nil, err
	}
	sort.Strings(names)
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

// copyBefore is the copy that is taken before migration number.
func copyBefore(path string, number int) string {
	return fmt.Sprintf("%s.before-%04d", path, number)
}

func migrate(ctx context.Context, path string, cfg Config) error {
	list, err := migrations(cfg.migrations)
	if err != nil {
		return err
	}
	newest := len(list)
	db, err := sql.Open("sqlite3", dsn(path, false))
	if err != nil {
		return err
	}
	db.SetMaxOpenConns(1)
	defer func() { db.Close() }()
	version, err := schemaVersion(ctx, db)
	if err != nil {
		return err
	}
	if version > newest {
		if err := db.Close(); err != nil {
			return err
		}
		cfg.Log.Warn().Int("schema", version).Int("known", newest).Msg("database of a newer nixfleet set aside")
		if err := setAside(ctx, path, version, newest); err != nil {
			return fmt.Errorf("set aside database with schema %d: %w", version, err)
		}
		return migrate(ctx, path, cfg)
	}
	for _, m := range list[version:] {
		if version > 0 {
			if err := copyDatabase(ctx, db, copyBefore(path, m.number)); err != nil {
				return fmt.Errorf("copy before migration %d: %w", m.number, err)
			}
		}
		if err := apply(ctx, db, m); err != nil {
			return fmt.Errorf("migration %d: %w", m.number, err)
		}
		version = m.number
	}
	return nil
}

func schemaVersion(ctx context.Context, db *sql.DB) (int, error) {
	var version int
	if err := db.QueryRowContext(ctx, "PRAGMA user_version").Scan(&version); err != nil {
		return 0, fmt.Errorf("%w (%w)", ErrDamaged, err)
	}
	var verdict string
	if err := db.QueryRowContext(ctx, "PRAGMA quick_check(1)").Scan(&verdict); err != nil {
		return 0, fmt.Errorf("%w (%w)", ErrDamaged, err)
	}
	if verdict != "ok" {
		return 0, fmt.Errorf("%w (%s)", ErrDamaged, verdict)
	}
	return version, nil
}

func apply(ctx context.Context, db *sql.DB, m migration) error {
	tx, err := db.BeginTx(ctx, nil)
	if err != nil {
		return err
	}
	defer tx.Rollback()
	if _, err := tx.ExecContext(ctx, m.sql); err != nil {
		return err
	}
	if _, err := tx.ExecContext(ctx, "PRAGMA user_version = "+strconv.Itoa(m.number)); err != nil {
		return err
	}
	return tx.Commit()
}

// copyDatabase writes a consistent copy and flushes it. An older copy of the
// same name is replaced only by a whole one.
func copyDatabase(ctx context.Context, db *sql.DB, to string) error {
	tmp := to + ".tmp"
	if err := os.Remove(tmp); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if _, err := db.ExecContext(ctx, "VACUUM INTO ?", tmp); err != nil {
		return err
	}
	return publish(tmp, to)
}

// publish flushes tmp and renames it.
func publish(tmp, to string) error {
	f, err := os.Open(tmp)
	if err != nil {
		return err
	}
	err = errors.Join(f.Sync(), f.Close())
	if err == nil {
		err = os.Chmod(tmp, 0o600)
	}
	if err == nil {
		err = os.Rename(tmp, to)
	}
	if err != nil {
		return err
	}
	dir, err := os.Open(filepath.Dir(to))
	if err != nil {
		return err
	}
	return errors.Join(dir.Sync(), dir.Close())
}

// setAside renames a database of a newer schema and goes on from the newest
// copy that is not newer than known; without one it starts empty. Revocations
// and used tokens are carried over: their loss would let somebody in.
func setAside(ctx context.Context, path string, version, known int) error {
	aside := fmt.Sprintf("%s.schema-%d", path, version)
	if err := checkpoint(ctx, path); err != nil {
		return err
	}
	for _, suffix := range []string{"", "-wal", "-shm"} {
		if err := os.Rename(path+suffix, aside+suffix); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	if copied, err := os.ReadFile(copyBefore(path, known+1)); err == nil {
		if err := os.WriteFile(path+".tmp", copied, 0o600); err != nil {
			return err
		}
		if err := publish(path+".tmp", path); err != nil {
			return err
		}
	} else if !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	db, err := sql.Open("sqlite3", dsn(path, false))
	if err != nil {
		return err
	}
	defer db.Close()
	db.SetMaxOpenConns(1)
	list, err := migrations(embedded)
	if err != nil {
		return err
	}
	if have, err := schemaVersion(ctx, db); err != nil {
		return err
	} else if have == 0 {
		if err := apply(ctx, db, list[0]); err != nil {
			return err
		}
	}
	if _, err := db.ExecContext(ctx, "ATTACH ? AS newer", aside); err != nil {
		return err
	}
	for _, carry := range []string{
		`INSERT INTO cert_revocations (hostname, not_before, reason, revoked_by, revoked_at)
		 SELECT hostname, not_before, reason, revoked_by, revoked_at FROM newer.cert_revocations
		 EXCEPT SELECT hostname, not_before, reason, revoked_by, revoked_at FROM main.cert_revocations`,
		`INSERT OR IGNORE INTO token_replay (nonce, hostname, used_at, keep_until)
		 SELECT nonce, hostname, used_at, keep_until FROM newer.token_replay`,
	} {
		if _, err := db.ExecContext(ctx, carry); err != nil {
			return err
		}
	}
	return nil
}

// checkpoint brings the log into the file, so that the file alone is whole.
func checkpoint(ctx context.Context, path string) error {
	db, err := sql.Open("sqlite3", dsn(path, false))
	if err != nil {
		return err
	}
	defer db.Close()
	_, err = db.ExecContext(ctx, "PRAGMA wal_checkpoint(TRUNCATE)")
	return err
}
