package store

import (
	"context"
	"database/sql"
	"fmt"
	"time"
)

// RevocationRow is a local row as it stands in the table, by whomever it was inserted.
type RevocationRow struct {
	Hostname  string
	NotBefore time.Time // the last moment of time when it cannot be read: every certificate is refused
	Written   string    // not_before as it is written
	Readable  bool
	Reason    string
	RevokedBy string
	RevokedAt string
}

// RevocationRows lists the local rows, the oldest first.
func (s *Store) RevocationRows(ctx context.Context) ([]RevocationRow, error) {
	rows, err := collect(ctx, s.read, `SELECT hostname, CAST(coalesce(not_before, '') AS TEXT), coalesce(reason, ''),
		coalesce(revoked_by, ''), CAST(coalesce(revoked_at, '') AS TEXT) FROM cert_revocations ORDER BY rowid`,
		func(r *RevocationRow) []any {
			return []any{&r.Hostname, &r.Written, &r.Reason, &r.RevokedBy, &r.RevokedAt}
		})
	if err != nil {
		return nil, fmt.Errorf("list revocations: %w", named(err))
	}
	for i := range rows {
		at, err := parseTime(rows[i].Written)
		rows[i].NotBefore, rows[i].Readable = at, err == nil
		if err != nil {
			rows[i].NotBefore = lastMoment
		}
	}
	return rows, nil
}

// Unrevoke deletes the local rows of exactly this name, with the entry of the audit
// table that says who did, and returns how many there were.
func (s *Store) Unrevoke(ctx context.Context, name string, because AuditEntry) (n int64, err error) {
	err = s.do(ctx, func(tx *sql.Tx) error {
		res, err := tx.Exec(`DELETE FROM cert_revocations WHERE hostname = ?`, name)
		if err != nil {
			return err
		}
		if n, err = res.RowsAffected(); err != nil || n == 0 {
			return err
		}
		return because.put(tx)
	})
	if err != nil {
		return 0, fmt.Errorf("undo revocation of %s: %w", name, err)
	}
	return n, nil
}
