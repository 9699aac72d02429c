package source

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"path"
	"time"

	"nixfleet/nixops/fleet"
	"nixfleet/pki"
)

// maxReleaseBytes bounds what one release may hold in Memory, without the
// manifests of older ones.
const maxReleaseBytes = 256 << 20

// listedNames are the documents beside the fleet document that a release may have.
var listedNames = []string{fleet.RevocationsName, fleet.NoncesName}

// Memory is a release directory in Memory.
type Memory map[string][]byte

// Open opens a document.
func (m Memory) Open(name string) (fs.File, error) {
	data, err := m.ReadFile(name)
	if err != nil {
		return nil, err
	}
	return &document{Reader: bytes.NewReader(data), name: path.Base(name)}, nil
}

// ReadFile gives a document's bytes, which are not to be changed.
func (m Memory) ReadFile(name string) ([]byte, error) {
	if data, ok := m[name]; ok {
		return data, nil
	}
	return nil, &fs.PathError{Op: "open", Path: name, Err: fs.ErrNotExist}
}

// add reads one more document, within the bound of the whole. One that is not
// there is an error only when it is needed.
func (m Memory) add(from fs.FS, name string, needed bool) error {
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

func (m Memory) size() (total int) {
	for _, data := range m {
		total += len(data)
	}
	return total
}

// document is an open file of bytes in Memory, and its own description.
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

// Layers is what several directories hold together; the first that has a name
// gives it.
type Layers []fs.FS

// Open opens a document.
func (l Layers) Open(name string) (fs.File, error) {
	return first(l, name, fs.FS.Open)
}

// ReadFile reads a document within the bound of its own layer.
func (l Layers) ReadFile(name string) ([]byte, error) {
	return first(l, name, fs.ReadFile)
}

func first[T any](l Layers, name string, get func(fs.FS, string) (T, error)) (T, error) {
	for _, layer := range l {
		if got, err := get(layer, name); !errors.Is(err, fs.ErrNotExist) {
			return got, err
		}
	}
	var none T
	return none, &fs.PathError{Op: "open", Path: name, Err: fs.ErrNotExist}
}
