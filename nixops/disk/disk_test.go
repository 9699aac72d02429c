package disk_test

import (
	"context"
	"errors"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"nixfleet/nixops/disk"
)

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// names are the entries of a directory, temporary files included.
func names(t *testing.T, dir string) []string {
	t.Helper()
	entries, err := os.ReadDir(dir)
	must(t, err)
	var all []string
	for _, e := range entries {
		all = append(all, e.Name())
	}
	return all
}

func content(t *testing.T, path string) string {
	t.Helper()
	data, err := os.ReadFile(path)
	must(t, err)
	return string(data)
}

func TestReplaceLeavesOldOrNew(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "state")
	for _, write := range []func(string, []byte, fs.FileMode) error{disk.Replace, disk.ReplaceVolatile} {
		must(t, write(path, []byte("one"), 0o600))
		must(t, write(path, []byte("two"), 0o640))
		if got := content(t, path); got != "two" {
			t.Errorf("content %q", got)
		}
		info, err := os.Stat(path)
		must(t, err)
		if info.Mode().Perm() != 0o640 {
			t.Errorf("mode %04o", info.Mode().Perm())
		}
		// A directory in its place: the error leaves nothing behind.
		must(t, os.Mkdir(filepath.Join(dir, "taken"), 0o700))
		if err := write(filepath.Join(dir, "taken"), nil, 0o600); err == nil {
			t.Error("a directory was replaced by a file")
		}
		must(t, os.Remove(filepath.Join(dir, "taken")))
		if got := names(t, dir); !slices.Equal(got, []string{"state"}) {
			t.Errorf("left behind: %q", got)
		}
		must(t, os.Remove(path))
	}
}

func TestReplaceDoesNotFollowLinks(t *testing.T) {
	dir := t.TempDir()
	other := filepath.Join(dir, "other")
	must(t, os.WriteFile(other, []byte("kept"), 0o600))
	must(t, os.Symlink(other, filepath.Join(dir, "state")))
	must(t, disk.Replace(filepath.Join(dir, "state"), []byte("new"), 0o600))
	if got := content(t, other); got != "kept" {
		t.Errorf("the link's target holds %q", got)
	}
}

func TestCreateNeverReplaces(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "key")
	must(t, disk.Create(path, []byte("one"), 0o600))
	if err := disk.Create(path, []byte("two"), 0o600); !errors.Is(err, fs.ErrExist) {
		t.Errorf("a second file of the name: %v", err)
	}
	if got := content(t, path); got != "one" {
		t.Errorf("content %q", got)
	}
	if got := names(t, dir); !slices.Equal(got, []string{"key"}) {
		t.Errorf("left behind: %q", got)
	}
}

func TestReplaceLink(t *testing.T) {
	dir := t.TempDir()
	link := filepath.Join(dir, "made", "link")
	for _, target := range []string{"one", "two"} {
		must(t, disk.ReplaceLink(target, link))
		if got, err := os.Readlink(link); err != nil || got != target {
			t.Errorf("link leads to %q, %v", got, err)
		}
	}
	if got := names(t, filepath.Dir(link)); !slices.Equal(got, []string{"link"}) {
		t.Errorf("left behind: %q", got)
	}
}

