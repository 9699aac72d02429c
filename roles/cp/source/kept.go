package source

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"nixfleet/nixops/disk"
)

// Keep writes files of a release into dir, all or none: into a new directory
// beside it first, flushed, which then takes its place.
func Keep(dir string, files map[string][]byte) error {
	if err := keep(dir, files); err != nil {
		return fmt.Errorf("keep release: %w", err)
	}
	return nil
}

func keep(dir string, files map[string][]byte) error {
	next, last := dir+".next", dir+".last"
	if err := os.RemoveAll(next); err != nil {
		return err
	}
	made := map[string]bool{}
	for name, data := range files {
		if !fs.ValidPath(name) {
			return &fs.PathError{Op: "write", Path: name, Err: fs.ErrInvalid}
		}
		path := filepath.Join(next, filepath.FromSlash(name))
		if err := os.MkdirAll(filepath.Dir(path), 0o750); err != nil {
			return err
		}
		if err := writeSynced(path, data); err != nil {
			return err
		}
		for d := filepath.Dir(path); len(d) >= len(next); d = filepath.Dir(d) {
			made[d] = true
		}
	}
	for d := range made {
		if err := disk.SyncDir(d); err != nil {
			return err
		}
	}
	// The one before stays until the new one is there. After a crash between the
	// two renames it is all there is, so it goes only when dir can take its place.
	if _, err := os.Lstat(dir); err == nil {
		if err := os.RemoveAll(last); err != nil {
			return err
		}
		if err := os.Rename(dir, last); err != nil {
			return err
		}
	} else if !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if err := os.Rename(next, dir); err != nil {
		return err
	}
	return disk.SyncDir(filepath.Dir(dir))
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
			found = append(found, Dir(d))
		}
	}
	return found
}
