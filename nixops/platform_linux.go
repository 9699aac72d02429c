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

// bootIDs are where the id of this boot is read. Through PID 1 first: a container's id
// is a mount over the file, which a unit with protected control groups (systemd 252)
// does not see, so that agent and guard would take one boot for two.
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

// sinceBoot reads the clock that goes on while the machine is asleep.
func sinceBoot() (time.Duration, error) { return clock(unix.CLOCK_BOOTTIME) }

// Volatile says whether what is written to a directory is gone after a reboot,
// and on what kind of file system it lies. The directory must exist. The upper
// layer of an overlay counts where it can be seen; out of a container's sight it
// is taken to last.
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
	return false, "", fmt.Errorf("%s: its overlay mounts form a loop", dir)
}

// upperOf finds the upper directory of the overlay that a path lies on in
// /proc/self/mountinfo (proc_pid_mountinfo(5)).
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
		// Of mounts on one point the last one is on top.
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
