//go:build cgo

package store

import (
	"errors"
	"syscall"

	"github.com/mattn/go-sqlite3"
)

// kindOf is what an error of SQLite means, nil for one that means nothing of its own.
func kindOf(err error) error {
	var failed sqlite3.Error
	if !errors.As(err, &failed) {
		return nil
	}
	switch failed.Code {
	case sqlite3.ErrFull:
		return ErrFull
	case sqlite3.ErrIoErr:
		if failed.SystemErrno == syscall.ENOSPC || failed.SystemErrno == syscall.EDQUOT {
			return ErrFull
		}
		return ErrDisk
	case sqlite3.ErrBusy, sqlite3.ErrLocked:
		return ErrLocked
	case sqlite3.ErrCorrupt, sqlite3.ErrNotADB, sqlite3.ErrFormat:
		return ErrDamaged
	case sqlite3.ErrCantOpen, sqlite3.ErrReadonly, sqlite3.ErrPerm, sqlite3.ErrAuth:
		if failed.SystemErrno == syscall.ENOSPC || failed.SystemErrno == syscall.EDQUOT {
			return ErrFull
		}
		return ErrUnwritable
	}
	return nil
}
