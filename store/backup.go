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
	db, err := sql.Open("sqlite3", dsn(from, false))
	if err != nil {
		return fmt.Errorf("back up %s: %w", from, err)
	}
	defer db.Close()
	if path, err = filepath.Abs(path); err != nil {
		return fmt.Errorf("back up: %w", err)
	}
	if _, err := os.Lstat(path); err == nil {
		return fmt.Errorf("back up to %s: %w", path, fs.ErrExist)
	} else if !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("back up: %w", err)
	}
	if err := copyDatabase(ctx, db, path); err != nil {
		return fmt.Errorf("back up to %s: %w", path, err)
	}
	return nil
}

// keepEnded is how long ended dispatches and events stay for people to read.
const keepEnded = 90 * 24 * time.Hour

// Prune forgets used tokens whose time is over, and dispatches, events and
// ended rollouts that are older than 90 days.
func (s *Store) Prune(ctx context.Context, now time.Time) error {
	err := s.do(ctx, func(tx *sql.Tx) error {
		old := text(now.Add(-keepEnded))
		for _, step := range []struct {
			sql string
			arg string
		}{
			{`DELETE FROM token_replay WHERE keep_until < ?`, text(now)},
			{`DELETE FROM pending_confirms WHERE state NOT IN ('pending', 'deferred-pending-reboot') AND slot_until < ?`, old},
			{`DELETE FROM rollout_events WHERE at < ?`, old},
			{`DELETE FROM rollouts WHERE terminal_at < ?1 AND EXISTS
				(SELECT 1 FROM rollouts n WHERE n.channel = rollouts.channel AND n.created_at > rollouts.created_at)`, old},
			{`DELETE FROM rollout_hosts WHERE since < ? AND intent NOT IN (SELECT intent FROM rollouts)`, old},
			{`DELETE FROM quarantines WHERE cleared AND since < ?`, old},
		} {
			if _, err := tx.Exec(step.sql, step.arg); err != nil {
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
