package source

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"nixfleet/nixops/fleet"
)

func TestADirectoryGivesARelease(t *testing.T) {
	files, trust := signedRelease(t)
	dir := t.TempDir()
	writeFiles(t, dir, files)
	s := NewDir(dir)
	got := fetched(t, s, "")
	if rel := verifies(t, got.FS, trust); len(rel.Channels) != 2 || rel.Channels["edge"].Head == nil {
		t.Errorf("%d channels", len(rel.Channels))
	}
	fetched(t, s, got.Revision)

	// What was read stays as it was; only manifests are looked up later.
	writeFiles(t, dir, map[string][]byte{
		fleet.FleetName: []byte("new"), fleet.FleetName + fleet.SignatureSuffix: []byte("new"),
		"rollouts/later.json": []byte("later"), "heads/later.json": []byte("x"),
	})
	if content(t, got.FS, fleet.FleetName) != string(files[fleet.FleetName]) {
		t.Error("the snapshot changed")
	}
	if content(t, got.FS, "rollouts/later.json") != "later" {
		t.Error("a manifest that came later is not found")
	}
	if _, err := got.FS.Open("heads/later.json"); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("a head of another release: %v", err)
	}
	if next := fetched(t, s, got.Revision); next.Unchanged || content(t, next.FS, fleet.FleetName) != "new" {
		t.Error("the new release is not seen")
	}
}

func TestAListThatChangesAloneIsSeen(t *testing.T) {
	files, _ := signedRelease(t)
	dir := t.TempDir()
	writeFiles(t, dir, files)
	s := NewDir(dir)
	last := fetched(t, s, "").Revision
	for _, name := range []string{fleet.RevocationsName, fleet.NoncesName, fleet.HeadName("edge"), fleet.FleetName} {
		writeFiles(t, dir, map[string][]byte{name + fleet.SignatureSuffix: []byte("new")})
		got := fetched(t, s, last)
		if got.Unchanged {
			t.Errorf("%s changed and nothing noticed", name)
		}
		last = got.Revision
	}
}

func TestV1PairOfFiles(t *testing.T) {
	files, trust := signedRelease(t)
	dir, sigs := t.TempDir(), t.TempDir()
	writeFiles(t, dir, files)
	if err := errors.Join(
		os.Rename(filepath.Join(dir, fleet.FleetName), filepath.Join(dir, "fleet.json")),
		os.Rename(filepath.Join(dir, fleet.FleetName+fleet.SignatureSuffix), filepath.Join(sigs, "signature")),
	); err != nil {
		t.Fatal(err)
	}
	got := fetched(t, NewFiles(filepath.Join(dir, "fleet.json"), filepath.Join(sigs, "signature")), "")
	rel, err := fleet.LoadRelease(got.FS,
		fleet.LoadOptions{Trust: trust, Now: releasedAt, Window: time.Hour, FleetName: "fleet.json"})
	if err != nil || rel.Revocations == nil {
		t.Error(err)
	}
}

func TestAReleaseBeingWrittenIsReadAgain(t *testing.T) {
	files, trust := signedRelease(t)
	dir := t.TempDir()
	late := files[fleet.RevocationsName]
	delete(files, fleet.RevocationsName)
	writeFiles(t, dir, files)
	if _, err := NewDir(dir).Fetch(t.Context(), ""); !errors.Is(err, errBeingWritten) {
		t.Errorf("signature without its document: %v", err)
	}
	written := make(chan struct{})
	go func() {
		defer close(written)
		time.Sleep(dirPause + dirPause/2)
		writeFiles(t, dir, map[string][]byte{fleet.RevocationsName: late})
	}()
	verifies(t, fetched(t, NewDir(dir), "").FS, trust)
	<-written

	ctx, cancel := context.WithTimeout(t.Context(), dirPause/2)
	defer cancel()
	if err := os.Remove(filepath.Join(dir, fleet.RevocationsName)); err != nil {
		t.Fatal(err)
	}
	if _, err := NewDir(dir).Fetch(ctx, ""); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("cancelled: %v", err)
	}
}

// rewritten is a directory in which a writer replaces the fleet's pair after
// each of the first n reads of the document.
type rewritten struct {
	Dir
	t testing.TB
	n int
}

func (d *rewritten) ReadFile(name string) ([]byte, error) {
	data, err := d.Dir.ReadFile(name)
	if name == fleet.FleetName && d.n > 0 {
		d.n--
		text := []byte{byte('a' + d.n)}
		writeFiles(d.t, string(d.Dir),
			map[string][]byte{fleet.FleetName: text, fleet.FleetName + fleet.SignatureSuffix: text})
	}
	return data, err
}

