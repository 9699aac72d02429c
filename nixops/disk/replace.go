package disk

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"
)

// Replace puts data in the place of the file at path. A reader, also one after a
// power cut, sees the old bytes or the new ones. A link at path is replaced and not
// followed.
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

// Create is Replace for a file that must not be there: fs.ErrExist when it is, also
// when two processes create it at the same time.
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

// ReplaceVolatile is Replace without flushing, for files that need not survive a
// power cut: those below /run, and those of simulations.
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

// ReplaceLink makes the link at path lead to target, as Replace does with a file. The
// directory is made where it is missing.
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

// SyncDir makes what was renamed, linked or removed in a directory last through a
// power cut.
func SyncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return fmt.Errorf("sync %s: %w", dir, err)
	}
	err = d.Sync()
	// Some file systems cannot flush a directory and say so with EINVAL.
	if errors.Is(err, syscall.EINVAL) {
		err = nil
	}
	if err := errors.Join(err, d.Close()); err != nil {
		return fmt.Errorf("sync %s: %w", dir, err)
	}
	return nil
}

// Exists says whether anything lies at the path; a link counts, wherever it leads.
func Exists(path string) bool {
	_, err := os.Lstat(path)
	return err == nil
}

// temporary is the beginning of the names of files that are not whole yet.
const temporary = ".tmp-*"

// writeBeside leaves data, flushed, in a new file in the directory of path.
func writeBeside(path string, data []byte, mode fs.FileMode) (string, error) {
	return writeTemporary(path, data, mode, func(f *os.File) error {
		return errors.Join(f.Sync(), f.Close())
	})
}

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

// take removes a temporary file that could not take its place.
func take(fresh string, err error) error {
	if err != nil {
		os.Remove(fresh)
	}
	return err
}
