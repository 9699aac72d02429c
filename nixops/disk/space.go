package disk

import (
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// Free returns how many bytes unprivileged writers can still use on the file system of a path. The path need not exist:
// then the nearest directory above it counts.
func Free(path string) (uint64, error) {
	for {
		var s unix.Statfs_t
		err := unix.Statfs(path, &s)
		if err == nil {
			return s.Bavail * uint64(s.Bsize), nil
		}
		if !errors.Is(err, fs.ErrNotExist) || path == "/" {
			return 0, fmt.Errorf("statfs %s: %w", path, err)
		}
		path = filepath.Dir(path)
	}
}

// readOnly is ST_RDONLY of Linux and MNT_RDONLY of Darwin.
const readOnly = 1

// ReadOnly says whether the file system of a path is mounted so that nothing can be written to it. A path that does not
// exist is on none.
func ReadOnly(path string) (bool, error) {
	var s unix.Statfs_t
	err := unix.Statfs(path, &s)
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("statfs %s: %w", path, err)
	}
	return s.Flags&readOnly != 0, nil
}

// IsFull says whether an error means that no space, or no quota, is left.
func IsFull(err error) bool {
	return errors.Is(err, unix.ENOSPC) || errors.Is(err, unix.EDQUOT)
}

// SameFileSystem says whether two paths are on one file system. A path that does not exist is on every one.
func SameFileSystem(a, b string) (bool, error) {
	var of [2]unix.Stat_t
	for i, path := range []string{a, b} {
		err := unix.Stat(path, &of[i])
		if errors.Is(err, fs.ErrNotExist) {
			return true, nil
		}
		if err != nil {
			return false, fmt.Errorf("stat %s: %w", path, err)
		}
	}
	return of[0].Dev == of[1].Dev, nil
}