func TestADirectoryReplacedWhileItIsReadIsReadAgain(t *testing.T) {
	dir := t.TempDir()
	writeFiles(t, dir, map[string][]byte{fleet.FleetName: []byte("old"),
		fleet.FleetName + fleet.SignatureSuffix: []byte("old")})
	s := NewDir(dir).(*dirSource)
	s.files = &rewritten{Dir(dir), t, 2}
	got := fetched(t, s, "")
	if a, b := content(t, got.FS, fleet.FleetName), content(t, got.FS, fleet.FleetName+fleet.SignatureSuffix); a != "a" ||
		b != "a" {
		t.Errorf("%s with the signature of %s", a, b)
	}
	s.files = &rewritten{Dir(dir), t, 2 * dirAttempts}
	if _, err := s.Fetch(t.Context(), ""); !errors.Is(err, errBeingWritten) {
		t.Errorf("a writer that never rests: %v", err)
	}
}

func TestADirectoryWithoutARelease(t *testing.T) {
	if _, err := NewDir(t.TempDir()).Fetch(t.Context(), ""); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("empty: %v", err)
	}
	files, _ := signedRelease(t)
	for name, spoil := range map[string]func(path string) error{
		"a pipe":      func(path string) error { return syscall.Mkfifo(path, 0o644) },
		"a directory": func(path string) error { return os.Mkdir(path, 0o755) },
	} {
		for _, file := range []string{fleet.FleetName, fleet.FleetName + fleet.SignatureSuffix,
			fleet.HeadName("edge") + fleet.SignatureSuffix} {
			dir := t.TempDir()
			writeFiles(t, dir, files)
			path := filepath.Join(dir, file)
			if err := errors.Join(os.Remove(path), spoil(path)); err != nil {
				t.Fatal(err)
			}
			if _, err := NewDir(dir).Fetch(t.Context(), ""); err == nil {
				t.Errorf("%s as %s was read", name, file)
			}
		}
	}
}

func TestPathsOutsideADirectory(t *testing.T) {
	dir := t.TempDir()
	writeFiles(t, dir, map[string][]byte{"secret": []byte("x"), "in/side": []byte("y")})
	d := Dir(filepath.Join(dir, "in"))
	for _, name := range []string{"../secret", "/etc/passwd", "side/../../secret", ""} {
		if data, err := d.ReadFile(name); err == nil {
			t.Errorf("%q: %q", name, data)
		}
	}
	if content(t, d, "side") != "y" {
		t.Error("not read")
	}
}

func TestAcceptedReleasesAreKept(t *testing.T) {
	files, trust := signedRelease(t)
	dir := filepath.Join(t.TempDir(), "accepted")
	if len(Kept(dir)) != 0 {
		t.Error("something is kept before anything was")
	}
	for range 2 {
		if err := Keep(dir, files); err != nil {
			t.Fatal(err)
		}
		verifies(t, Kept(dir)[0], trust)
	}
	if err := Keep(dir, map[string][]byte{"only": []byte("new")}); err != nil {
		t.Fatal(err)
	}
	kept := Kept(dir)
	if _, err := kept[0].Open(fleet.FleetName); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("a file of the one before: %v", err)
	}
	verifies(t, kept[1], trust)
}

func TestACrashKeepsOneWholeRelease(t *testing.T) {
	one, two := map[string][]byte{"x/y": []byte("one")}, map[string][]byte{"x/y": []byte("two")}
	dir := filepath.Join(t.TempDir(), "accepted")
	if err := Keep(dir, one); err != nil {
		t.Fatal(err)
	}
	// While writing the next one.
	writeFiles(t, dir+".next", map[string][]byte{"x/y": []byte("tw"), "junk": nil})
	if content(t, Kept(dir)[0], "x/y") != "one" {
		t.Error("the half-written one is taken")
	}
	// Between the two renames; then a Keep that fails, then one that works.
	if err := os.Rename(dir, dir+".last"); err != nil {
		t.Fatal(err)
	}
	if kept := Kept(dir); len(kept) != 1 || content(t, kept[0], "x/y") != "one" {
		t.Errorf("%d kept", len(kept))
	}
	for _, name := range []string{"../escape", "/etc/escape", "a/../../escape", ""} {
		if err := Keep(dir, map[string][]byte{name: nil}); !errors.Is(err, fs.ErrInvalid) {
			t.Errorf("%q: %v", name, err)
		}
	}
	if kept := Kept(dir); len(kept) != 1 || content(t, kept[0], "x/y") != "one" {
		t.Errorf("a failed Keep lost what was kept: %d", len(kept))
	}
	if err := Keep(dir, two); err != nil {
		t.Fatal(err)
	}
	if kept := Kept(dir); content(t, kept[0], "x/y") != "two" {
		t.Error("not the newest first")
	}
	if junk, _ := filepath.Glob(filepath.Join(dir, "junk")); junk != nil {
		t.Error("the remains of the crash are in the release")
	}
}
