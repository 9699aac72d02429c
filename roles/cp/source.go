package cp

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"nixfleet/nixops/fleet"
	"nixfleet/pki"
)

// Source yields releases.
type Source interface {
	// Fetch reads the current release. known is the Revision of the last
	// snapshot that was accepted, empty when there is none; an equal one gives
	// Unchanged and no FS. One Fetch at a time.
	Fetch(ctx context.Context, known string) (Snapshot, error)
	String() string
}

// Snapshot is a release directory as it was at one moment: its documents do
// not change any more. Only manifests of older releases, the names of which are
// hashes of their content, may be read when they are asked for.
type Snapshot struct {
	FS        fs.FS  // rooted at the release directory
	Revision  string // commit, or a hash of what was read
	Unchanged bool
}

// maxReleaseBytes bounds what one release may hold in memory, without the
// manifests of older ones.
const maxReleaseBytes = 512 << 20

// listedNames are the documents beside the fleet document that a release may have.
var listedNames = []string{fleet.RevocationsName, fleet.NoncesName}

// memory is a release directory in memory.
type memory map[string][]byte

// Open opens a document.
func (m memory) Open(name string) (fs.File, error) {
	data, err := m.ReadFile(name)
	if err != nil {
		return nil, err
	}
	return &document{Reader: bytes.NewReader(data), name: path.Base(name)}, nil
}

// ReadFile gives a document's bytes, which are not to be changed.
func (m memory) ReadFile(name string) ([]byte, error) {
	if data, ok := m[name]; ok {
		return data, nil
	}
	return nil, &fs.PathError{Op: "open", Path: name, Err: fs.ErrNotExist}
}

// add reads one more document, within the bound of the whole. One that is not
// there is an error only when it is needed.
func (m memory) add(from fs.FS, name string, needed bool) error {
	data, err := fs.ReadFile(from, name)
	if errors.Is(err, fs.ErrNotExist) && !needed {
		return nil
	}
	if err != nil {
		return err
	}
	m[name] = data
	if total := m.size(); total > maxReleaseBytes {
		return fmt.Errorf("read %s: %w: the release has more than %d bytes", name, pki.ErrSize, maxReleaseBytes)
	}
	return nil
}

func (m memory) size() (total int) {
	for _, data := range m {
		total += len(data)
	}
	return total
}

// document is an open file of bytes in memory, and its own description.
type document struct {
	*bytes.Reader
	name string
}

func (d *document) Close() error               { return nil }
func (d *document) Stat() (fs.FileInfo, error) { return d, nil }
func (d *document) Name() string               { return d.name }
func (d *document) Mode() fs.FileMode          { return 0o444 }
func (d *document) ModTime() time.Time         { return time.Time{} }
func (d *document) IsDir() bool                { return false }
func (d *document) Sys() any                   { return nil }

// layers is what several directories hold together; the first that has a name
// gives it.
type layers []fs.FS

// Open opens a document.
func (l layers) Open(name string) (fs.File, error) {
	return first(l, name, fs.FS.Open)
}

// ReadFile reads a document within the bound of its own layer.
func (l layers) ReadFile(name string) ([]byte, error) {
	return first(l, name, fs.ReadFile)
}

func first[T any](l layers, name string, get func(fs.FS, string) (T, error)) (T, error) {
	for _, layer := range l {
		if got, err := get(layer, name); !errors.Is(err, fs.ErrNotExist) {
			return got, err
		}
	}
	var none T
	return none, &fs.PathError{Op: "open", Path: name, Err: fs.ErrNotExist}
}

// boundedDir is a directory whose files are read up to pki.MaxDocument.
type boundedDir string

// Open opens a regular file below the directory; a pipe or device would block.
func (d boundedDir) Open(name string) (fs.File, error) {
	if !fs.ValidPath(name) {
		return nil, &fs.PathError{Op: "open", Path: name, Err: fs.ErrInvalid}
	}
	f, err := os.OpenFile(filepath.Join(string(d), filepath.FromSlash(name)), os.O_RDONLY|syscall.O_NONBLOCK, 0)
	if err != nil {
		return nil, err
	}
	info, err := f.Stat()
	if err == nil && !info.Mode().IsRegular() {
		err = &fs.PathError{Op: "open", Path: f.Name(), Err: errors.New("not a regular file")}
	}
	if err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return f, nil
}

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

// maxSecret bounds a token file, in bytes.
const maxSecret = 8 << 10

// secretFile reads a token, trimmed. It is read anew at each use.
func secretFile(path string) (string, error) {
	f, err := os.Open(path)
	if err != nil {
		return "", fmt.Errorf("read token: %w", err)
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, maxSecret+1))
	if err != nil {
		return "", fmt.Errorf("read token: %w", err)
	}
	token := strings.TrimSpace(string(data))
	switch {
	case len(data) > maxSecret:
		return "", fmt.Errorf("read token %s: more than %d bytes", path, maxSecret)
	case token == "":
		return "", fmt.Errorf("read token %s: it is empty", path)
	case strings.ContainsFunc(token, func(r rune) bool { return r < ' ' || r == 0x7f }):
		return "", fmt.Errorf("read token %s: more than one line", path)
	}
	return token, nil
}
