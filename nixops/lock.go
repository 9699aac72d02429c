package nixops

import (
	"errors"
	"io/fs"
	"os"

	"golang.org/x/sys/unix"
)

// flockHeld says whether somebody holds the advisory lock of a file. It asks for a shared
// lock and lets go at once: the file's existence means nothing, and it is
// neither made nor deleted.
func flockHeld(path string) (bool, error) {
	file, err := os.Open(path)
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	defer file.Close()
	err = unix.Flock(int(file.Fd()), unix.LOCK_SH|unix.LOCK_NB)
	if errors.Is(err, unix.EWOULDBLOCK) {
		return true, nil
	}
	return false, err
}
