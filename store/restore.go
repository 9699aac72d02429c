package store

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
)

// ErrLogBeside means that a log stands beside a file that is to be replaced.
var ErrLogBeside error = &Fault{"database-log-beside", "a log (-wal) stands beside the database",
	"start and stop the control plane once, which takes the log in; where it does not start, move the file with its " +
		"-wal and -shm away"}

// Restored is what a restore has done.
type Restored struct {
	Aside   string // where the database of before is now; empty when there was none
	Carried bool   // its revocations and used tokens are in the restored one
}

// RestoreFile puts the backup at from in the place of the database at to, which nothing
// may have open. A log on either side is refused: it would be applied to another file.
// Revocations and used tokens of the database that is replaced are carried over where it
// can be read.
func RestoreFile(ctx context.Context, from, to string) (r Restored, err error) {
	path, err := placeOf(to)
	if err != nil {
		return r, fmt.Errorf("restore: %w", err)
	}
	g, err := takeGuard(path)
	if err != nil {
		return r, fmt.Errorf("restore %s: %w", path, err)
	}
	defer func() { err = errors.Join(err, g.close()) }()
	if err := handOver(path + ".lock"); err != nil {
		return r, fmt.Errorf("restore: %w", err)
	}
	for _, file := range []string{from, path} {
		if log, err := os.Stat(file + "-wal"); err == nil && log.Size() > 0 {
			return r, fmt.Errorf("restore %s: %w: %s-wal", path, ErrLogBeside, file)
		}
	}
	list, err := migrations(embedded)
	if err != nil {
		return r, err
	}
	next := path + ".next"
	if err := removeDatabase(next); err != nil {
		return r, fmt.Errorf("restore %s: %w", path, err)
	}
	if err := copyFile(from, next); err != nil {
		return r, fmt.Errorf("restore %s: %w", path, err)
	}
	version, err := upgrade(ctx, next, list, nil)
	if err == nil && version > len(list) {
		err = fmt.Errorf("%w: the backup has schema %d, known is %d", ErrDowngrade, version, len(list))
	}
	if err != nil {
		return r, fmt.Errorf("restore from %s: %w", from, err)
	}
	if had, err := exists(path); err != nil {
		return r, err
	} else if had {
		r.Carried = carryOver(ctx, path, next) == nil
		if r.Aside, err = linkAside(path, "replaced"); err != nil {
			return r, fmt.Errorf("restore %s: %w", path, err)
		}
	}
	err = unstamp(ctx, next)
	if err == nil {
		err = handOver(next)
	}
	if err == nil {
		err = publish(next, path)
	}
	if err != nil {
		return r, fmt.Errorf("restore %s: %w", path, err)
	}
	g.epochs, g.written = nil, 0
	return r, g.write()
}

// removeDatabase removes a file and what SQLite puts beside it.
func removeDatabase(path string) error {
	for _, suffix := range []string{"", "-journal", "-wal", "-shm"} {
		if err := os.Remove(path + suffix); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	return nil
}
