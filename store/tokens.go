package store

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"time"
)

// ErrTokenUsed means that the token's nonce was used before.
var ErrTokenUsed = errors.New("token was used before")

// TokenUsed reports whether a nonce was used.
func (s *Store) TokenUsed(ctx context.Context, nonce string) (bool, error) {
	var one int
	err := s.read.QueryRowContext(ctx, `SELECT 1 FROM token_replay WHERE nonce = ?`, nonce).Scan(&one)
	if errors.Is(err, sql.ErrNoRows) {
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("look up token: %w", named(err))
	}
	return true, nil
}

// UseToken records a nonce until keepUntil. Of several attempts at the same
// time exactly one succeeds; the others get ErrTokenUsed.
func (s *Store) UseToken(ctx context.Context, nonce, hostname string, keepUntil time.Time) error {
	return s.do(ctx, func(tx *sql.Tx) error {
		if s.displacement() == replaced {
			return ErrDisplaced // it would be forgotten
		}
		res, err := tx.Exec(`INSERT OR IGNORE INTO token_replay (nonce, hostname, used_at, keep_until) VALUES (?, ?, ?, ?)`,
			nonce, hostname, text(time.Now()), text(keepUntil))
		if err != nil {
			return fmt.Errorf("use token: %w", err)
		}
		if n, err := res.RowsAffected(); err != nil || n == 1 {
			return err
		}
		return ErrTokenUsed
	})
}
