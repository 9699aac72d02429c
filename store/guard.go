package store

import (
	"context"
	"crypto/rand"
	"database/sql"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
)

// guard is the lock file beside a database. One process holds its lock for as long as
// the database is open. Its text says which openings the file belongs to, and how far
// the file had been written; it is lost with less than is known, never with more.
type guard struct {
	file    *os.File
	epochs  []string // of openings; the file holds one of them
	written int64    // the sum of all sequences
}

const maxGuard = 4 << 10

// takeGuard locks the database at path, or is ErrInUse.
func takeGuard(path string) (*guard, error) {
	f, err := os.OpenFile(path+".lock", os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, err
	}
	if err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
		if errors.Is(err, syscall.EWOULDBLOCK) {
			err = ErrInUse
		}
		return nil, errors.Join(err, f.Close())
	}
	text, err := io.ReadAll(io.LimitReader(f, maxGuard))
	if err != nil {
		return nil, errors.Join(err, f.Close())
	}
	g := &guard{file: f}
	// A lock file that cannot be read knows nothing.
	for line := range strings.Lines(string(text)) {
		switch words := strings.Fields(line); {
		case len(words) > 1 && words[0] == "opened":
			g.epochs = words[1:]
		case len(words) == 2 && words[0] == "written":
			g.written, _ = strconv.ParseInt(words[1], 10, 64)
		}
	}
	return g, nil
}

func (g *guard) write() error {
	text := fmt.Sprintf("opened %s\nwritten %d\n", strings.Join(g.epochs, " "), g.written)
	if err := g.file.Truncate(int64(len(text))); err != nil {
		return err
	}
	_, err := g.file.WriteAt([]byte(text), 0)
	return err
}

// close frees the lock by name: a child process that is just being started has a copy of
// the file, and with it the lock, until it runs its program.
func (g *guard) close() error {
	return errors.Join(syscall.Flock(int(g.file.Fd()), syscall.LOCK_UN), g.file.Close())
}

// admit is nil for a file that may be opened, and fs.ErrNotExist for none. A log
// without its file, an empty file, and one that others may write are refused.
func (g *guard) admit(ctx context.Context, path string) error {
	info, err := os.Lstat(path)
	log, logErr := os.Lstat(path + "-wal")
	logged := logErr == nil && log.Size() > 0
	switch {
	case errors.Is(err, fs.ErrNotExist) && logged:
		return fmt.Errorf("%w: the file itself is gone", ErrOtherLog)
	case err != nil:
		return err
	case !info.Mode().IsRegular():
		return errors.New("not a regular file")
	case info.Mode().Perm()&0o022 != 0:
		return fmt.Errorf("%w: its mode is %04o", ErrExposed, info.Mode().Perm())
	case info.Size() == 0:
		return ErrEmpty
	}
	dir, err := os.Stat(filepath.Dir(path))
	if err == nil && dir.Mode().Perm()&0o002 != 0 && dir.Mode()&fs.ModeSticky == 0 {
		return fmt.Errorf("%w: the mode of its directory is %04o", ErrExposed, dir.Mode().Perm())
	}
	if !logged || len(g.epochs) == 0 {
		return nil
	}
	epoch, err := epochWithoutLog(ctx, path)
	// One that cannot be read alone is whole with its log.
	if err == nil && !slices.Contains(g.epochs, epoch) {
		return ErrOtherLog
	}
	return nil
}

// epochWithoutLog reads the epoch of the file as it is, whatever its log says. It is
// an error where the file cannot be read without its log, and empty for a file of an
// older schema.
func epochWithoutLog(ctx context.Context, path string) (string, error) {
	db, err := sql.Open("sqlite3", dsn(path, map[string][]string{"immutable": {"1"}, "mode": {"ro"}}))
	if err != nil {
		return "", err
	}
	defer db.Close()
	if known, err := hasEpochs(ctx, db); err != nil || !known {
		return "", err
	}
	return epochOf(ctx, db)
}

func epochOf(ctx context.Context, db *sql.DB) (epoch string, err error) {
	err = db.QueryRowContext(ctx, `SELECT epoch FROM opened`).Scan(&epoch)
	if errors.Is(err, sql.ErrNoRows) {
		return "", nil
	}
	return epoch, err
}

// hasEpochs is false for a file of an older schema.
func hasEpochs(ctx context.Context, db *sql.DB) (has bool, err error) {
	err = db.QueryRowContext(ctx, `SELECT EXISTS (SELECT 1 FROM sqlite_master WHERE name = 'opened')`).Scan(&has)
	return has, err
}

// stamp gives the file a new epoch, in the file itself and not in its log alone.
func (g *guard) stamp(ctx context.Context, db *sql.DB) error {
	if known, err := hasEpochs(ctx, db); err != nil || !known {
		return err
	}
	before, err := epochOf(ctx, db)
	if err != nil {
		return err
	}
	random := make([]byte, 16)
	rand.Read(random)
	next := hex.EncodeToString(random)
	g.epochs = []string{next}
	if before != "" {
		g.epochs = append(g.epochs, before)
	}
	if err := g.write(); err != nil {
		return err
	}
	if _, err := db.ExecContext(ctx, `INSERT OR REPLACE INTO opened (id, epoch) VALUES (1, ?)`, next); err != nil {
		return err
	}
	busy, err := takeIn(ctx, db)
	if err != nil {
		return err
	}
	if !busy {
		g.epochs = g.epochs[:1]
	}
	return g.write()
}

// sequences grows with every row that people read by its number.
const sequences = `SELECT CAST(total(seq) AS INTEGER) FROM sqlite_sequence`

// older reports whether the database has less than was written to it: it is a copy
// of before, or its log was taken away while nothing had it open.
func (g *guard) older(ctx context.Context, db *sql.DB) (bool, error) {
	had := g.written
	if err := db.QueryRowContext(ctx, sequences).Scan(&g.written); err != nil {
		return false, err
	}
	return g.written < had, nil
}
