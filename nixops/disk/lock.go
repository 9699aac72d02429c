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

// TryLock takes the exclusive lock of a file, or returns ErrLocked. It makes the file if it does not exist. The kernel
// ends the lock when the holder closes the file or dies, so a file that exists need not be locked.
func TryLock(path string) (*os.File, error) {
	return lock(path, lockFile, syscall.LOCK_EX|syscall.LOCK_NB)
}

// TryLockDir is TryLock for a directory that exists.
func TryLockDir(dir string) (*os.File, error) {
	return lock(dir, os.O_RDONLY|syscall.O_DIRECTORY, syscall.LOCK_EX|syscall.LOCK_NB)
}

// WaitLock takes the lock as TryLock does, but waits in the kernel until the lock is free. Nothing else ends the wait,
// so it is for locks that are held only for a moment.
func WaitLock(path string) (*os.File, error) { return lock(path, lockFile, syscall.LOCK_EX) }

// lockFile are the flags with which TryLock opens a file.
const lockFile = os.O_RDWR | os.O_CREATE | syscall.O_NOFOLLOW | syscall.O_NONBLOCK

func lock(path string, flags, how int) (*os.File, error) {
	f, err := os.OpenFile(path, flags, 0o600)
	if errors.Is(err, syscall.EROFS) {
		// A lock needs no writing, so a file that exists can be locked on a read-only file system, too.
		f, err = os.OpenFile(path, flags&^(os.O_RDWR|os.O_CREATE), 0o600)
	}
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

// Unlock frees a lock and closes its file. A close alone would leave the lock to a child process that is just being
// started, and has a copy of every file until it runs its program.
func Unlock(f *os.File) error { return errors.Join(flock(f, syscall.LOCK_UN), f.Close()) }

// Lock calls TryLock until it gets the lock or ctx ends, with a pause after each try.
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

// Locked says whether a process holds the lock of a file. It takes a shared lock for a moment. It neither makes nor
// deletes the file; a file that does not exist is not locked.
func Locked(path string) (bool, error) {
	f, err := Open(path)
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	err = flock(f, syscall.LOCK_SH|syscall.LOCK_NB)
	if err == nil {
		return false, Unlock(f)
	}
	defer f.Close()
	if errors.Is(err, syscall.EWOULDBLOCK) {
		return true, nil
	}
	return false, err
}

// flock calls flock(2) again after a signal has interrupted it.
func flock(f *os.File, how int) error {
	for {
		if err := syscall.Flock(int(f.Fd()), how); !errors.Is(err, syscall.EINTR) {
			return err
		}
	}
}
