package nixops

import (
	"bufio"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"nixfleet/nixops/disk"
)

func TestVolatile_A26(t *testing.T) {
	shm := "/dev/shm"
	if volatile, kind, err := Volatile(shm); err == nil && disk.Exists("/proc/self/mountinfo") {
		mounts, _ := os.ReadFile("/proc/self/mountinfo")
		if strings.Contains(string(mounts), " /dev/shm ") && (!volatile || kind != "tmpfs") {
			t.Errorf("%s: %v %s", shm, volatile, kind)
		}
	}
	if _, _, err := Volatile(filepath.Join(t.TempDir(), "missing")); err == nil {
		t.Error("a directory that is not there has a kind")
	}
	mounts := "22 1 0:20 / / rw - overlay overlay rw,lowerdir=/l,upperdir=/tmp/up\\040per,workdir=/w\n" +
		"23 22 0:21 / /var rw - ext4 /dev/sda1 rw\n" +
		"24 22 0:22 / /var/lib rw shared:1 - overlay overlay rw,lowerdir=/a:/b,upperdir=/persist/up,workdir=/w\n" +
		"25 22 0:23 / /varnish rw - tmpfs tmpfs rw\nshort line\n"
	for path, want := range map[string]string{
		"/etc": "/tmp/up per", "/var/lib/nixfleet-agent": "/persist/up", "/var/lib": "/persist/up", "/var/log": "",
		"/various": "/tmp/up per",
	} {
		if got := upperOf(bufio.NewScanner(strings.NewReader(mounts)), path); got != want {
			t.Errorf("upper of %s is %q, want %q", path, got, want)
		}
	}
}
