package nixops

import (
	"errors"
	"fmt"
	"io/fs"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"nixfleet/nixops/disk"
	"nixfleet/nixops/loader"
)

// kernelDirs are the directories of a boot file system into which NixOS's installers copy kernels and initrds:
// systemd-boot's, GRUB's and extlinux's, and that of unified images.
var kernelDirs = []string{"/EFI/nixos", "/kernels", "/nixos", "/EFI/Linux"}

// bootRoom fills in the free space of the boot file system that has the least left, after the kernel and the initrd of
// the closure were copied to it. "" stands for no closure. What an installer may remove first, because only older
// generations use it, counts as free.
func bootRoom(root, closure string, space *Space) error {
	space.BootFree = math.MaxUint64
	for _, dir := range bootDirs(root) {
		free, err := disk.Free(root + dir)
		if err != nil {
			return fmt.Errorf("free space of %s: %w", dir, err)
		}
		space.BootFree = min(space.BootFree, free)
		if fixed, err := disk.ReadOnly(root + dir); err != nil {
			return err
		} else if fixed {
			space.BootReadOnly = dir
		}
		if closure == "" {
			continue
		}
		shared, err := disk.SameFileSystem(root+dir, root+storeDir)
		if err != nil {
			return err
		}
		if shared {
			continue
		}
		takes, removable, err := copies(root, dir, closure)
		if err != nil {
			return err
		}
		if takes > free+removable && takes-free-removable > space.BootLacks {
			space.BootLacks, space.BootLacking = takes-free-removable, dir
		}
	}
	return nil
}

// copies returns how many bytes an installer would copy to a boot file system for the closure, and how many bytes of
// other generations than the default it may remove before. A file that is there already under its store path's name, or
// with the same size, is not copied again.
func copies(root, dir, closure string) (takes, removable uint64, err error) {
	kept := map[string]bool{}
	if e := loader.Read(root).Default.Entry; e != nil {
		for _, file := range append([]string{e.Path, e.Kernel}, e.Initrds...) {
			kept[filepath.Join(root, e.Dir, file)] = true
		}
	}
	var sizes []int64
	names := ""
	for _, sub := range kernelDirs {
		files, err := os.ReadDir(root + dir + sub)
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return 0, 0, fmt.Errorf("kernels in %s: %w", dir, err)
		}
		for _, f := range files {
			info, err := f.Info()
			if err != nil || !info.Mode().IsRegular() {
				continue
			}
			sizes, names = append(sizes, info.Size()), names+f.Name()+"\n"
			if !kept[filepath.Join(root+dir+sub, f.Name())] {
				removable += uint64(info.Size())
			}
		}
	}
	for _, part := range []string{"kernel", "initrd"} {
		file, err := resolve(root, storeDir+"/"+closure+"/"+part)
		if err != nil {
			continue // a container has none
		}
		info, err := os.Stat(root + file)
		if err != nil || !info.Mode().IsRegular() || strings.Contains(names, closureOf(file)) ||
			slices.Contains(sizes, info.Size()) {
			continue
		}
		takes += uint64(info.Size())
	}
	return takes, removable, nil
}
