package operator

import (
	"errors"
	"fmt"
	"io/fs"

	"nixfleet/nixops/disk"
	"nixfleet/roles/command"
)

// writeNew writes a whole file at once or not at all. Without force a file
// that exists is never touched, also when two of us run at the same time.
func writeNew(path string, data []byte, mode fs.FileMode, force bool) error {
	write := disk.Create
	if force {
		write = disk.Replace
	}
	err := write(path, data, mode)
	if errors.Is(err, fs.ErrExist) {
		return errExists(path)
	}
	return err
}

func errExists(path string) error {
	return command.Hinted(fmt.Errorf("%s exists", path),
		"--force replaces it; make sure first that the old one is not needed")
}
