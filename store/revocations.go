package store

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"sync"
	"time"
)

// Revocation refuses the certificates of Hostname (a host, or an operator's
// common name) that were issued before NotBefore.
type Revocation struct {
	Hostname  string
	NotBefore time.Time
	Reason    string
	RevokedBy string
}

// Revoke adds a local row, with the entry of the audit table that says who added
// it: both are on disk, or neither is. Several rows per host are allowed; the
// latest not_before counts.
func (s *Store) Revoke(ctx context.Context, r Revocation, because AuditEntry) error {
	err := s.do(ctx, func(tx *sql.Tx) error {
		if s.displacement() == replaced {
			return ErrDisplaced // it would be forgotten
		}
		if err := because.put(tx); err != nil {
			return err
		}
		_, err := tx.Exec(`INSERT INTO cert_revocations (hostname, not_before, reason, revoked_by) VALUES (?, ?, ?, ?)`,
			r.Hostname, text(r.NotBefore), r.Reason, r.RevokedBy)
		return err
	})
	if err != nil {
		return fmt.Errorf("revoke %s: %w", r.Hostname, err)
	}
	return nil
}

// RevokedSince gives the latest local not_before of any of names. A row inserted by
// anybody, the sqlite3 shell included, counts from the next call on. A time that
// cannot be read denies. Nothing is written and, while nobody writes, nothing
// is read from the file but its change counter.
func (s *Store) RevokedSince(ctx context.Context, names ...string) (notBefore time.Time, ok bool, err error) {
	byName, err := s.watch.revocations(ctx)
	if err != nil {
		return time.Time{}, false, fmt.Errorf("look up revocation of %s: %w", names, named(err))
	}
	for _, name := range names {
		if at, found := byName[name]; found && !at.Before(notBefore) {
			notBefore, ok = at, true
		}
	}
	return notBefore, ok, nil
}

// Revocations is what RevokedSince answers from, by name. It is not to be changed.
func (s *Store) Revocations(ctx context.Context) (map[string]time.Time, error) {
	byName, err := s.watch.revocations(ctx)
	if err != nil {
		return nil, fmt.Errorf("look up revocations: %w", named(err))
	}
	return byName, nil
}

// watcher keeps the revocations in memory for as long as the database has not
// been changed by another connection.
type watcher struct {
	mu      sync.Mutex
	conn    *sql.Conn
	version *sql.Stmt
	seen    int64
	byName  map[string]time.Time
}

func (w *watcher) open(ctx context.Context, db *sql.DB) (err error) {
	if w.conn, err = db.Conn(ctx); err != nil {
		return err
	}
	if w.version, err = w.conn.PrepareContext(ctx, "PRAGMA data_version"); err != nil {
		return errors.Join(err, w.conn.Close())
	}
	return nil
}

// reopen looks at the file that stands at the path now.
func (w *watcher) reopen(ctx context.Context, db *sql.DB) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	err := w.close()
	w.byName = nil
	return errors.Join(err, w.open(ctx, db))
}

func (w *watcher) close() error { return errors.Join(w.version.Close(), w.conn.Close()) }

func (w *watcher) revocations(ctx context.Context) (map[string]time.Time, error) {
	// A request that goes away must not take the shared connection with it.
	ctx = context.WithoutCancel(ctx)
	w.mu.Lock()
	defer w.mu.Unlock()
	var version int64
	if err := w.version.QueryRowContext(ctx).Scan(&version); err != nil {
		return nil, err
	}
	if w.byName != nil && version == w.seen {
		return w.byName, nil
	}
	rows, err := w.conn.QueryContext(ctx, `SELECT hostname, CAST(not_before AS TEXT) FROM cert_revocations`)
	if err != nil {
		return nil, err
	}
	defer rows.Close()
	byName := map[string]time.Time{}
	for rows.Next() {
		var name string
		var written sql.NullString
		if err := rows.Scan(&name, &written); err != nil {
			return nil, err
		}
		notBefore, err := parseTime(written.String)
		if err != nil {
			notBefore = lastMoment // denies every certificate
		}
		if notBefore.After(byName[name]) {
			byName[name] = notBefore
		}
	}
	if err := rows.Err(); err != nil {
		return nil, err
	}
	w.seen, w.byName = version, byName
	return byName, nil
}
