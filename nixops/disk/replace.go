package disk

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"
)

// Replace replaces the file at path by one that contains data. A reader sees all the old bytes or all the new ones,
// even after a power cut. Replace does not follow a link at path but replaces it.
func Replace(path string, data []byte, mode fs.FileMode) error {
	fresh, err := writeBeside(path, data, mode)
	if err == nil {
		err = take(fresh, os.Rename(fresh, path))
	}
	if err != nil {
		return fmt.Errorf("write %s: %w", path, err)
	}
	return SyncDir(filepath.Dir(path))
}

// Create is Replace for a file that must not exist. It returns fs.ErrExist if the file exists, also if another process
// creates it at the same time.
func Create(path string, data []byte, mode fs.FileMode) error {
	fresh, err := writeBeside(path, data, mode)
	if err == nil {
		err = os.Link(fresh, path)
		os.Remove(fresh)
	}
	if err != nil {
		return fmt.Errorf("write %s: %w", path, err)
	}
	return SyncDir(filepath.Dir(path))
}

// ReplaceVolatile is Replace without a flush to the disk. It is for files that need not survive a power cut: those
// below /run and those of simulations.
func ReplaceVolatile(path string, data []byte, mode fs.FileMode) error {
	fresh, err := writeTemporary(path, data, mode, (*os.File).Close)
	if err == nil {
		err = take(fresh, os.Rename(fresh, path))
	}
	if err != nil {
		return fmt.Errorf("write %s: %w", path, err)
	}
	return nil
}

// ReplaceLink makes path a link that leads to target, in the same way as Replace replaces a file. It makes the
// directory of path if that does not exist.
func ReplaceLink(target, path string) error {
	dir := filepath.Dir(path)
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	fresh, err := os.MkdirTemp(dir, temporary)
	if err != nil {
		return err
	}
	defer os.RemoveAll(fresh)
	if err := os.Symlink(target, fresh+"/new"); err != nil {
		return err
	}
	if err := os.Rename(fresh+"/new", path); err != nil {
		return err
	}
	return SyncDir(dir)
}

// SyncDir flushes a directory to the disk, so that renames, new links and removals in it survive a power cut.
func SyncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return fmt.Errorf("sync %s: %w", dir, err)
	}
	err = d.Sync()
	// Some file systems cannot flush a directory and return EINVAL.
	if errors.Is(err, syscall.EINVAL) {
		err = nil
	}
	if err := errors.Join(err, d.Close()); err != nil {
		return fmt.Errorf("sync %s: %w", dir, err)
	}
	return nil
}

// Exists says whether there is anything at the path. A link counts, even if its target does not exist.
func Exists(path string) bool {
	_, err := os.Lstat(path)
	return err == nil
}

// temporary is the pattern for the names of files that are not complete yet.
const temporary = ".tmp-*"

// writeBeside writes data to a new file in the directory of path, flushes it, and returns its name.
func writeBeside(path string, data []byte, mode fs.FileMode) (string, error) {
	return writeTemporary(path, data, mode, func(f *os.File) error {
		return errors.Join(f.Sync(), f.Close())
	})
}

// writeTemporary writes data to a new file in the directory of path, calls finish with it, and returns its name.
func writeTemporary(path string, data []byte, mode fs.FileMode, finish func(*os.File) error) (string, error) {
	f, err := os.CreateTemp(filepath.Dir(path), temporary)
	if err != nil {
		return "", err
	}
	err = f.Chmod(mode)
	if err == nil {
		_, err = f.Write(data)
	}
	return f.Name(), take(f.Name(), errors.Join(err, finish(f)))
}

// take removes the temporary file if err is not nil, and returns err.
func take(fresh string, err error) error {
	if err != nil {
		os.Remove(fresh)
	}
	return err
}
