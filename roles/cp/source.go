package cp

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"

	"nixfleet/nixops/fleet"
	"nixfleet/pki"
)

// Source yields releases.
type Source interface {
	// Fetch reads the current release. known is the Revision of the last
	// snapshot, empty when there is none; an equal one gives Unchanged.
	Fetch(ctx context.Context, known string) (Snapshot, error)
	String() string
}

// Snapshot is a release directory as it was at one moment.
type Snapshot struct {
	FS        fs.FS  // rooted at the release directory
	Revision  string // commit, or a hash of what was read
	Unchanged bool
}

// memory is a release directory in memory.
type memory map[string][]byte

// Open is there for fs.FS and refuses: documents are read whole, by ReadFile.
func (m memory) Open(name string) (fs.File, error) {
	return nil, &fs.PathError{Op: "open", Path: name, Err: errors.ErrUnsupported}
}

// ReadFile gives a file's bytes without copying them through a file.
func (m memory) ReadFile(name string) ([]byte, error) {
	if data, ok := m[name]; ok {
		return data, nil
	}
	return nil, &fs.PathError{Op: "open", Path: name, Err: fs.ErrNotExist}
}

// dirSource reads a local release directory.
type dirSource struct{ dir string }

// NewDirSource is a directory that something else fills. A release that is
// being written while it is read does not verify and is read again later.
func NewDirSource(dir string) Source { return &dirSource{dir} }

func (s *dirSource) String() string { return s.dir }

func (s *dirSource) Fetch(_ context.Context, known string) (Snapshot, error) {
	return snapshotOf(boundedDir(s.dir), fleet.FleetName, known)
}

// filesSource reads a fleet document and its signature, and the rest of the
// release beside them.
type filesSource struct{ artifact, signature string }

// NewFilesSource is the v1 pair of local files.
func NewFilesSource(artifact, signature string) Source { return &filesSource{artifact, signature} }

func (s *filesSource) String() string { return s.artifact }

func (s *filesSource) Fetch(_ context.Context, known string) (Snapshot, error) {
	return snapshotOf(boundedDir(filepath.Dir(s.artifact)), filepath.Base(s.artifact), known)
}

// snapshotOf names a directory's state by its fleet signature, which covers
// the fleet document and through it all the rest of a release of ours; a v1
// list that changes alone has a signature of its own.
func snapshotOf(dir fs.FS, fleetName, known string) (Snapshot, error) {
	var all []byte
	for _, name := range []string{fleetName, fleet.RevocationsName, fleet.NoncesName} {
		sig, err := fs.ReadFile(dir, name+fleet.SignatureSuffix)
		if err != nil && (name == fleetName || !errors.Is(err, fs.ErrNotExist)) {
			return Snapshot{}, fmt.Errorf("read release: %w", err)
		}
		all = append(append(all, sig...), name...)
	}
	revision := pki.HashHex(all)
	return Snapshot{FS: dir, Revision: revision, Unchanged: revision == known}, nil
}

// boundedDir is a directory whose files are read up to pki.MaxDocument.
type boundedDir string

// Open opens a file below the directory.
func (d boundedDir) Open(name string) (fs.File, error) { return os.DirFS(string(d)).Open(name) }

// ReadFile reads a bounded file.
func (d boundedDir) ReadFile(name string) ([]byte, error) {
	f, err := d.Open(name)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return readBounded(f, name)
}

func readBounded(r io.Reader, name string) ([]byte, error) {
	data, err := io.ReadAll(io.LimitReader(r, pki.MaxDocument+1))
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", name, err)
	}
	if len(data) > pki.MaxDocument {
		return nil, fmt.Errorf("read %s: %w", name, pki.ErrSize)
	}
	return data, nil
}
