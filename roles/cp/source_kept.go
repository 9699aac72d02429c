package cp

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
)

// Keep writes files of a release into dir, all or none: into a new directory
// beside it first, flushed, which then takes its place.
func Keep(dir string, files map[string][]byte) error {
	next := dir + ".next"
	if err := os.RemoveAll(next); err != nil {
		return fmt.Errorf("keep release: %w", err)
	}
	for name, data := range files {
		path := filepath.Join(next, filepath.FromSlash(name))
		if err := os.MkdirAll(filepath.Dir(path), 0o750); err != nil {
			return fmt.Errorf("keep release: %w", err)
		}
		if err := writeSynced(path, data); err != nil {
			return fmt.Errorf("keep release: %w", err)
		}
	}
	last := dir + ".last"
	if err := os.RemoveAll(last); err != nil {
		return fmt.Errorf("keep release: %w", err)
	}
	if err := os.Rename(dir, last); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("keep release: %w", err)
	}
	if err := os.Rename(next, dir); err != nil {
		return fmt.Errorf("keep release: %w", err)
	}
	parent, err := os.Open(filepath.Dir(dir))
	if err != nil {
		return fmt.Errorf("keep release: %w", err)
	}
	return errors.Join(parent.Sync(), parent.Close())
}

func writeSynced(path string, data []byte) error {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_WRONLY|os.O_TRUNC, 0o640)
	if err != nil {
		return err
	}
	_, err = f.Write(data)
	return errors.Join(err, f.Sync(), f.Close())
}

// Kept lists where a kept release may be, the newest first: a crash between
// the two renames leaves only the one before.
func Kept(dir string) []fs.FS {
	var found []fs.FS
	for _, d := range []string{dir, dir + ".last"} {
		if info, err := os.Stat(d); err == nil && info.IsDir() {
			found = append(found, boundedDir(d))
		}
	}
	return found
}
