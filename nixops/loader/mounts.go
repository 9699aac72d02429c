package loader

import (
	"fmt"
	"os"
	"path"
	"strings"

	"nixfleet/nixops/disk"
)

// mounts maps each mount point of the machine to the kind of the file system on top there. It is nil if that is not
// known (proc_pid_mountinfo(5)).
func mounts(root string) map[string]string {
	text, err := disk.ReadLinked(path.Join(root, "/proc/self/mountinfo"), maxConfig)
	if err != nil {
		return nil
	}
	kinds := map[string]string{}
	for line := range strings.Lines(string(text)) {
		left, right, _ := strings.Cut(line, " - ")
		f, kind := strings.Fields(left), strings.Fields(right)
		if len(f) > 4 && len(kind) > 0 {
			kinds[f[4]] = kind[0] // a later line lies on top of an earlier one
		}
	}
	return kinds
}

// unmounted returns a directory of Dirs that /etc/fstab has a file system for and on which none is mounted, or "". What
// lies in such a directory is not what the loader reads. A directory that is mounted on demand counts as mounted.
func unmounted(root string) string {
	kinds := mounts(root)
	table, err := disk.ReadLinked(path.Join(root, "/etc/fstab"), maxConfig)
	if kinds == nil || err != nil {
		return ""
	}
	for line := range strings.Lines(string(table)) {
		f := strings.Fields(line)
		if len(f) < 3 || strings.HasPrefix(f[0], "#") {
			continue
		}
		for _, dir := range Dirs {
			if path.Clean(f[1]) == dir && kinds[dir] == "" {
				return dir
			}
		}
	}
	return ""
}

// Stamp is a text that changes when a file changes by which the loader chooses. It does not look into a directory that
// is mounted on demand and is not mounted now, so that an ESP may rest.
func Stamp(root string) string {
	kinds := mounts(root)
	var b strings.Builder
	for _, dir := range Dirs {
		if kinds[dir] == "autofs" {
			continue
		}
		fmt.Fprintf(&b, "%s %s", dir, kinds[dir])
		for _, file := range []string{"loader/loader.conf", "loader/entries", "EFI/Linux", "grub/grub.cfg", "grub/grubenv",
			"extlinux/extlinux.conf"} {
			if info, err := os.Stat(path.Join(root, dir, file)); err == nil {
				fmt.Fprintf(&b, " %d.%d", info.ModTime().UnixNano(), info.Size())
			}
		}
	}
	v := ReadVariables(root)
	fmt.Fprintf(&b, " %q %q %q %q", v.OneShot, v.Preferred, v.Default, v.LastBooted)
	return b.String()
}
