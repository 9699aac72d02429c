package loader

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"unicode/utf16"
)

// write makes files below a directory.
func write(t testing.TB, dir string, files map[string]string) {
	t.Helper()
	for name, text := range files {
		file := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(file, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
}

// system is the name of a closure for a letter or a number.
func system(name string) string {
	return strings.Repeat("0", 32-len(name)) + name + "-nixos-system-" + name
}

// A tree is what a machine's boot partition and firmware hold in a test: paths below the ESP with their contents, and
// variables of the boot loader.
type tree struct {
	files     map[string]string
	variables map[string]string
	images    map[string]map[string]string // files that are EFI images, with their sections
}

func newTree(conf string) tree {
	return tree{map[string]string{
		"boot/loader/loader.conf": conf, "boot/EFI/nixos/k.efi": "", "boot/EFI/nixos/i.efi": "",
	}, map[string]string{}, map[string]map[string]string{}}
}

// entry adds an entry in the form that NixOS writes. more replaces or adds lines, `-KEY` drops one.
func (t tree) entry(name, closure string, more ...string) tree {
	lines := map[string]string{
		"title": "NixOS", "sort-key": "nixos", "version": "Generation " + closure + " NixOS, built on 2026-11-01",
		"linux": "/EFI/nixos/k.efi", "initrd": "/EFI/nixos/i.efi", "options": "init=/nix/store/" + system(closure) +
			"/init loglevel=4", "machine-id": "0123456789abcdef0123456789abcdef",
	}
	for _, line := range more {
		if key, drop := strings.CutPrefix(line, "-"); drop {
			delete(lines, key)
			continue
		}
		key, value, _ := strings.Cut(line, " ")
		lines[key] = value
	}
	text := ""
	for _, key := range []string{"title", "sort-key", "version", "linux", "initrd", "options", "machine-id"} {
		if value, ok := lines[key]; ok {
			text += key + " " + value + "\n"
		}
	}
	if !strings.Contains(name, "/") {
		name = "boot/loader/entries/" + name
	}
	t.files[name] = text
	return t
}

func (t tree) variable(name, value string) tree {
	t.variables[name] = value
	return t
}

// image adds a unified kernel image.
func (t tree) image(name, closure, id, version string) tree {
	t.images[name] = map[string]string{
		".osrel": fmt.Sprintf("ID=%s\nVERSION_ID=\"%s\"\nPRETTY_NAME=NixOS\n", id, version), ".cmdline": "init=/nix/store/" +
			system(closure) + "/init",
	}
	return t
}

func (t tree) write(tb testing.TB, version string) (root string) {
	tb.Helper()
	root = tb.TempDir()
	write(tb, root, t.files)
	for name, sections := range t.images {
		write(tb, root, map[string]string{name: testImage(sections)})
	}
	for name, value := range t.variables {
		write(tb, root, map[string]string{variableFile(name): variableValue(value)})
	}
	if version != "" {
		write(tb, root, map[string]string{variableFile("LoaderInfo"): variableValue("systemd-boot " + version)})
	}
	return root
}

func variableFile(name string) string { return VariableDir + "/" + name + "-" + Vendor }

func variableValue(text string) string {
	value := []byte{7, 0, 0, 0}
	for _, w := range utf16.Encode([]rune(text + "\x00")) {
		value = append(value, byte(w), byte(w>>8))
	}
	return string(value)
}

// boot is what a loader of systemd was seen to start on a tree. The boots were made with systemd 252.39, 257.13 and
// 262.1; `.ci/run loaders` makes them again.
type boot struct {
	what      string
	tree      tree
	old, next string // by 252 and by 262; next is "" where it is the same
	once      bool   // because a variable says so for one boot
}

func boots() []boot {
	nine := func(conf string) tree {
		return newTree(conf).entry("nixos-generation-9.conf", "9").entry("nixos-generation-10.conf", "10")
	}
	return []boot{
		{what: "9 and 10, no default", tree: nine(""), old: "10"},
		{what: "an exact default", tree: nine("default nixos-generation-9.conf\n"), old: "9"},
		{what: "a default without suffix", tree: nine("default nixos-generation-9\n"), old: "10"},
		{what: "a default that is gone", tree: nine("default nixos-gone.conf\n"), old: "10"},
		{what: "a pattern", tree: nine("timeout 5\ndefault nixos-*\n"), old: "10"},
		{what: "a pattern that the first of the menu does not match", tree: newTree("default nixos-*\n").
			entry("nixos-aaaa.conf", "1", "-sort-key").entry("nixos-zzzz.conf", "2", "-sort-key").
			entry("other.conf", "3"), old: "2"},
		{what: "names of hashes", tree: newTree("default nixos-*\n").entry("nixos-aaaa.conf", "10").
			entry("nixos-zzzz.conf", "9"), old: "10"},
		{what: "one without a sort-key", tree: newTree("").entry("nixos-generation-10.conf", "10", "-sort-key").
			entry("nixos-generation-9.conf", "9"), old: "9"},
		{what: "sort-keys in their order", tree: newTree("").entry("nixos-generation-10.conf", "10", "sort-key b").
			entry("nixos-generation-9.conf", "9", "sort-key a"), old: "9"},
		{what: "machine-ids in their order", tree: newTree("").entry("nixos-generation-10.conf", "10", "machine-id bb").
			entry("nixos-generation-9.conf", "9", "machine-id aa"), old: "9"},
		{what: "a staged profile with a higher number under a pattern", tree: newTree("default nixos-*\n").
			entry("nixos-generation-12.conf", "12").entry("nixos-nixfleet-staged-generation-13.conf", "13"), old: "13"},
		{what: "the same under a narrower pattern", tree: newTree("default nixos-generation-*\n").
			entry("nixos-generation-12.conf", "12").entry("nixos-nixfleet-staged-generation-13.conf", "13"), old: "12"},
		{what: "a staged profile with number 0", tree: newTree("default nixos-*\n").
			entry("nixos-generation-1.conf", "1").entry("nixos-nixfleet-staged-generation-0.conf", "0"), old: "1"},
		{what: "counted and first", tree: newTree("").entry("nixos-x+3.conf", "10").entry("nixos-y.conf", "9"), old: "10"},
		{what: "its tries used up", tree: newTree("").entry("nixos-x+0-3.conf", "10").entry("nixos-y.conf", "9"), old: "9"},
		{what: "all tries used up", tree: newTree("").entry("nixos-x+0-3.conf", "10").entry("nixos-y+0-3.conf", "9"),
			old: "10"},
		{what: "an exact default with a counter, not first", tree: newTree("default nixos-generation-4.conf\n").
			entry("nixos-generation-4+2.conf", "4").entry("nixos-generation-6.conf", "6"), old: "6", next: "4"},
		{what: "the same without tries", tree: newTree("default nixos-generation-4.conf\n").
			entry("nixos-generation-4+0-2.conf", "4").entry("nixos-generation-6.conf", "6"), old: "6", next: "4"},
		{what: "a pattern that matches the counter", tree: newTree("default nixos-generation-4*\n").
			entry("nixos-generation-4+0-2.conf", "4").entry("nixos-generation-6.conf", "6"), old: "4"},
		{what: "a pattern with a counter", tree: newTree("default nixos-generation-4+2.conf\n").
			entry("nixos-generation-4+2.conf", "4").entry("nixos-generation-6.conf", "6"), old: "4", next: "6"},
		{what: "preferred", tree: newTree("preferred nixos-x.conf\ndefault nixos-generation-1.conf\n").
			entry("nixos-x+2.conf", "9").entry("nixos-generation-1.conf", "1"), old: "1", next: "9"},
		{what: "preferred without tries", tree: newTree("preferred nixos-x.conf\ndefault nixos-generation-1.conf\n").
			entry("nixos-x+0-2.conf", "9").entry("nixos-generation-1.conf", "1").entry("nixos-generation-2.conf", "2"),
			old: "1"},
		{what: "preferred that is gone", tree: nine("preferred nixos-gone.conf\ndefault nixos-generation-9.conf\n"),
			old: "9"},
		{what: "preferred against the variable of the default", tree: nine("preferred nixos-generation-9.conf\n").
			variable("LoaderEntryDefault", "nixos-generation-10.conf"), old: "10", next: "9"},
		{what: "the variable of preferred", tree: nine("preferred nixos-generation-9.conf\n"+
			"default nixos-generation-9.conf\n").variable("LoaderEntryPreferred", "nixos-generation-10.conf"),
			old: "9", next: "10"},
		{what: "the variable of the default", tree: nine("default nixos-generation-10.conf\n").
			variable("LoaderEntryDefault", "nixos-generation-9.conf"), old: "9"},
		{what: "once", tree: nine("default nixos-generation-10.conf\n").
			variable("LoaderEntryOneShot", "nixos-generation-9.conf"), old: "9", once: true},
		{what: "once without suffix", tree: nine("default nixos-generation-10.conf\n").
			variable("LoaderEntryOneShot", "nixos-generation-9"), old: "10", once: true},
		{what: "once what is gone", tree: nine("").variable("LoaderEntryOneShot", "nixos-gone.conf"), old: "10", once: true},
		{what: "once by a pattern", tree: nine("").variable("LoaderEntryOneShot", "nixos-generation-9*"), old: "9",
			once: true},
		{what: "once what is counted", tree: newTree("default nixos-x.conf\n").entry("nixos-x.conf", "1").
			entry("nixos-y+3.conf", "2").variable("LoaderEntryOneShot", "nixos-y.conf"), old: "1", next: "2", once: true},
		{what: "once what is counted, by its file", tree: newTree("default nixos-x.conf\n").entry("nixos-x.conf", "1").
			entry("nixos-y+2-1.conf", "2").variable("LoaderEntryOneShot", "nixos-y+2-1.conf"), old: "2", next: "1", once: true},
		{what: "once by the pattern that fits all", tree: newTree("default nixos-x.conf\n").entry("nixos-x.conf", "1").
			entry("nixos-y+3.conf", "2").variable("LoaderEntryOneShot", "nixos-y[+.]*conf"), old: "2", once: true},
		{what: "the pattern that fits all, without tries", tree: newTree("default nixos-x.conf\n").entry("nixos-x.conf", "1").
			entry("nixos-y+0-3.conf", "2").variable("LoaderEntryOneShot", "nixos-y[+.]*conf"), old: "2", once: true},
		{what: "a kernel that is not there", tree: newTree("").entry("nixos-generation-10.conf", "10", "linux /gone").
			entry("nixos-generation-9.conf", "9"), old: "9"},
		{what: "an image beside entries", tree: nine("").image("boot/EFI/Linux/nixos-generation-11+2.efi", "11", "nixos",
			"Generation 11"), old: "11"},
		{what: "an image with a version of numbers", tree: nine("").image("boot/EFI/Linux/nixos-26.efi", "26", "nixos",
			"26.05"), old: "26"},
		{what: "an image without tries", tree: nine("").image("boot/EFI/Linux/nixos-generation-11+0-2.efi", "11", "nixos",
			"Generation 11"), old: "10"},
		{what: "the other partition", tree: nine("default nixos-*\n").entry("efi/loader/entries/nixos-generation-11.conf",
			"11", "linux /k11"), old: "10"},
		{what: "the same id on both partitions", tree: nine("default nixos-generation-10.conf\n").
			entry("efi/loader/entries/nixos-generation-10.conf", "7",
				"version Generation 10 NixOS, built on 2026-11-01"), old: "10"},
		{what: "@saved", tree: nine("default @saved\n").variable("LoaderEntryLastBooted", "nixos-generation-9.conf"),
			old: "9"},
		{what: "the default of another system", tree: nine("").entry("auto-windows.conf", "3"), old: "10"},
	}
}

// TestBoots holds the rules to what real loaders were seen to do.
func TestBoots(t *testing.T) {
	for _, b := range boots() {
		for version, want := range map[string]string{"252.39-1~deb12u2": b.old, "262.1-1": firstOf(b.next, b.old)} {
			t.Run(b.what+"/"+version, func(t *testing.T) {
				s := Read(b.tree.write(t, version))
				got := s.Default
				if b.once {
					got = s.Once
				}
				if s.OnceSet != b.once || got.Closure != system(want) {
					t.Errorf("boots %q (%s), want %q", got.Closure, got.Unknown, system(want))
				}
			})
		}
	}
}

// TestBootsOfAnUnknownVersion is about a machine that does not say which loader it has: nothing is claimed where the
// two do not agree.
func TestBootsOfAnUnknownVersion(t *testing.T) {
	for _, b := range boots() {
		s := Read(b.tree.write(t, ""))
		got := s.Default
		if b.once {
			got = s.Once
		}
		want := system(b.old)
		if b.next != "" && b.next != b.old {
			want = ""
		}
		if got.Closure != want || (want == "") != (got.Unknown != "") {
			t.Errorf("%s: boots %q (%s), want %q", b.what, got.Closure, got.Unknown, want)
		}
	}
	if !slices.ContainsFunc(boots(), func(b boot) bool { return b.next != "" && b.next != b.old }) {
		t.Error("no boot tells the versions apart")
	}
}