// TestReadNeitherBlocksNorFollows: what a release or an attacker leaves in the place of
// a state file is an error, at once.
func TestReadNeitherBlocksNorFollows(t *testing.T) {
	dir := t.TempDir()
	at := func(name string) string { return filepath.Join(dir, name) }
	must(t, os.WriteFile(at("file"), []byte("12345"), 0o600))
	must(t, syscall.Mkfifo(at("fifo"), 0o600))
	must(t, os.Mkdir(at("directory"), 0o700))
	must(t, os.Symlink("file", at("link")))
	must(t, os.Symlink("fifo", at("link-to-fifo")))
	l, err := net.Listen("unix", at("socket"))
	must(t, err)
	defer l.Close()

	if data, err := disk.Read(at("file"), 5); err != nil || string(data) != "12345" {
		t.Errorf("a file of the size of the limit: %q, %v", data, err)
	}
	if data, err := disk.ReadLinked(at("link"), 5); err != nil || string(data) != "12345" {
		t.Errorf("a link that may be followed: %q, %v", data, err)
	}
	if _, err := disk.Read(at("file"), 4); !errors.Is(err, disk.ErrSize) {
		t.Errorf("a file that is larger: %v", err)
	}
	if _, err := disk.Read(at("missing"), 4); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("no file: %v", err)
	}
	for _, name := range []string{"fifo", "directory", "link", "link-to-fifo", "socket"} {
		ended := make(chan error, 1)
		go func() {
			_, err := disk.Read(at(name), 100)
			ended <- err
		}()
		select {
		case err := <-ended:
			if !errors.Is(err, disk.ErrNotRegular) || !strings.Contains(err.Error(), at(name)) {
				t.Errorf("%s: %v", name, err)
			}
		case <-time.After(10 * time.Second):
			t.Fatalf("reading a %s blocks", name)
		}
	}
	for _, name := range []string{"fifo", "directory", "link-to-fifo", "socket"} {
		if _, err := disk.ReadLinked(at(name), 100); !errors.Is(err, disk.ErrNotRegular) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if _, err := disk.Read("/dev/zero", 100); !errors.Is(err, disk.ErrNotRegular) {
		t.Errorf("a device: %v", err)
	}
}

func TestLockExcludes(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "lock")
	if held, err := disk.Locked(path); err != nil || held {
		t.Errorf("without a file: %v, %v", held, err)
	}
	for name, try := range map[string]func() (*os.File, error){
		"file":      func() (*os.File, error) { return disk.TryLock(path) },
		"directory": func() (*os.File, error) { return disk.TryLockDir(dir) },
	} {
		first, err := try()
		must(t, err)
		if _, err := try(); !errors.Is(err, disk.ErrLocked) {
			t.Errorf("%s: a second holder: %v", name, err)
		}
		must(t, first.Close())
		second, err := try()
		must(t, err)
		must(t, second.Close())
	}

	held, err := disk.TryLock(path)
	must(t, err)
	if is, err := disk.Locked(path); err != nil || !is {
		t.Errorf("while it is held: %v, %v", is, err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancel()
	if _, err := disk.Lock(ctx, path, time.Millisecond); !errors.Is(err, disk.ErrLocked) ||
		!errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("a wait that ended: %v", err)
	}
	got := make(chan error, 2)
	for _, wait := range []func() (*os.File, error){
		func() (*os.File, error) { return disk.Lock(t.Context(), path, time.Millisecond) },
		func() (*os.File, error) { return disk.WaitLock(path) },
	} {
		go func() {
			again, err := wait()
			if err == nil {
				err = again.Close()
			}
			got <- err
		}()
	}
	must(t, held.Close())
	must(t, <-got)
	must(t, <-got)
}

func TestLockOfSomethingElse(t *testing.T) {
	dir := t.TempDir()
	must(t, os.Mkdir(filepath.Join(dir, "lock"), 0o700))
	if _, err := disk.TryLock(filepath.Join(dir, "lock")); err == nil || errors.Is(err, disk.ErrLocked) {
		t.Errorf("a directory in the place of a lock: %v", err)
	}
	if _, err := disk.Locked(filepath.Join(dir, "lock")); !errors.Is(err, disk.ErrNotRegular) {
		t.Errorf("a directory in the place of a lock: %v", err)
	}
}

func TestFreeOfAPathToCome(t *testing.T) {
	dir := t.TempDir()
	free, err := disk.Free(filepath.Join(dir, "not", "yet"))
	if err != nil || free == 0 {
		t.Errorf("free: %d, %v", free, err)
	}
	if !disk.IsFull(&fs.PathError{Op: "write", Path: dir, Err: syscall.ENOSPC}) || disk.IsFull(fs.ErrNotExist) {
		t.Error("ENOSPC and only it is a full disk")
	}
}

// TestUnlockFreesEveryCopy: a child process that is just being started has a copy of the locked file.
func TestUnlockFreesEveryCopy(t *testing.T) {
	path := filepath.Join(t.TempDir(), "lock")
	held, err := disk.TryLock(path)
	must(t, err)
	child, err := syscall.Dup(int(held.Fd()))
	must(t, err)
	defer syscall.Close(child)
	must(t, disk.Unlock(held))
	again, err := disk.TryLock(path)
	must(t, err)
	must(t, disk.Unlock(again))
}
