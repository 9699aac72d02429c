package store

import (
	"errors"
	"fmt"
)

// Fault is why the database cannot do what it is asked: a stable word, a text that
// may be told to any operator, and one line about what to do.
type Fault struct{ code, text, hint string }

// Error is the text.
func (f *Fault) Error() string { return f.text }

// Code is a stable word.
func (f *Fault) Code() string { return f.code }

// Hint is one line, lowercase, without a full stop.
func (f *Fault) Hint() string { return f.hint }

// Why a file is refused, or an operation fails; test with errors.Is.
var (
	// ErrDamaged means that the file is not a database that can be read.
	ErrDamaged error = &Fault{"database-damaged", "the database is damaged",
		"restore a backup, or move the file away: all but local revocations, used tokens and holds comes back within one " +
			"check-in cycle"}
	// ErrForeign means that the file is a database of some other program, a v1 control
	// plane included.
	ErrForeign error = &Fault{"database-foreign", "not a database of this program",
		"move the file away or give another one; revocations in its table cert_revocations must be entered again, with " +
			"nixfleet revoke"}
	// ErrDowngrade means that the database of a newer nixfleet cannot be set aside without
	// forgetting revocations or used tokens, or while another program has it open.
	ErrDowngrade error = &Fault{"database-newer", "the database of a newer nixfleet cannot be set aside",
		"run the newer nixfleet again, or close what else has the database open"}
	// ErrFull means that the file system of the database has no room. What was
	// acknowledged is there.
	ErrFull error = &Fault{"database-full", "the disk of the database is full",
		"make room on its file system; nothing that was acknowledged is lost, and the control plane goes on by itself"}
	// ErrDisk means that the disk answers with errors.
	ErrDisk error = &Fault{"database-disk", "the disk of the database fails",
		"see the kernel's log; restore a backup on another disk"}
	// ErrLocked means that another program holds the lock of writers.
	ErrLocked error = &Fault{"database-locked", "another program holds a lock on the database",
		"end its transaction: sqlite3 with an open BEGIN, as a rule; fuser -v on the file names it"}
	// ErrUnwritable means that this user may not write the file or its directory.
	ErrUnwritable error = &Fault{"database-unwritable", "the database cannot be written",
		"the file and its directory must belong to the user of the control plane, on a file system that is writable"}
	// ErrExposed means that others may write the file.
	ErrExposed error = &Fault{"database-exposed", "other users may write the database",
		"look for rows that are not yours (nixfleet revocations list), then chmod 600 the file"}
	// ErrEmpty means that the file is there and has nothing in it: a database is made
	// under another name first, so that this one was cut off.
	ErrEmpty error = &Fault{"database-empty", "the database file is empty",
		"restore a backup; remove the file if there is none: local revocations and used tokens are then forgotten"}
	// ErrInUse means that another control plane has the database open.
	ErrInUse error = &Fault{"database-in-use", "another control plane uses this database",
		"stop it first, or give this one a database of its own"}
	// ErrOtherLog means that the log beside the file was written for another file.
	ErrOtherLog error = &Fault{"database-other-log", "the log beside the database (-wal) belongs to another file",
		"a copy was put beside a log: move the files with -wal and -shm away, or put the file back that they belong to"}
	// ErrDisplaced means that another file stands where the open one was.
	ErrDisplaced error = &Fault{"database-displaced", "the database file was replaced while it was open",
		"restart the control plane, which then uses the file that stands there now"}
	// ErrDump means that the file was made from a .dump, which leaves out its marks.
	ErrDump error = &Fault{"database-from-dump", "the database was made from a .dump, which leaves out its marks", ""}
)

// named adds what an error of SQLite means to it.
func named(err error) error {
	kind := kindOf(err)
	if kind == nil || errors.Is(err, kind) {
		return err
	}
	return fmt.Errorf("%w (%w)", kind, err)
}
