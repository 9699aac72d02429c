package disk

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"syscall"
	"time"
)

// ErrLocked means that another holder has the lock.
var ErrLocked = errors.New("locked by another process")

// TryLock takes the exclusive lock of a file, which is made where it is missing, or
// gives ErrLocked. The lock ends when the file is closed or its holder dies, by the
// kernel's hand: that a file exists means nothing.
func TryLock(path string) (*os.File, error) {
	return lock(path, lockFile, syscall.LOCK_EX|syscall.LOCK_NB)
}

// TryLockDir is TryLock for a directory that exists.
func TryLockDir(dir string) (*os.File, error) {
	return lock(dir, os.O_RDONLY|syscall.O_DIRECTORY, syscall.LOCK_EX|syscall.LOCK_NB)
}

// WaitLock is TryLock that waits in the kernel, for a lock that is never held for
// longer than a moment: nothing else ends the wait.
func WaitLock(path string) (*os.File, error) { return lock(path, lockFile, syscall.LOCK_EX) }

const lockFile = os.O_RDWR | os.O_CREATE | syscall.O_NOFOLLOW | syscall.O_NONBLOCK

func lock(path string, flags, how int) (*os.File, error) {
	f, err := os.OpenFile(path, flags, 0o600)
	if err != nil {
		return nil, fmt.Errorf("lock: %w", err)
	}
	err = flock(f, how)
	if errors.Is(err, syscall.EWOULDBLOCK) {
		err = ErrLocked
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("lock %s: %w", path, err), f.Close())
	}
	return f, nil
}

// Lock is TryLock that tries again, each time after pause, until ctx ends.
func Lock(ctx context.Context, path string, pause time.Duration) (*os.File, error) {
	for {
		f, err := TryLock(path)
		if !errors.Is(err, ErrLocked) {
			return f, err
		}
		timer := time.NewTimer(pause)
		select {
		case <-ctx.Done():
			timer.Stop()
			return nil, errors.Join(ctx.Err(), err)
		case <-timer.C:
		}
	}
}

// Locked says whether somebody holds the lock of a file. It takes a shared lock for a
// moment. The file is neither made nor deleted; a missing one is not locked.
func Locked(path string) (bool, error) {
	f, err := Open(path)
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	defer f.Close()
	err = flock(f, syscall.LOCK_SH|syscall.LOCK_NB)
	if errors.Is(err, syscall.EWOULDBLOCK) {
		return true, nil
	}
	return false, err
}

func flock(f *os.File, how int) error {
	for {
		if err := syscall.Flock(int(f.Fd()), how); !errors.Is(err, syscall.EINTR) {
			return err
		}
	}
}
