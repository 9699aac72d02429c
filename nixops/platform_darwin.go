package nixops

import (
	"context"
	"fmt"
	"time"

	"golang.org/x/sys/unix"
)

func bootID(ctx context.Context) (string, error) {
	id, err := unix.Sysctl("kern.bootsessionuuid")
	if err != nil {
		return "", fmt.Errorf("boot id: %w", err)
	}
	return id, nil
}

// sinceBoot reads the clock that also runs while the machine sleeps.
func sinceBoot() (time.Duration, error) { return clock(unix.CLOCK_MONOTONIC) }

// Volatile says whether a reboot removes what is in a directory, and returns the kind of its file system. The
// directory must exist.
func Volatile(dir string) (bool, string, error) {
	var s unix.Statfs_t
	if err := unix.Statfs(dir, &s); err != nil {
		return false, "", fmt.Errorf("statfs %s: %w", dir, err)
	}
	kind := unix.ByteSliceToString(s.Fstypename[:])
	return kind == "tmpfs", kind, nil
}

// endUsersPart has nothing to do: launchd's switch has no part for users.
func endUsersPart(context.Context, string, time.Duration) (int, error) { return 0, nil }
