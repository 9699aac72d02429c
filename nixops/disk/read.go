package disk

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"syscall"
)

var (
	// ErrNotRegular means that the path is not a regular file but a link, a directory, a pipe, a socket or a
	// device.
	ErrNotRegular = errors.New("not a regular file")
	// ErrSize means that the file is larger than the caller's limit.
	ErrSize = errors.New("file is too large")
)

// Read reads a file of at most limit bytes. It never blocks, and does not follow a link at the path: it returns
// ErrNotRegular for everything but a regular file.
func Read(path string, limit int64) ([]byte, error) {
	return read(path, limit, syscall.O_NOFOLLOW)
}

// ReadLinked is Read for a path that may be a link, such as a path from a configuration, in a system closure or of a
// boot loader.
func ReadLinked(path string, limit int64) ([]byte, error) {
	return read(path, limit, 0)
}

func read(path string, limit int64, follow int) ([]byte, error) {
	f, err := open(path, follow)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, limit+1))
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", path, err)
	}
	if int64(len(data)) > limit {
		return nil, fmt.Errorf("read %s: %w: more than %d bytes", path, ErrSize, limit)
	}
	return data, nil
}

// Open opens a regular file for reading. It never blocks, and does not follow a link at the path.
func Open(path string) (*os.File, error) { return open(path, syscall.O_NOFOLLOW) }

func open(path string, follow int) (*os.File, error) {
	f, err := os.OpenFile(path, os.O_RDONLY|syscall.O_NONBLOCK|follow, 0)
	switch {
	// ELOOP is the error for a link, ENXIO and ENODEV are those for a socket and for a device without a driver.
	case errors.Is(err, syscall.ELOOP), errors.Is(err, syscall.ENXIO), errors.Is(err, syscall.ENODEV):
		return nil, &fs.PathError{Op: "open", Path: path, Err: errors.Join(ErrNotRegular, err)}
	case err != nil:
		return nil, err
	}
	info, err := f.Stat()
	if err == nil && !info.Mode().IsRegular() {
		err = &fs.PathError{Op: "open", Path: path, Err: ErrNotRegular}
	}
	if err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return f, nil
}
