package nixops

import (
	"os"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// TestBootRoom: what the kernel and the initrd take on a boot file system of its own, less what is there already or may
// be removed.
func TestBootRoom(t *testing.T) {
	root := t.TempDir()
	kernel := "79wqc9mdy0p3ps928658npmkbwf7kmaa-linux-6.12.1"
	write(t, root, map[string]string{
		"nix/store/" + kernel + "/bzImage":                   strings.Repeat("k", 3<<20),
		"nix/store/" + sysA + "/x":                           "",
		"nix/store/" + strings.Repeat("b", 32) + "-i/initrd": strings.Repeat("i", 2<<20),
	})
	for link, to := range map[string]string{"kernel": "/nix/store/" + kernel + "/bzImage",
		"initrd": "/nix/store/" + strings.Repeat("b", 32) + "-i/initrd"} {
		if err := os.Symlink(to, root+"/nix/store/"+sysA+"/"+link); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Mkdir(root+"/boot", 0o755); err != nil {
		t.Fatal(err)
	}
	lacks := func() uint64 {
		t.Helper()
		var space Space
		if err := bootRoom(root, sysA, &space); err != nil {
			t.Fatal(err)
		}
		if (space.BootLacks > 0) != (space.BootLacking == "/boot") {
			t.Errorf("%+v", space)
		}
		return space.BootLacks
	}
	if n := lacks(); n != 0 {
		t.Errorf("on the store's own file system it lacks %d bytes", n)
	}
	if err := unix.Mount("tmpfs", root+"/boot", "tmpfs", 0, "size=4m"); err != nil {
		t.Skipf("no file system can be mounted here: %v", err)
	}
	defer func() {
		if err := unix.Unmount(root+"/boot", 0); err != nil {
			t.Error(err)
		}
	}()
	if n := lacks(); n == 0 || n > 2<<20 {
		t.Errorf("5 MiB on a partition of 4 MiB lack %d bytes", n)
	}
	old := strings.Repeat("o", 1<<20)
	write(t, root, map[string]string{"boot/EFI/nixos/old.efi": old, "boot/EFI/nixos/older.efi": old})
	if n := lacks(); n == 0 {
		t.Error("what may be removed does not make the partition larger than it is")
	}
	write(t, root, map[string]string{"boot/EFI/nixos/" + kernel + "-bzImage.efi": ""})
	if n := lacks(); n != 0 {
		t.Errorf("the kernel is there already, and %d bytes are missing", n)
	}
	if err := unix.Mount("", root+"/boot", "", unix.MS_REMOUNT|unix.MS_RDONLY, ""); err != nil {
		t.Fatal(err)
	}
	var space Space
	if err := bootRoom(root, "", &space); err != nil || space.BootReadOnly != "/boot" {
		t.Errorf("mounted read-only: %+v, %v", space, err)
	}
}
