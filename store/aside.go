package store

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
)

// setAside puts a database of schema len(list) in the place of a newer one and
// returns the newer one's new name. The replacement is made whole beside it
// first: the newest copy taken before a migration that is not known here, or an
// empty one, with the newer file's revocations and used tokens, the loss of
// which would let a revoked host in. A crash at any moment leaves the one or the
// other in place.
func setAside(ctx context.Context, path string, version int, list []migration) (aside string, err error) {
	if err := checkpoint(ctx, path); err != nil {
		return "", err
	}
	next := path + ".next"
	if err := restoreCopy(ctx, path, next, list); err != nil {
		return "", err
	}
	if err := carryOver(ctx, path, next); err != nil {
		return "", err
	}
	if aside, err = linkAside(path, fmt.Sprintf("schema-%d", version)); err != nil {
		return "", err
	}
	return aside, publish(next, path)
}

// checkpoint brings the log into the file, so that the file alone is whole.
func checkpoint(ctx context.Context, path string) error {
	db, err := connect(path)
	if err != nil {
		return err
	}
	busy, err := takeIn(ctx, db)
	if err = errors.Join(err, db.Close()); err != nil {
		return err
	}
	// The last connection to close removes the log; a log means another one.
	if left, err := exists(path + "-wal"); err != nil {
		return err
	} else if busy || left {
		return fmt.Errorf("%w: another program has it open", ErrDowngrade)
	}
	return nil
}

// takeIn brings the log into the file, unless another connection is in the way.
func takeIn(ctx context.Context, db *sql.DB) (busy bool, err error) {
	var blocked, logged, done int
	err = db.QueryRowContext(ctx, "PRAGMA wal_checkpoint(TRUNCATE)").Scan(&blocked, &logged, &done)
	return blocked != 0, err
}

// restoreCopy makes next a database of schema len(list) from the newest copy
// that is whole, or from nothing.
func restoreCopy(ctx context.Context, path, next string, list []migration) error {
	for number := len(list) + 1; number >= 1; number-- {
		if err := removeDatabase(next); err != nil {
			return err
		}
		if number > 1 {
			if err := copyFile(copyBefore(path, number), next); errors.Is(err, fs.ErrNotExist) {
				continue
			} else if err != nil {
				return err
			}
		}
		_, err := upgrade(ctx, next, list, nil)
		if err == nil || number == 1 || !errors.Is(err, ErrDamaged) && !errors.Is(err, ErrForeign) {
			return err
		}
	}
	return nil
}

// carryOver copies what must not be forgotten. Revocations are taken as they
// are now: one that was deleted since the copy stays deleted.
func carryOver(ctx context.Context, from, to string) (err error) {
	db, err := connect(to)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, db.Close()) }()
	if _, err := db.ExecContext(ctx, "ATTACH ? AS newer", from); err != nil {
		return err
	}
	tx, err := db.BeginTx(ctx, nil)
	if err != nil {
		return err
	}
	// After a commit there is nothing left to roll back.
	defer func() { _ = tx.Rollback() }()
	for _, carry := range []string{
		`DELETE FROM main.cert_revocations`,
		`INSERT INTO main.cert_revocations (hostname, not_before, reason, revoked_by, revoked_at)
		 SELECT hostname, not_before, reason, revoked_by, revoked_at FROM newer.cert_revocations ORDER BY rowid`,
		`INSERT OR REPLACE INTO main.token_replay (nonce, hostname, used_at, keep_until)
		 SELECT nonce, hostname, used_at, keep_until FROM newer.token_replay`,
	} {
		if _, err := tx.ExecContext(ctx, carry); err != nil {
			return fmt.Errorf("%w: %w", ErrDowngrade, err)
		}
	}
	if err := tx.Commit(); err != nil {
		return err
	}
	_, err = db.ExecContext(ctx, "DETACH newer")
	return err
}

// linkAside gives the file a second name that was not in use, or finds the one
// that an interrupted attempt gave it.
func linkAside(path, word string) (string, error) {
	file, err := os.Stat(path)
	if err != nil {
		return "", err
	}
	for n := 1; ; n++ {
		aside := path + "." + word
		if n > 1 {
			aside = fmt.Sprintf("%s.%d", aside, n)
		}
		err := os.Link(path, aside)
		if err == nil {
			return aside, nil
		}
		if !errors.Is(err, fs.ErrExist) {
			return "", err
		}
		if found, err := os.Stat(aside); err == nil && os.SameFile(file, found) {
			return aside, nil
		}
	}
}

func copyFile(from, to string) (err error) {
	in, err := os.Open(from)
	if err != nil {
		return err
	}
	defer in.Close()
	out, err := os.OpenFile(to, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	_, err = io.Copy(out, in)
	return errors.Join(err, out.Close())
}
