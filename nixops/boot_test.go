package nixops

import (
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"nixfleet/nixops/loader"
)

const (
	sysA = "79wqc9mdy0p3ps928658npmkbwf7km19-nixos-system-a"
	sysB = "89wqc9mdy0p3ps928658npmkbwf7km19-nixos-system-b"
)

// write makes files below a directory.
func write(t testing.TB, dir string, files map[string]string) {
	t.Helper()
	for name, text := range files {
		path := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
}

func TestBootDefault(t *testing.T) {
	entry := func(closure string) string {
		return "title NixOS\nlinux /EFI/nixos/k.efi\noptions init=/nix/store/" + closure + "/init loglevel=4\n"
	}
	grub := "set default=\"1\"\nmenuentry \"memtest\" {\n  linux /memtest\n}\nmenuentry \"NixOS\" --class nixos {\n  " +
		"linux ($drive1)//kernels/x init=/nix/store/" +
		sysA + "/init quiet\n}\nsubmenu \"old\" {\n menuentry \"2\" {\n linux x init=/nix/store/" + sysB + "/init\n }\n}\n"
	for name, c := range map[string]struct {
		files map[string]string
		want  string
	}{
		"no loader": {},
		"systemd-boot": {map[string]string{
			"boot/loader/loader.conf": "timeout 5\ndefault nixos-generation-2.conf\nconsole-mode " +
				"keep\n",
			"boot/loader/entries/nixos-generation-1.conf":      entry(sysB),
			"boot/loader/entries/nixos-generation-2.conf":      entry(sysA),
			"boot/loader/entries/nixos-generation-3-best.conf": entry(sysB),
		}, sysA},
		"systemd-boot pattern takes the newest": {map[string]string{
			"boot/loader/loader.conf":                     "default nixos-*\n",
			"boot/loader/entries/nixos-generation-1.conf": entry(sysB),
			"boot/loader/entries/nixos-generation-2.conf": entry(sysA),
		}, sysA},
		// Both were "" before the rules were measured: the loader takes the first entry of its menu.
		"systemd-boot without default": {map[string]string{
			"boot/loader/loader.conf": "timeout 5\n", "boot/loader/entries/a.conf": entry(sysA),
		}, sysA},
		"systemd-boot entry gone": {map[string]string{
			"boot/loader/loader.conf": "default b.conf\n", "boot/loader/entries/a.conf": entry(sysA),
		}, sysA},
		"on /efi": {map[string]string{"efi/loader/loader.conf": "default a\n", "efi/loader/entries/a.conf": entry(sysA),
			"efi/EFI/nixos/k.efi": ""}, sysA},
		"limine": {map[string]string{"boot/limine/limine.conf": "/NixOS\n  cmdline: init=/nix/store/" + sysA + "/init\n"},
			""},
		"grub": {map[string]string{"boot/grub/grub.cfg": grub}, sysA},
		"grub first": {map[string]string{
			"boot/grub/grub.cfg": strings.Replace(grub, `"1"`, `"0"`, 1),
		}, ""},
		"extlinux": {map[string]string{
			"boot/extlinux/extlinux.conf": "DEFAULT nixos-default\nLABEL nixos-1-default\n  APPEND init=/nix/store/" +
				sysB + "/init\nLABEL nixos-default\n  MENU LABEL NixOS\n  APPEND init=/nix/store/" + sysA +
				"/init console=ttyS0\n"},
			sysA},
		"truncated": {map[string]string{
			"boot/extlinux/extlinux.conf": "DEFAULT nixos-default\nLABEL nixos-default\n  APPEND init=/nix/sto"}, ""},
	} {
		t.Run(name, func(t *testing.T) {
			root := t.TempDir()
			write(t, root, c.files)
			write(t, root, map[string]string{"boot/EFI/nixos/k.efi": ""})
			m := &machine{root: root, platform: "linux"}
			got, err := m.BootDefault(t.Context())
			if err != nil || got != c.want {
				t.Errorf("boot default %q, %v; want %q", got, err, c.want)
			}
		})
	}
	// What cannot be read is unknown, says why, and is never an error.
	for why, files := range map[string]map[string]string{
		"no entry":    {"boot/loader/loader.conf": "default a\n"},
		"loader.conf": {"boot/loader/loader.conf": strings.Repeat("#", 9<<20)},
		"no boot":     {},
	} {
		root := t.TempDir()
		write(t, root, files)
		next, err := (&machine{root: root, platform: "linux", bootctl: "false"}).NextBoot(t.Context())
		if err != nil || next.Default != "" || !strings.Contains(next.Unknown, why) {
			t.Errorf("%s: %+v, %v", why, next, err)
		}
	}
}

// TestSecondOpinion: bootctl is asked where it knows, and where the two differ nothing is known.
func TestSecondOpinion(t *testing.T) {
	entry := func(closure string) string { return "options init=/nix/store/" + closure + "/init\n" }
	for name, c := range map[string]struct {
		says, conf string
		want       string
	}{
		"the same": {`echo '[{"id":"nixos-generation-2.conf","isDefault":true},{"id":"x","isDefault":false}]'`,
			"", sysB},
		"another":            {`echo '[{"id":"nixos-generation-1.conf","isDefault":true}]'`, "", ""},
		"no default, as 252": {`echo '{"id":"nixos-generation-1.conf"}'; echo '{"id":"nixos-generation-2.conf"}'`, "", sysB},
		"warnings beside":    {`echo '[]' >&2; echo '[{"id":"nixos-generation-2.conf","isDefault":true}]'`, "", sysB},
		"failure":            {`exit 1`, "", sysB},
		"known to be wrong, as 262": {`echo '[{"id":"nixos-generation-1.conf","isDefault":true}]'`,
			"preferred nixos-generation-2.conf\n", sysB},
	} {
		t.Run(name, func(t *testing.T) {
			root := t.TempDir()
			write(t, root, map[string]string{"boot/loader/loader.conf": c.conf, "bootctl": "#!/bin/sh\n" + c.says + "\n",
				"boot/loader/entries/nixos-generation-1.conf": entry(sysA),
				"boot/loader/entries/nixos-generation-2.conf": entry(sysB)})
			if err := os.Chmod(root+"/bootctl", 0o755); err != nil {
				t.Fatal(err)
			}
			next, err := (&machine{root: root, platform: "linux", bootctl: root + "/bootctl"}).NextBoot(t.Context())
			if err != nil || next.Default != c.want || (next.Unknown == "") != (c.want != "") {
				t.Errorf("%+v, %v; want %q", next, err, c.want)
			}
		})
	}
}

// TestStartedBy: the kernel's command line says what was booted; that of a container's host does not.
func TestStartedBy(t *testing.T) {
	m := &machine{root: t.TempDir(), platform: "linux"}
	want := func(want string) {
		t.Helper()
		if got, err := m.StartedBy(t.Context()); err != nil || got != want {
			t.Errorf("started %q, %v; want %q", got, err, want)
		}
	}
	want("")
	write(t, m.root, map[string]string{"proc/cmdline": "initrd=x init=/nix/store/" + sysA + "/init quiet\n"})
	want(sysA)
	write(t, m.root, map[string]string{"run/systemd/container": "systemd-nspawn"})
	want("")
}

func TestParseElapse(t *testing.T) {
	for out, want := range map[string]string{
		"Normalized form: x\n    Next elapse: Sun 2025-11-30 03:00:00 CET\n       (in UTC): Sun 2025-11-30 02:00:00 UTC\n  " +
			"     From now: 5 days left\n": "2025-11-30T02:00:00Z",
		"    Next elapse: Sun 2025-11-30 02:00:00 UTC\n": "2025-11-30T02:00:00Z",
		"    Next elapse: never\n":                       "0001-01-01T00:00:00Z",
	} {
		if next, err := parseElapse("x", out); err != nil || next.Format(time.RFC3339) != want {
			t.Errorf("%q: %v, %v", out, next, err)
		}
	}
	for _, out := range []string{"", "Next elapse: soon\n", "Next elapse: Sun 2025-11-30 03:00:00 CET\n",
		"Next elapse: Sun 2025-11-30 2:00:00 UTC\n", "Next elapse: Mon 2025-11-30 02:00:00 UTC\n"} {
		if next, err := parseElapse("x", out); err == nil {
			t.Errorf("%q: %v", out, next)
		}
	}
}

func FuzzParseElapse(f *testing.F) {
	f.Add("    Next elapse: Sun 2025-11-30 03:00:00 CET\n       (in UTC): Sun 2025-11-30 02:00:00 UTC\n")
	f.Add("    Next elapse: never\n")
	f.Fuzz(func(t *testing.T, out string) {
		if next, err := parseElapse("x", out); err == nil && !next.IsZero() &&
			!strings.Contains(out, next.Format("15:04:05")) {
			t.Errorf("%q says %v", out, next)
		}
	})
}

func TestBootOnceOfACountedEntry(t *testing.T) {
	root := t.TempDir()
	entry := func(closure string) string {
		return "linux /k.efi\ninitrd /i.efi\noptions init=/nix/store/" + closure + "/init\n"
	}
	write(t, root, map[string]string{
		"boot/k.efi": "", "boot/i.efi": "", "efi/k.efi": "", "efi/i.efi": "", "efi/loader/loader.conf": "",
		"boot/loader/entries/nixos-generation-7+2-1.conf":              entry(sysA),
		"boot/loader/entries/nixos-generation-6.conf":                  entry(sysA),
		"efi/loader/entries/nixos-nixfleet-staged-generation-0+3.conf": entry(sysB),
		"boot/loader/entries/nixos-generation-9.conf.tmp":              entry(sysB),
		"boot/loader/entries/memtest.conf":                             "efi /memtest.efi\n",
		"sys/firmware/efi/efivars/LoaderEntryOneShot-" +
			loader.Vendor: "\x07\x00\x00\x00m\x00e\x00m\x00t\x00e\x00s\x00t\x00\x00\x00",
		"sys/firmware/efi/efivars/LoaderFeatures-" + loader.Vendor:        "\x06\x00",
		"boot/loader/entries/nixos-nixfleet-staged-generation-0.conf.bak": entry(sysB),
		"bootctl": stubOneShot,
	})
	if err := os.Chmod(root+"/bootctl", 0o755); err != nil {
		t.Fatal(err)
	}
	m := &machine{root: root, platform: "linux", bootctl: root + "/bootctl"}
	if err := os.MkdirAll(root+"/boot/efi/loader/entries", 0o755); err != nil {
		t.Fatal(err)
	}
	if dirs := bootDirs(m.root); !slices.Equal(dirs, []string{"/boot", "/efi"}) {
		t.Errorf("an installer writes to %v", dirs)
	}
	// A truncated variable says nothing.
	if can, err := m.CanBootOnce(t.Context()); err != nil || can {
		t.Errorf("truncated features: %v, %v", can, err)
	}
	for closure, want := range map[string]string{sysA: "nixos-generation-7[+.]*conf",
		sysB: "nixos-nixfleet-staged-generation-0[+.]*conf"} {
		if err := m.SetBootOnce(t.Context(), closure); err != nil {
			t.Fatal(err)
		}
		v := loader.ReadVariables(root)
		if once, err := m.BootOnce(t.Context()); err != nil || once != closure || v.OneShot != want {
			t.Errorf("boots once: %q, %v, by %q", once, err, v.OneShot)
		}
	}
	if err := m.SetBootOnce(t.Context(), "none"); !errors.Is(err, ErrNotFound) {
		t.Errorf("without an entry: %v", err)
	}
	// The one-shot of an entry that cannot be loaded would be spent for nothing.
	if err := os.Remove(root + "/efi/i.efi"); err != nil {
		t.Fatal(err)
	}
	if err := m.SetBootOnce(t.Context(), sysB); !errors.Is(err, ErrNotFound) || !strings.Contains(err.Error(), "/i.efi") {
		t.Errorf("without its initrd: %v", err)
	}
	// A bootctl that ends well and does nothing.
	m.bootctl = "true"
	if err := m.SetBootOnce(t.Context(), ""); err == nil || !strings.Contains(err.Error(), "bootctl ended well") {
		t.Errorf("a variable that stayed: %v", err)
	}
}

// stubOneShot writes the variable as bootctl(1) does.
const stubOneShot = `#!/bin/sh
variable=$NIXFLEET_ROOT/sys/firmware/efi/efivars/LoaderEntryOneShot-` + loader.Vendor + `
{ printf '\007\000\000\000'; printf %s "$2" | iconv -t UTF-16LE; printf '\000\000'; } >"$variable"
`

func TestResolve(t *testing.T) {
	root := t.TempDir()
	write(t, root, map[string]string{"nix/store/" + sysA + "/bin/x": "", "etc/passwd": "inside"})
	for link, target := range map[string]string{
		"run/current-system":              "/nix/store/" + sysA,
		"nix/var/profiles/system":         "system-3-link",
		"nix/var/profiles/system-3-link":  "/nix/store/" + sysA,
		"nix/var/profiles/outer":          root + "/nix/store/" + sysA,
		"nix/store/" + sysA + "/up":       "../../../../../../etc/passwd",
		"nix/store/" + sysA + "/loop":     "loop",
		"nix/store/" + sysA + "/gone":     "/nix/store/" + sysB + "/kernel",
		"nix/store/" + sysA + "/escaping": "/../../../etc/passwd",
	} {
		path := filepath.Join(root, link)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.Symlink(target, path); err != nil {
			t.Fatal(err)
		}
	}
	for path, want := range map[string]string{
		"/run/current-system":               "/nix/store/" + sysA,
		"/run/current-system/bin/x":         "/nix/store/" + sysA + "/bin/x",
		"/nix/var/profiles/system/bin":      "/nix/store/" + sysA + "/bin",
		"/nix/var/profiles/outer":           "/nix/store/" + sysA,
		"/run/current-system/up":            "/etc/passwd",
		"/run/current-system/escaping":      "/etc/passwd",
		"/run/current-system/../../../../x": "/x",
	} {
		if got, err := resolve(root, path); got != want || err != nil && want != "/x" {
			t.Errorf("resolve %s: %q, %v; want %q", path, got, err, want)
		}
	}
	if got, err := resolve(root, "/run/current-system/gone"); closureOf(got) != sysB || err == nil {
		t.Errorf("a dangling link: %q, %v", got, err)
	}
	if _, err := resolve(root, "/run/current-system/loop"); err == nil {
		t.Error("a loop of links resolved")
	}
}

func FuzzClosureOf(f *testing.F) {
	f.Add("/nix/store/" + sysA + "/init")
	f.Fuzz(func(t *testing.T, path string) {
		base := closureOf(path)
		if strings.Contains(base, "/") {
			t.Errorf("%q", base)
		}
		if _, err := StorePath(base); err == nil && !strings.HasPrefix(path, storeDir+"/"+base) {
			t.Errorf("%q comes from %q", base, path)
		}
	})
}
