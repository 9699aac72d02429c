package store

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"syscall"
)

// handOver gives a file that root has written to the owner of its directory. The control
// plane runs as a user of its own, and could not open what belongs to root: systemd leaves
// the files below a state directory as they are where the directory's own owner is right
// (systemd.exec(5), StateDirectory=). For any other caller it does nothing. That user may
// write the directory: a link that it has put there is refused, and not given away.
func handOver(path string) error {
	if os.Geteuid() != 0 {
		return nil
	}
	dir, err := os.Stat(filepath.Dir(path))
	if err != nil {
		return err
	}
	f, err := os.OpenFile(path, os.O_RDONLY|syscall.O_NOFOLLOW|syscall.O_NONBLOCK, 0)
	if err != nil {
		return fmt.Errorf("give %s to the owner of its directory: %w", path, err)
	}
	err = handOverOpen(f, dir)
	return errors.Join(err, f.Close())
}

func handOverOpen(f *os.File, dir os.FileInfo) error {
	info, err := f.Stat()
	if err != nil {
		return err
	}
	file, ok := info.Sys().(*syscall.Stat_t)
	owner, known := dir.Sys().(*syscall.Stat_t)
	if !ok || !known || !info.Mode().IsRegular() || file.Nlink != 1 {
		return fmt.Errorf("give %s to the owner of its directory: it is not a file of one name", f.Name())
	}
	if file.Uid == owner.Uid && file.Gid == owner.Gid {
		return nil
	}
	return f.Chown(int(owner.Uid), int(owner.Gid))
}
