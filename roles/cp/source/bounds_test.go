package source

import (
	"errors"
	"fmt"
	"io/fs"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"runtime"
	"strings"
	"testing"

	"nixfleet/nixops/fleet"
	"nixfleet/pki"
)

// allocated is how many bytes a step allocates in this process.
func allocated(step func()) uint64 {
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	step()
	runtime.ReadMemStats(&after)
	return after.TotalAlloc - before.TotalAlloc
}

// A small repository can hold documents that are large when they are unpacked: what is
// too large for its kind is refused before it is read.
func TestUnsignedBytesAreBoundedBeforeTheyAreRead(t *testing.T) {
	f := newForge(t)
	head := f.blob(make([]byte, 32<<20))
	var heads strings.Builder
	for i := range 16 {
		fmt.Fprintf(&heads, "100644 blob %s\tc%02d.json\n", head, i)
	}
	tree := f.gitWith([]byte(heads.String()), "mktree")
	doc := f.blob([]byte("{}"))
	f.commitTree(fmt.Sprintf("100644 blob %s\t%s\n040000 tree %s\t%s\n", doc, fleet.FleetName, tree, fleet.HeadsDir))
	var err error
	n := allocated(func() { _, err = f.source().Fetch(t.Context(), "") })
	if !errors.Is(err, pki.ErrSize) || n > 16<<20 {
		t.Errorf("heads of 512 MB: %d bytes were allocated, %v", n, err)
	}
	// Each small enough, all together not.
	head = f.blob(make([]byte, 1<<20))
	heads.Reset()
	for i := range maxHeadsBytes>>20 + 1 {
		fmt.Fprintf(&heads, "100644 blob %s\tc%03d.json\n", head, i)
	}
	tree = f.gitWith([]byte(heads.String()), "mktree")
	f.commitTree(fmt.Sprintf("100644 blob %s\t%s\n040000 tree %s\t%s\n", doc, fleet.FleetName, tree, fleet.HeadsDir))
	n = allocated(func() { _, err = f.source().Fetch(t.Context(), "") })
	if !errors.Is(err, pki.ErrSize) || n > 16<<20 {
		t.Errorf("65 heads of 1 MB: %d bytes were allocated, %v", n, err)
	}
}

// A repository keeps the manifests of every release it ever had; they cost nothing until
// one is asked for.
func TestManifestsOfOldReleasesCostNothing(t *testing.T) {
	f := newForge(t)
	doc := f.blob([]byte("{}"))
	var manifests strings.Builder
	for i := range 100_000 {
		fmt.Fprintf(&manifests, "100644 blob %s\t%064x.json\n", doc, i)
	}
	tree := f.gitWith([]byte(manifests.String()), "mktree")
	f.commitTree(fmt.Sprintf("100644 blob %s\t%s\n040000 tree %s\t%s\n", doc, fleet.FleetName, tree, fleet.ManifestsDir))
	var got Fetched
	var err error
	if n := allocated(func() { got, err = f.source().Fetch(t.Context(), "") }); err != nil || n > 16<<20 {
		t.Fatalf("%d bytes were allocated: %v", n, err)
	}
	name := fleet.ManifestName(fmt.Sprintf("%064x", 77))
	if data, err := fs.ReadFile(got.FS, name); err != nil || string(data) != "{}" {
		t.Errorf("an old manifest: %q %v", data, err)
	}
	for _, none := range []string{
		fleet.ManifestName(strings.Repeat("f", 64)), fleet.ManifestsDir + "/../" + fleet.FleetName,
		fleet.ManifestsDir + "/a\nb.json", "other/x",
	} {
		if _, err := fs.ReadFile(got.FS, none); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("%q: %v", none, err)
		}
	}
}

// The bound of a kind holds for every source.
func TestEverySourceBoundsByKind(t *testing.T) {
	large := make([]byte, 5<<10) // more than a signature
	dir := t.TempDir()
	writeFiles(t, dir, map[string][]byte{fleet.FleetName: []byte("{}"), fleet.FleetName + fleet.SignatureSuffix: large})
	if _, err := NewDir(dir).Fetch(t.Context(), ""); !errors.Is(err, pki.ErrSize) {
		t.Errorf("a directory: %v", err)
	}
	files := httptest.NewServer(http.FileServer(http.Dir(dir)))
	t.Cleanup(files.Close)
	at := files.URL + "/" + fleet.FleetName
	web := NewHTTP(HTTPConfig{Fleet: Pair{Artifact: at, Signature: at + fleet.SignatureSuffix}})
	if _, err := web.Fetch(t.Context(), ""); !errors.Is(err, pki.ErrSize) {
		t.Errorf("URLs: %v", err)
	}
	if _, err := (Dir(filepath.Dir(dir))).ReadFile(filepath.Base(dir) + "/" + fleet.FleetName); err != nil {
		t.Errorf("a document of its size: %v", err)
	}
}
