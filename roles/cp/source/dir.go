package source

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"nixfleet/nixops/fleet"
	"nixfleet/pki"
)

const (
	// A directory that is being written is read again this often, and this long
	// after.
	dirAttempts = 5
	dirPause    = 100 * time.Millisecond
	// MaxHeads bounds the files in the directory of heads.
	MaxHeads = 20_000
)

// errBeingWritten means that the release changed under every attempt to read it.
var errBeingWritten = errors.New("the release is being written")

// dirSource reads a local release directory.
type dirSource struct {
	dir, fleetName string
	files          fs.FS  // dir
	signature      string // file of the fleet document's signature
}

// NewDir is a release directory that something else fills. Signatures
// are written last: when they are the same before and after the documents were
// read, the documents belong to them, unless the writer stands between the two,
// in which case the release does not verify and is read again later.
func NewDir(dir string) Source { return NewFiles(filepath.Join(dir, fleet.FleetName), "") }

// NewFiles is the v1 pair of local files, of any names; the rest of the
// release, where there is one, is beside the fleet document. No signature means
// the usual one.
func NewFiles(artifact, signature string) Source {
	if signature == "" {
		signature = artifact + fleet.SignatureSuffix
	}
	dir := filepath.Dir(artifact)
	return &dirSource{dir: dir, fleetName: filepath.Base(artifact), files: Dir(dir), signature: signature}
}

func (s *dirSource) String() string { return filepath.Join(s.dir, s.fleetName) }

func (s *dirSource) Fetch(ctx context.Context, known string) (Fetched, error) {
	for attempt := range dirAttempts {
		if attempt > 0 {
			select {
			case <-ctx.Done():
				return Fetched{}, ctx.Err()
			case <-time.After(dirPause):
			}
		}
		got, err := s.read(known)
		if err == nil || !errors.Is(err, errBeingWritten) {
			return got, err
		}
	}
	return Fetched{}, fmt.Errorf("read %s: %w", s, errBeingWritten)
}

func (s *dirSource) read(known string) (Fetched, error) {
	sigs, revision, err := s.signatures()
	if err != nil {
		return Fetched{}, fmt.Errorf("read release: %w", err)
	}
	if revision == known {
		return Fetched{Revision: revision, Unchanged: true}, nil
	}
	files := maps.Clone(sigs)
	for name := range sigs {
		if err := files.add(s.files, strings.TrimSuffix(name, fleet.SignatureSuffix), true); err != nil {
			if errors.Is(err, fs.ErrNotExist) {
				err = fmt.Errorf("%w: %w", errBeingWritten, err)
			}
			return Fetched{}, fmt.Errorf("read release: %w", err)
		}
	}
	_, after, err := s.signatures()
	if err != nil {
		return Fetched{}, fmt.Errorf("read release: %w", err)
	}
	if after != revision {
		return Fetched{}, errBeingWritten
	}
	return Fetched{FS: Layers{files, manifestsOnly{s.files}}, Revision: revision}, nil
}

// signatures reads all but those of manifests; the revision is a hash of them.
func (s *dirSource) signatures() (Memory, string, error) {
	sigs := Memory{}
	sig, err := Dir(filepath.Dir(s.signature)).ReadFile(filepath.Base(s.signature))
	if err != nil {
		return nil, "", err
	}
	sigs[s.fleetName+fleet.SignatureSuffix] = sig
	for _, name := range listedNames {
		if err := sigs.add(s.files, name+fleet.SignatureSuffix, false); err != nil {
			return nil, "", err
		}
	}
	heads, err := os.ReadDir(filepath.Join(s.dir, fleet.HeadsDir))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, "", err
	}
	if len(heads) > MaxHeads {
		return nil, "", fmt.Errorf("%s has more than %d files", fleet.HeadsDir, MaxHeads)
	}
	for _, head := range heads {
		if strings.HasSuffix(head.Name(), ".json"+fleet.SignatureSuffix) {
			if err := sigs.add(s.files, fleet.HeadsDir+"/"+head.Name(), false); err != nil {
				return nil, "", err
			}
		}
	}
	return sigs, sigs.revision(), nil
}

// revision is a hash of names and contents.
func (m Memory) revision() string {
	var all []byte
	for _, name := range slices.Sorted(maps.Keys(m)) {
		all = append(all, name+"\x00"+pki.HashHex(m[name])+"\x00"...)
	}
	return pki.HashHex(all)
}

// manifestsOnly hides everything but manifests.
type manifestsOnly struct{ fs.FS }

// Open opens a manifest or its signature.
func (d manifestsOnly) Open(name string) (fs.File, error) {
	if !strings.HasPrefix(name, fleet.ManifestsDir+"/") {
		return nil, &fs.PathError{Op: "open", Path: name, Err: fs.ErrNotExist}
	}
	return d.FS.Open(name)
}

// ReadFile reads a manifest within the directory's bound.
func (d manifestsOnly) ReadFile(name string) ([]byte, error) {
	if !strings.HasPrefix(name, fleet.ManifestsDir+"/") {
		return nil, &fs.PathError{Op: "open", Path: name, Err: fs.ErrNotExist}
	}
	return fs.ReadFile(d.FS, name)
}
