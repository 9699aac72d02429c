package journal

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"syscall"
	"time"

	"nixfleet/nixops/disk"
)

// agentLock is held by the running agent.
const agentLock = "agent.lock"

// Directory is a state directory, root's and closed to others.
type Directory string

// Open makes the directory, or refuses one that others can write.
func Open(path string) (Directory, error) {
	if err := os.MkdirAll(path, 0o700); err != nil {
		return "", fmt.Errorf("state directory: %w", err)
	}
	if err := OwnOnly(path); err != nil {
		return "", fmt.Errorf("state directory: %w", err)
	}
	// On a read-only file system the mode stays as it is; nobody else can write it either.
	if err := os.Chmod(path, 0o700); err != nil && !errors.Is(err, syscall.EROFS) {
		return "", fmt.Errorf("state directory: %w", err)
	}
	return Directory(path), nil
}

// Path is the path of a file in the directory.
func (d Directory) Path(name string) string { return filepath.Join(string(d), name) }

// OwnOnly refuses a file or directory that another user owns or can write.
func OwnOnly(path string) error {
	info, err := os.Stat(path)
	if err != nil {
		return err
	}
	if info.Mode().Perm()&0o022 != 0 {
		return fmt.Errorf("%s can be written by others (mode %04o)", path, info.Mode().Perm())
	}
	if st, ok := info.Sys().(*syscall.Stat_t); ok && st.Uid != 0 && int(st.Uid) != os.Geteuid() {
		return fmt.Errorf("%s belongs to user %d", path, st.Uid)
	}
	return nil
}

// Remove deletes a file for good. A file that is not there is not an error.
func (d Directory) Remove(name string) error {
	if err := os.Remove(d.Path(name)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("remove %s: %w", name, err)
	}
	return disk.SyncDir(string(d))
}

// KeepNewest removes all but the newest n files.
func (d Directory) KeepNewest(n int) error {
	entries, err := os.ReadDir(string(d))
	if err != nil || len(entries) <= n {
		return err
	}
	written := make(map[string]time.Time, len(entries))
	for _, e := range entries {
		info, err := e.Info()
		if err != nil {
			return err
		}
		written[e.Name()] = info.ModTime()
	}
	slices.SortFunc(entries, func(a, b fs.DirEntry) int { return written[b.Name()].Compare(written[a.Name()]) })
	for _, e := range entries[n:] {
		if err := os.Remove(d.Path(e.Name())); err != nil {
			return err
		}
	}
	return nil
}

// SetAside keeps a file that cannot be believed for people to look at, and returns its new path.
func (d Directory) SetAside(name string) (string, error) {
	aside := d.Path(name) + ".unfit"
	if err := os.Rename(d.Path(name), aside); err != nil {
		return "", fmt.Errorf("set aside %s: %w", name, err)
	}
	return aside, disk.SyncDir(string(d))
}

// ErrRunning means that another agent runs on the state directory.
var ErrRunning = errors.New("another agent runs on the state directory")

// Only keeps a second agent away, which would resume the activation of the first.
func (d Directory) Only() (leave func(), err error) {
	f, err := disk.TryLock(d.Path(agentLock))
	if errors.Is(err, disk.ErrLocked) {
		return nil, fmt.Errorf("%w: %s", ErrRunning, d)
	}
	if err != nil {
		return nil, fmt.Errorf("lock state directory: %w", err)
	}
	return func() { _ = disk.Unlock(f) }, nil
}
