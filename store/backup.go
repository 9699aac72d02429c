package store

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"time"
)

// Backup writes a consistent copy to path while the store is in use. A file
// that exists is not replaced.
func (s *Store) Backup(ctx context.Context, path string) error {
	return BackupFile(ctx, s.path, path)
}

// BackupFile copies the database at from, which a running control plane may
// have open, to path.
func BackupFile(ctx context.Context, from, path string) error {
	if _, err := os.Stat(from); err != nil {
		return fmt.Errorf("back up: %w", err)
	}
	db, err := connect(from)
	if err != nil {
		return fmt.Errorf("back up %s: %w", from, err)
	}
	defer db.Close()
	if path, err = filepath.Abs(path); err != nil {
		return fmt.Errorf("back up: %w", err)
	}
	if taken, err := exists(path); err != nil {
		return fmt.Errorf("back up: %w", err)
	} else if taken {
		return fmt.Errorf("back up to %s: %w", path, fs.ErrExist)
	}
	if err := copyDatabase(ctx, db, path); err != nil {
		return fmt.Errorf("back up to %s: %w", path, err)
	}
	return nil
}

// copyDatabase writes a consistent copy and flushes it. An older copy of the
// same name is replaced only by a whole one.
func copyDatabase(ctx context.Context, db *sql.DB, to string) error {
	tmp := to + ".tmp"
	if err := os.Remove(tmp); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	// SQLite fills an empty file; one of its own making others could read.
	f, err := os.OpenFile(tmp, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	if err = f.Close(); err == nil {
		_, err = db.ExecContext(ctx, "VACUUM INTO ?", tmp)
	}
	if err == nil {
		err = unstamp(ctx, tmp)
	}
	if err == nil {
		err = publish(tmp, to)
	}
	if err != nil {
		// The half-made copy may not even exist.
		_ = os.Remove(tmp)
	}
	return err
}

// unstamp makes a copy belong to no opening: a log that is found beside it one day
// is another file's.
func unstamp(ctx context.Context, path string) error {
	db, err := connect(path)
	if err != nil {
		return err
	}
	has, err := hasEpochs(ctx, db)
	if err == nil && has {
		_, err = db.ExecContext(ctx, `DELETE FROM opened`)
	}
	return errors.Join(err, db.Close())
}

// publish flushes tmp and renames it.
func publish(tmp, to string) error {
	f, err := os.Open(tmp)
	if err != nil {
		return err
	}
	if err := errors.Join(f.Chmod(0o600), f.Sync(), f.Close()); err != nil {
		return err
	}
	if err := os.Rename(tmp, to); err != nil {
		return err
	}
	dir, err := os.Open(filepath.Dir(to))
	if err != nil {
		return err
	}
	return errors.Join(dir.Sync(), dir.Close())
}

// How long rows stay for people to read.
const (
	keepEnded      = 90 * 24 * time.Hour // dispatches, events, reports, ended rollouts
	keepSuperseded = 7 * 24 * time.Hour  // host rows of superseded rollouts, which nothing reads
)

// Prune forgets used tokens whose time is over, and what people may want to
// read after 90 days. The newest rollout of each channel and the newest
// dispatch of each host stay.
func (s *Store) Prune(ctx context.Context, now time.Time) error {
	err := s.do(ctx, func(tx *sql.Tx) error {
		ended, superseded := text(now.Add(-keepEnded)), text(now.Add(-keepSuperseded))
		for _, step := range []struct {
			sql    string
			before string
		}{
			{`DELETE FROM token_replay WHERE keep_until < ?`, text(now)},
			{`DELETE FROM pending_confirms WHERE dispatched_at < ? AND state NOT IN ('pending', 'deferred-pending-reboot')
				AND EXISTS (SELECT 1 FROM pending_confirms n
					WHERE n.hostname = pending_confirms.hostname AND n.id > pending_confirms.id)`, ended},
			{`DELETE FROM rollout_events WHERE at < ?`, ended},
			{`DELETE FROM host_reports WHERE received_at < ?`, ended},
			{`DELETE FROM rollout_hosts WHERE intent IN (SELECT intent FROM rollouts WHERE superseded_at < ?)
				AND intent NOT IN (SELECT intent FROM rollouts WHERE superseded_at IS NULL)`, superseded},
			{`DELETE FROM rollouts WHERE terminal_at < ? AND EXISTS
				(SELECT 1 FROM rollouts n WHERE n.channel = rollouts.channel AND n.created_at > rollouts.created_at)`, ended},
			{`DELETE FROM rollout_hosts WHERE since < ? AND intent NOT IN (SELECT intent FROM rollouts)`, ended},
			{`DELETE FROM quarantines WHERE cleared AND since < ?`, ended},
		} {
			if _, err := tx.Exec(step.sql, step.before); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		return fmt.Errorf("prune: %w", err)
	}
	return nil
}
