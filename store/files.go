package store

import (
	"context"
	"errors"
	"io/fs"
	"os"
)

// suffixes name the three files of an open database.
var suffixes = [3]string{"", "-wal", "-shm"}

// openFiles are the files that stand at path now.
func openFiles(path string) (files [3]os.FileInfo, err error) {
	for i, suffix := range suffixes {
		if files[i], err = os.Stat(path + suffix); err != nil {
			return files, err
		}
	}
	return files, nil
}

// displacement is what became of the files of an open database.
type displacement int

const (
	inPlace  displacement = iota
	taken                 // the file is gone, or its log or the log's index is gone or another one
	replaced              // another file stands where it was
)

func (s *Store) displacement() displacement {
	s.mu.Lock()
	files := s.files
	s.mu.Unlock()
	for i, suffix := range suffixes {
		now, err := os.Stat(s.path + suffix)
		switch {
		case err == nil && os.SameFile(now, files[i]):
		case i == 0 && err == nil:
			return replaced
		default:
			return taken
		}
	}
	return inPlace
}

// Displaced reports whether another file, or none, stands where an open one
// was: rows that somebody inserts there by hand are not seen.
func (s *Store) Displaced() bool { return s.displacement() != inPlace }

// Fault is what keeps the database from being written now; nil when nothing does.
func (s *Store) Fault() error {
	if s.displacement() == replaced {
		return ErrDisplaced
	}
	if fault := s.fault.Load(); fault != nil {
		return *fault
	}
	return nil
}

// putBack is called by the writer before each commit. Where a file was taken away
// that nobody replaced, a whole copy of what is open takes its place: all that was
// acknowledged is in it. Where another database stands, it is left there, and a copy
// of what is open is kept beside it.
func (s *Store) putBack() {
	ctx := context.Background()
	kept := s.path + ".kept"
	switch s.displacement() {
	case inPlace:
		return
	case replaced:
		if have, err := exists(kept); have || err != nil {
			return
		}
		if err := copyDatabase(ctx, s.write, kept); err != nil {
			s.log.Error().Err(err).Msg("database that was open not kept")
			return
		}
		s.log.Error().Str("file", kept).Msg("another database took the place of the open one, of which a copy is kept")
		return
	}
	if err := s.replaceTaken(ctx, kept); err != nil {
		s.log.Error().Err(err).Str("file", s.path).Msg("database file or log was taken away, and not put back")
		return
	}
	s.log.Error().Str("file", s.path).
		Msg("database file was replaced or removed; a copy of what was open took its place")
}

func (s *Store) replaceTaken(ctx context.Context, kept string) error {
	if err := copyDatabase(ctx, s.write, kept); err != nil {
		return err
	}
	// What others may have written there is set aside, not removed.
	for _, suffix := range suffixes {
		err := os.Rename(s.path+suffix, s.path+".displaced"+suffix)
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	if err := publish(kept, s.path); err != nil {
		return err
	}
	// Connections that were open go on with the file of before and are not used again.
	s.write.SetMaxIdleConns(0)
	s.write.SetMaxIdleConns(1)
	s.read.SetMaxIdleConns(-1)
	if err := s.guard.stamp(ctx, s.write); err != nil {
		return err
	}
	if err := s.watch.reopen(ctx, s.read); err != nil {
		return err
	}
	files, err := openFiles(s.path)
	if err == nil {
		s.mu.Lock()
		s.files = files
		s.mu.Unlock()
	}
	return err
}

// takeLogAway moves the log of the file that was open away from the file that stands in
// its place: it belongs to the other one.
func (s *Store) takeLogAway() error {
	s.guard.epochs, s.guard.written = nil, 0
	for i, suffix := range suffixes[1:] {
		if now, err := os.Stat(s.path + suffix); err != nil || !os.SameFile(now, s.files[i+1]) {
			continue
		}
		if err := os.Rename(s.path+suffix, s.path+".displaced"+suffix); err != nil {
			return err
		}
	}
	return s.guard.write()
}
