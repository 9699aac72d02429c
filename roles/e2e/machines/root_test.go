package machines

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"nixfleet/nixops/testnix"
)

// rootRecipe is raised when makeRoot makes something else than before.
const rootRecipe = 2

// nixInside is where the Nix of the test machine lies in every machine. Its programs
// are found by the links in bin.
const nixInside = "/opt/nix"

// systemdInside holds systemd's own programs and no other.
const systemdInside = "/opt/systemd/bin"

// release is the Debian of the machines: that of the machine that runs the test, whose
// programs (systemd-nspawn, a binary linked against its libc) meet it.
const release = "bookworm"

// baseRoot is the root file system that all machines share and none writes to. It is
// made once, by debootstrap, and kept in the directory that NIXFLEET_TEST_MACHINES names.
func baseRoot(t testing.TB, dir string, nix testnix.Nix) string {
	t.Helper()
	must(t, os.MkdirAll(dir, 0o755))
	lock, err := os.OpenFile(filepath.Join(dir, "lock"), os.O_CREATE|os.O_RDWR, 0o600)
	must(t, err)
	defer lock.Close()
	must(t, syscall.Flock(int(lock.Fd()), syscall.LOCK_EX))

	root := filepath.Join(dir, fmt.Sprintf("root-%s-%d", release, rootRecipe))
	if _, err := os.Stat(root); err == nil {
		return root
	}
	fresh := root + ".new"
	must(t, os.RemoveAll(fresh))
	t.Log("making the root of the machines with debootstrap")
	command(t, "debootstrap", "--variant=minbase", "--include=systemd,systemd-sysv,dbus,iproute2,ca-certificates", release,
		fresh, mirror(t))

	// As on NixOS, units come from the running closure alone. Debian's own links that
	// enable some are gone with the directory.
	must(t, os.RemoveAll(fresh+"/etc/systemd/system"))
	must(t, os.Symlink("../static/systemd/system", fresh+"/etc/systemd/system"))
	must(t, os.WriteFile(fresh+"/etc/NIXOS", nil, 0o644))
	// What nobody asks for here but what takes inotify instances, of which root has 128.
	for _, wanted := range []string{"sysinit.target.wants/systemd-ask-password-*",
		"multi-user.target.wants/systemd-ask-password-*",
		"multi-user.target.wants/getty.target", "multi-user.target.wants/systemd-logind.service", "timers.target.wants/*"} {
		links, err := filepath.Glob(fresh + "/usr/lib/systemd/system/" + wanted)
		must(t, err)
		for _, link := range links {
			must(t, os.Remove(link))
		}
	}
	// NixOS's systemd gives its units a PATH of its own programs and nothing else,
	// which is all that a unit made by systemd-run has.
	must(t, os.MkdirAll(fresh+systemdInside, 0o755))
	for _, program := range []string{"systemctl", "systemd-run", "systemd-analyze", "journalctl"} {
		must(t, os.Symlink("/usr/bin/"+program, fresh+systemdInside+"/"+program))
	}
	must(t, os.MkdirAll(fresh+"/etc/systemd/system.conf.d", 0o755))
	must(t, os.WriteFile(fresh+"/etc/systemd/system.conf.d/path.conf",
		[]byte("[Manager]\nDefaultEnvironment=PATH="+systemdInside+"\n"), 0o644))
	must(t, os.RemoveAll(fresh+"/etc/hostname"))

	// The Nix that .ci/nix.sh made runs by the absolute paths of its own libc, and the
	// agent has a /tmp of its own: it gets a place that is the same in every machine.
	command(t, "cp", "-a", nix.Dir+"/root", fresh+nixInside)
	program := fresh + nixInside + "/usr/bin/nix"
	for _, change := range []struct{ show, set string }{{"--print-interpreter", "--set-interpreter"},
		{"--print-rpath", "--set-rpath"}} {
		old := strings.TrimSpace(command(t, "patchelf", change.show, program))
		command(t, "patchelf", "--force-rpath", change.set, strings.ReplaceAll(old, nix.Dir+"/root", nixInside), program)
	}
	must(t, os.Mkdir(fresh+nixInside+"/bin", 0o755))
	for _, tool := range []string{"nix", "nix-store", "nix-env"} {
		must(t, os.Symlink("../usr/bin/nix", fresh+nixInside+"/bin/"+tool))
	}
	must(t, os.Rename(fresh, root))
	return root
}

// mirror is the archive that apt of this machine uses.
func mirror(t testing.TB) string {
	t.Helper()
	for line := range strings.Lines(
		command(t, "apt-get", "indextargets", "--format", "$(CREATED_BY)|$(RELEASE)|$(REPO_URI)|$(COMPONENT)")) {
		f := strings.Split(strings.TrimSpace(line), "|")
		if len(f) == 4 && f[0] == "Packages" && f[1] == release && f[3] == "main" {
			return f[2]
		}
	}
	t.Fatalf("apt on this machine knows no main archive of %s", release)
	return ""
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// command runs a program of the test machine and gives what it printed.
func command(t testing.TB, name string, args ...string) string {
	t.Helper()
	out, err := exec.CommandContext(t.Context(), name, args...).CombinedOutput()
	if err != nil {
		t.Fatalf("%s %s: %v\n%s", name, strings.Join(args, " "), err, out)
	}
	return string(out)
}
