package nixops

import (
	"bufio"
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"nixfleet/nixops/disk"
)

// bootIDs are the files with the id of this boot; the first that can be read counts. The file of PID 1 comes first: in
// a container the id is a mount over the file, and a unit with protected control groups (systemd 252) does not see
// that mount, so agent and guard would read two ids in one boot.
var bootIDs = []string{"/proc/1/root/proc/sys/kernel/random/boot_id", "/proc/sys/kernel/random/boot_id"}

func bootID(ctx context.Context) (string, error) {
	var text []byte
	var err error
	for _, file := range bootIDs {
		if text, err = disk.ReadLinked(file, 128); err == nil {
			break
		}
	}
	if err != nil {
		return "", fmt.Errorf("boot id: %w", err)
	}
	return strings.TrimSpace(string(text)), nil
}

// sinceBoot reads the clock that also runs while the machine sleeps.
func sinceBoot() (time.Duration, error) { return clock(unix.CLOCK_BOOTTIME) }

// Volatile says whether a reboot removes what is in a directory, and returns the kind of its file system. The
// directory must exist. For an overlay, Volatile looks at the upper layer; if it cannot see that layer, as in a
// container, it takes the directory for lasting.
func Volatile(dir string) (bool, string, error) {
	for range 8 {
		var s unix.Statfs_t
		if err := unix.Statfs(dir, &s); err != nil {
			return false, "", fmt.Errorf("statfs %s: %w", dir, err)
		}
		switch int64(s.Type) {
		case unix.TMPFS_MAGIC:
			return true, "tmpfs", nil
		case unix.RAMFS_MAGIC:
			return true, "ramfs", nil
		case unix.OVERLAYFS_SUPER_MAGIC:
		default:
			return false, "", nil
		}
		mounts, err := os.Open("/proc/self/mountinfo")
		if err != nil {
			return false, "", fmt.Errorf("mounts: %w", err)
		}
		real, err := filepath.EvalSymlinks(dir)
		if err != nil {
			mounts.Close()
			return false, "", err
		}
		lines := bufio.NewScanner(mounts)
		lines.Buffer(nil, 1<<20) // overlays of many layers have long lines
		upper := upperOf(lines, real)
		mounts.Close()
		if upper == "" || !disk.Exists(upper) {
			return false, "overlay", lines.Err()
		}
		dir = upper
	}
	return false, "", fmt.Errorf("the overlay mounts of %s form a loop", dir)
}

// upperOf returns the upper directory of the overlay that holds a path, as the lines of /proc/self/mountinfo
// (proc_pid_mountinfo(5)) name it, or "" if they name none.
func upperOf(lines *bufio.Scanner, path string) string {
	best, upper := -1, ""
	unescape := strings.NewReplacer(`\040`, " ", `\011`, "\t", `\012`, "\n", `\134`, `\`)
	for lines.Scan() {
		f := strings.Fields(lines.Text())
		if len(f) < 10 {
			continue
		}
		point := unescape.Replace(f[4])
		if point != "/" && path != point && !strings.HasPrefix(path, point+"/") {
			continue
		}
		// If several mounts have the same mount point, the last one is on top.
		if len(point) < best {
			continue
		}
		best, upper = len(point), ""
		for option := range strings.SplitSeq(f[len(f)-1], ",") {
			if dir, ok := strings.CutPrefix(option, "upperdir="); ok {
				upper = unescape.Replace(dir)
			}
		}
	}
	return upper
}
