package nixops

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"nixfleet/nixops/disk"
)

// Deadline is a command that the machine runs later.
type Deadline struct {
	Unit    string // without suffix
	After   time.Duration
	Command []string // absolute path and arguments
	Note    []byte   // kept below /run until the deadline is disarmed; may be empty
}

// maxNote bounds a deadline's note, in bytes.
const maxNote = 4 << 20

func (m *machine) ArmDeadline(ctx context.Context, d Deadline) error {
	if err := d.Check(); err != nil {
		return err
	}
	err := m.files.keepNote(d.Unit, d.Note)
	if err == nil {
		err = m.super.arm(ctx, d)
	}
	if err != nil {
		return fmt.Errorf("arm deadline %s: %w", d.Unit, errors.Join(noSpace(err), m.files.dropNote(d.Unit)))
	}
	return nil
}

func (m *machine) DeadlineNote(ctx context.Context, unit string) ([]byte, error) {
	path := m.files.newestNote()
	if unit != "" {
		if err := CheckUnit(unit); err != nil {
			return nil, err
		}
		path = m.files.path(unit, noteKind)
	}
	note, err := disk.Read(path, maxNote)
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil
	}
	return note, err
}

// noteKind is the kind of the file with a deadline's note.
const noteKind = "note"

// keepNote keeps the note of a deadline until dropNote.
func (f unitFiles) keepNote(unit string, note []byte) error {
	if len(note) == 0 {
		return f.dropNote(unit)
	}
	if err := os.MkdirAll(f.dir, 0o700); err != nil {
		return err
	}
	for i := range roomFiles {
		if err := disk.ReplaceVolatile(f.room(i), make([]byte, roomSize), 0o600); err != nil {
			return err
		}
	}
	return disk.ReplaceVolatile(f.path(unit, noteKind), note, 0o600)
}

// The room that is set aside below /run while a deadline is armed. A release that fills /run must not keep an undo from
// making a link there.
const (
	roomFiles = 8
	roomSize  = 4096 // bytes
)

func (f unitFiles) room(i int) string { return fmt.Sprintf("%s/room-%d", f.dir, i) }

// makeRoom gives the room back.
func (f unitFiles) makeRoom() {
	for i := range roomFiles {
		os.Remove(f.room(i))
	}
}

// newestNote returns the path of the note that was written last. If there is none, no file has that path.
func (f unitFiles) newestNote() string {
	newest, written := f.dir+"/none", time.Time{}
	notes, _ := filepath.Glob(f.path("*", noteKind)) // the pattern is valid
	for _, path := range notes {
		if info, err := os.Lstat(path); err == nil && info.ModTime().After(written) {
			newest, written = path, info.ModTime()
		}
	}
	return newest
}

func (f unitFiles) dropNote(unit string) error {
	f.makeRoom()
	err := os.Remove(f.path(unit, noteKind))
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	return err
}

// Check returns an error if no machine could run the deadline.
func (d Deadline) Check() error {
	if err := CheckUnit(d.Unit); err != nil {
		return err
	}
	if d.After <= 0 || len(d.Command) == 0 || !filepath.IsAbs(d.Command[0]) {
		return fmt.Errorf("deadline %s needs a time in the future and the absolute path of a command", d.Unit)
	}
	return nil
}

func (m *machine) DisarmDeadline(ctx context.Context, unit string) error {
	if err := CheckUnit(unit); err != nil {
		return err
	}
	// The note first: it says that the activation is not over.
	if err := errors.Join(m.files.dropNote(unit), m.super.disarm(ctx, unit)); err != nil {
		return fmt.Errorf("disarm deadline %s: %w", unit, err)
	}
	return nil
}

func (m *machine) DeadlineArmed(ctx context.Context, unit string) (bool, error) {
	if err := CheckUnit(unit); err != nil {
		return false, err
	}
	return m.super.armed(ctx, unit)
}
