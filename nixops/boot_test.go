package nixops

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
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
		"systemd-boot without default": {map[string]string{
			"boot/loader/loader.conf": "timeout 5\n", "boot/loader/entries/a.conf": entry(sysA),
		}, ""},
		"systemd-boot entry gone": {map[string]string{
			"boot/loader/loader.conf": "default b.conf\n", "boot/loader/entries/a.conf": entry(sysA),
		}, ""},
		"on /efi": {map[string]string{"efi/loader/loader.conf": "default a\n", "efi/loader/entries/a.conf": entry(sysA)},
			sysA},
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
			m := &machine{root: root, platform: "linux"}
			got, err := m.BootDefault(t.Context())
			if c.want == "" && strings.HasSuffix(name, "gone") {
				err = nil
			}
			if err != nil || got != c.want {
				t.Errorf("boot default %q, %v; want %q", got, err, c.want)
			}
		})
	}
	// A loader whose entries cannot be read is an error, not "no loader".
	root := t.TempDir()
	write(t, root, map[string]string{"boot/loader/loader.conf": "default a\n"})
	if _, err := (&machine{root: root, platform: "linux"}).BootDefault(t.Context()); err == nil {
		t.Error("unreadable entries passed")
	}
	write(t, root, map[string]string{"boot/loader/loader.conf": strings.Repeat("#", maxBootConfig+1)})
	if _, err := (&machine{root: root, platform: "linux"}).BootDefault(t.Context()); err == nil {
		t.Error("an oversized configuration passed")
	}
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

func TestEntryOf(t *testing.T) {
	root := t.TempDir()
	entry := func(closure string) string { return "options init=/nix/store/" + closure + "/init\n" }
	write(t, root, map[string]string{
		"boot/loader/entries/nixos-generation-7+2-1.conf":              entry(sysA),
		"boot/loader/entries/nixos-generation-6.conf":                  entry(sysA),
		"efi/loader/entries/nixos-nixfleet-staged-generation-1+3.conf": entry(sysB),
		"boot/loader/entries/nixos-generation-9.conf.tmp":              entry(sysB),
		"boot/loader/entries/memtest.conf":                             "efi /memtest.efi\n",
		"sys/firmware/efi/efivars/LoaderEntryOneShot" +
			loaderVendor: "\x07\x00\x00\x00m\x00e\x00m\x00t\x00e\x00s\x00t\x00\x00\x00",
		"sys/firmware/efi/efivars/LoaderFeatures" + loaderVendor:          "\x06\x00",
		"boot/loader/entries/nixos-nixfleet-staged-generation-0.conf.bak": entry(sysB),
	})
	m := &machine{root: root, platform: "linux"}
	if err := os.MkdirAll(root+"/boot/efi/loader/entries", 0o755); err != nil {
		t.Fatal(err)
	}
	if dirs := bootDirs(m.root); !slices.Equal(dirs, []string{"/boot", "/efi"}) {
		t.Errorf("an installer writes to %v", dirs)
	}
	for closure, want := range map[string]string{sysA: "nixos-generation-7.conf",
		sysB: "nixos-nixfleet-staged-generation-1.conf", "none": ""} {
		if id, err := entryOf(m.root, closure); err != nil || id != want {
			t.Errorf("entry of %s: %q, %v; want %q", closure, id, err, want)
		}
	}
	// An entry that starts no closure is nobody's, a truncated variable says nothing.
	if closure, err := m.BootOnce(t.Context()); err != nil || closure != "" {
		t.Errorf("boots once: %q, %v", closure, err)
	}
	if can, err := m.CanBootOnce(t.Context()); err != nil || can {
		t.Errorf("truncated features: %v, %v", can, err)
	}
}

func FuzzBootConfig(f *testing.F) {
	f.Add("set default=\"0\"\nmenuentry x {\n linux y init=/nix/store/" + sysA + "/init\n}\n")
	f.Add("DEFAULT a\nLABEL a\nAPPEND init=/nix/store/" + sysA + "/init\n")
	f.Fuzz(func(t *testing.T, config string) {
		for _, pick := range []func(string, string) (string, error){grubDefault, extlinuxDefault} {
			closure, err := pick("", config)
			if err != nil {
				t.Error(err)
			}
			if strings.ContainsAny(closure, "/ \n") {
				t.Errorf("closure %q is not a base name", closure)
			}
		}
	})
}

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
