package loader

import (
	"errors"
	"os"
	"slices"
	"strings"
	"syscall"
	"testing"
)

// TestGuard: a counter protects only where the loader goes on to another entry.
func TestGuard(t *testing.T) {
	counted := func(conf string) tree {
		return newTree(conf).entry("nixos-generation-9+2.conf", "9").entry("nixos-generation-8.conf", "8")
	}
	for what, c := range map[string]struct {
		tree      tree
		old, next Guard
	}{
		"no default":             {counted(""), CountedProtects, CountedProtects},
		"a pattern":              {counted("default nixos-*\n"), CountedProtects, CountedProtects},
		"an exact default":       {counted("default nixos-generation-9.conf\n"), CountedProtects, CountedInVain},
		"a pattern for it alone": {counted("default nixos-generation-9*\n"), CountedInVain, CountedInVain},
		"preferred":              {counted("preferred nixos-generation-9.conf\n"), CountedProtects, CountedProtects},
		"nothing else to boot":   {newTree("").entry("nixos-generation-9+2.conf", "9"), CountedInVain, CountedInVain},
		"an exact variable": {counted("").variable("LoaderEntryDefault", "nixos-generation-9.conf"), CountedProtects,
			CountedInVain},
		"an entry without":        {newTree("").entry("nixos-generation-9.conf", "9"), NotCounted, NotCounted},
		"another that is counted": {counted("default nixos-generation-8.conf\n"), NotCounted, NotCounted},
	} {
		for version, want := range map[string]Guard{"252.39": c.old, "262.1": c.next} {
			if got := Read(c.tree.write(t, version)).Default; got.Guard != want || got.Closure == "" {
				t.Errorf("%s, %s: guard %d of %q (%s), want %d", what, version, got.Guard, got.Closure, got.Unknown, want)
			}
		}
	}
}

// TestVersionOfTheLoader: the loader in the partition counts, since it starts next time; then what this boot's loader
// said; and then how it spelt ids.
func TestVersionOfTheLoader(t *testing.T) {
	counted := func() tree {
		return newTree("default nixos-generation-4.conf\n").entry("nixos-generation-4+2.conf", "4").
			entry("nixos-generation-6.conf", "6")
	}
	magic := func(version string) string {
		return testImage(map[string]string{".sdmagic": "#### LoaderInfo: systemd-boot " + version + " ####\x00"})
	}
	installed := func(version string) tree {
		t := counted()
		t.files["boot/EFI/systemd/systemd-bootx64.efi"] = magic(version)
		return t
	}
	for what, c := range map[string]struct {
		root string
		want string
	}{
		"nothing is known":               {counted().write(t, ""), ""},
		"257.13 runs":                    {counted().write(t, "257.13"), "4"},
		"256, which nobody has measured": {counted().write(t, "256.7"), ""},
		"262 is installed, 252 ran":      {installed("262.1").write(t, "252.39"), "4"},
		"252 is installed, 262 ran":      {installed("252.39").write(t, "262.1"), "6"},
		"256 spells ids without counters": {counted().variable("LoaderEntries",
			"nixos-generation-6.conf\x00nixos-generation-4.conf").write(t, "256.7"), "4"},
		"256 spells ids with counters": {counted().variable("LoaderEntries",
			"nixos-generation-4+2.conf").write(t, "256.7"), "6"},
		"256 is installed, what another one spelt": {installed("256.7").variable("LoaderEntries",
			"nixos-generation-4+2.conf").write(t, "252.39"), ""},
	} {
		want := ""
		if c.want != "" {
			want = system(c.want)
		}
		if got := Read(c.root).Default; got.Closure != want || (want == "") != (got.Unknown != "") {
			t.Errorf("%s: boots %q (%s), want %q", what, got.Closure, got.Unknown, want)
		}
	}
}

// TestUnknown: what cannot be read is unknown, with a reason that names it.
func TestUnknown(t *testing.T) {
	ten := func() tree { return newTree("default nixos-*\n").entry("nixos-generation-10.conf", "10") }
	file := func(t tree, name, text string) tree {
		t.files[name] = text
		return t
	}
	for what, c := range map[string]struct {
		tree tree
		info string
		says string
	}{
		"nothing at all":   {tree{}, "", "no boot loader"},
		"limine":           {tree{files: map[string]string{"boot/limine/limine.conf": ""}}, "", "limine"},
		"rEFInd":           {tree{files: map[string]string{"boot/EFI/refind/refind.conf": ""}}, "", "rEFInd"},
		"Raspberry Pi":     {tree{files: map[string]string{"boot/firmware/config.txt": ""}}, "", "Raspberry Pi"},
		"two loaders":      {file(ten(), "boot/limine/limine.conf", ""), "", "both systemd-boot and limine"},
		"another one runs": {ten(), "rEFInd 0.14", "rEFInd"},
		"an image that is no": {file(ten(), "boot/EFI/Linux/nixos-generation-11.efi", "MZ"), "systemd-boot 262.1",
			"nixos-generation-11.efi"},
		"an empty menu":       {newTree("default nixos-*\n"), "systemd-boot 262.1", "no entry"},
		"a large loader.conf": {newTree(strings.Repeat("#", maxConfig+1)), "systemd-boot 262.1", "loader.conf"},
		"an initrd is gone": {newTree("").entry("nixos-generation-10.conf", "10", "initrd /gone"), "systemd-boot 262.1",
			"/gone"},
		"memtest is first": {newTree("").entry("memtest.conf", "10", "options x", "sort-key a"), "systemd-boot 262.1",
			"does not say which system"},
		"grub and systemd-boot differ": {file(ten(), "boot/grub/grub.cfg",
			"menuentry \"NixOS\" {\n linux x init=/nix/store/"+system("9")+"/init\n}\n"), "", "start different systems"},
	} {
		root := c.tree.write(t, "")
		if c.info != "" {
			write(t, root, map[string]string{variableFile("LoaderInfo"): variableValue(c.info)})
		}
		s := Read(root)
		if s.Default.Closure != "" || !strings.Contains(s.Default.Unknown, c.says) {
			t.Errorf("%s: %q, %q; want %q", what, s.Default.Closure, s.Default.Unknown, c.says)
		}
		if has, err := s.Starts(system("77")); has || s.Loader == "" && !errors.Is(err, ErrUnknown) {
			t.Errorf("%s: an entry for another system: %v, %v", what, has, err)
		}
	}
}

// TestReadingDoesNotBlock: a pipe in the place of any file is noted, at once.
func TestReadingDoesNotBlock(t *testing.T) {
	for _, name := range []string{"boot/loader/loader.conf", "boot/loader/entries/nixos-generation-10.conf",
		"boot/EFI/Linux/nixos-a.efi", "boot/EFI/systemd/systemd-bootx64.efi", variableFile("LoaderEntryDefault")} {
		tr := newTree("").entry("nixos-generation-10.conf", "10")
		tr.files[name] = "x"
		root := tr.write(t, "262.1")
		if strings.HasPrefix(name, "/") {
			write(t, root, map[string]string{name: "x"})
		}
		if err := os.Remove(root + "/" + name); err != nil {
			t.Fatal(err)
		}
		if err := syscall.Mkfifo(root+"/"+name, 0o600); err != nil {
			t.Skipf("no pipes here: %v", err)
		}
		s := Read(root)
		if known := s.Default.Closure != ""; known != strings.Contains(name, "EFI/systemd/") {
			t.Errorf("%s is a pipe: boots %q (%s)", name, s.Default.Closure, s.Default.Unknown)
		}
	}
}

// TestPartitions: loader.conf on /efi, entries on /boot, and a link from one to the other.
func TestPartitions(t *testing.T) {
	apart := tree{map[string]string{"efi/loader/loader.conf": "default nixos-*\n", "boot/EFI/nixos/k.efi": "",
		"boot/EFI/nixos/i.efi": ""}, map[string]string{}, nil}
	apart = apart.entry("nixos-generation-1.conf", "1").entry("nixos-generation-2.conf", "2")
	s := Read(apart.write(t, "262.1"))
	if s.Default.Closure != system("2") || s.Menu.ESP != "/efi" {
		t.Errorf("ESP and XBOOTLDR: boots %q (%s)", s.Default.Closure, s.Default.Unknown)
	}
	if e := s.EntryOf(system("1")); e == nil || e.Dir != "/boot" || e.Path != "/loader/entries/nixos-generation-1.conf" {
		t.Errorf("entry of 1: %+v", e)
	}
	root := newTree("").entry("nixos-generation-1.conf", "1").write(t, "262.1")
	if err := os.Symlink("boot", root+"/efi"); err != nil {
		t.Fatal(err)
	}
	if s := Read(root); s.Default.Closure != system("1") || len(s.Menu.Entries) != 1 {
		t.Errorf("a link to the ESP: boots %q (%s), %d entries", s.Default.Closure, s.Default.Unknown, len(s.Menu.Entries))
	}
	// A loader.conf that an older installation left elsewhere: the partition that holds the loader counts.
	old := newTree("default nixos-generation-1.conf\n").entry("nixos-generation-1.conf", "1").
		entry("nixos-generation-2.conf", "2")
	old.files["efi/loader/loader.conf"] = "default nixos-generation-2.conf\n"
	if s := Read(old.write(t, "262.1")); s.Default.Unknown == "" {
		t.Errorf("two that differ: boots %q", s.Default.Closure)
	}
	old.files["boot/EFI/systemd/systemd-bootx64.efi"] = testImage(map[string]string{
		".sdmagic": "#### LoaderInfo: systemd-boot 262.1 ####"})
	if s := Read(old.write(t, "262.1")); s.Default.Closure != system("1") {
		t.Errorf("the one with the loader: boots %q (%s)", s.Default.Closure, s.Default.Unknown)
	}
}

// TestPattern: what is chosen for one boot is found however the loader spells ids.
func TestPattern(t *testing.T) {
	for name, want := range map[string]string{"nixos-y+3.conf": "nixos-y[+.]*conf", "nixos-y+2-1.conf": "nixos-y[+.]*conf",
		"nixos-Y.conf": "nixos-y.conf", "nixos-26.05.abc+1.efi": "nixos-26.05.abc[+.]*efi"} {
		c, _ := counterOf(name)
		e := Entry{Name: name, Counter: c}
		if got := e.Pattern(); got != want || !matches(got, e.ID()) || !matches(got, name) {
			t.Errorf("pattern of %s: %q, want %q", name, got, want)
		}
	}
}

func TestCounterOf(t *testing.T) {
	for name, want := range map[string]Counter{"a+3.conf": {true, 3, 0}, "a+2-1.conf": {true, 2, 1}, "a.conf": {},
		"a+b.conf": {}, "a+1+0-9.efi": {true, 0, 9}, "a+3x.conf": {}, "+3.conf": {true, 3, 0}} {
		if got, _ := counterOf(name); got != want {
			t.Errorf("%s: %+v, want %+v", name, got, want)
		}
	}
}

// TestCompareVersions has the example of the UAPI group's version format, oldest first.
func TestCompareVersions(t *testing.T) {
	ordered := []string{"", "122.1", "123~rc1-1", "123", "123-a", "123-a.1", "123-1", "123-1.1", "123^post1", "123.a-1",
		"123.1-1", "123a-1", "124-1"}
	for i, a := range ordered {
		for j, b := range ordered {
			got := compareVersions(a, b)
			if (got < 0) != (i < j) || (got > 0) != (i > j) {
				t.Errorf("%q against %q: %d", a, b, got)
			}
		}
	}
	if compareVersions("Generation 9 NixOS", "Generation 10 NixOS") >= 0 || compareVersions("007", "7") != 0 {
		t.Error("numbers are not compared as numbers")
	}
}

func FuzzCompareVersions(f *testing.F) {
	f.Add("123~rc1", "123")
	f.Add("é1.^-", "~~")
	f.Fuzz(func(t *testing.T, a, b string) {
		if (compareVersions(a, b) < 0) != (compareVersions(b, a) > 0) || compareVersions(a, a) != 0 {
			t.Errorf("%q against %q", a, b)
		}
	})
}

func TestMatches(t *testing.T) {
	for _, c := range []struct {
		pattern, id string
		want        bool
	}{
		{"nixos-*", "nixos-1.conf", true}, {"nixos-?.conf", "nixos-1.conf", true}, {"nixos-?.conf", "nixos-10.conf", false},
		{"NIXOS-1.conf", "nixos-1.conf", true}, {"nixos-[0-9].conf", "nixos-5.conf", true}, {"*", "", true}, {"", "", true},
		{"", "a", false}, {"a*b*c", "aXbYbc", true}, {"a*b*c", "aXbY", false}, {`a\*`, "a*", true}, {`a\*`, "ab", false},
		{"a[", "a[", false}, {"a[+.]*conf", "a.conf", true}, {"a[+.]*conf", "a+3.conf", true}, {"a[+.]*conf", "ab.conf",
			false},
		{"[]]", "]", true}, {`a\`, "a", false},
	} {
		if got := matches(c.pattern, c.id); got != c.want {
			t.Errorf("%q matches %q: %v", c.pattern, c.id, got)
		}
	}
}

func FuzzMatches(f *testing.F) {
	f.Add("a*[b-]?", "aXb-")
	f.Fuzz(func(t *testing.T, pattern, id string) {
		if matches(pattern, id) && !matches(pattern+"*", id) {
			t.Errorf("%q matches %q, and with a star does not", pattern, id)
		}
	})
}

func TestClosure(t *testing.T) {
	for line, want := range map[string]string{
		"init=/nix/store/" + system("1") + "/init quiet":                                           system("1"),
		"root=x init=/nix/store/" + system("1") + "/init init=/nix/store/" + system("2") + "/init": system("2"),
		"rdinit=/nix/store/" + system("1") + "/init":                                               "",
		"init=/bin/sh":      "",
		"init=/nix/sto":     "",
		"init=/nix/store/x": "",
		"  linux ($drive1)//kernels/x init=/nix/store/" + system("1") + "/init": system("1"),
	} {
		if got := Closure(line); got != want {
			t.Errorf("%q: %q, want %q", line, got, want)
		}
	}
}

// TestGrub: the default as NixOS writes it, and as GRUB remembers it in its environment block.
func TestGrub(t *testing.T) {
	entry := func(title, closure string) string {
		return "menuentry \"" + title + "\" --class nixos --unrestricted {\n  linux ($drive1)//kernels/x init=/nix/store/" +
			system(closure) + "/init\n}\n"
	}
	menu := entry("NixOS", "3") + "submenu \"NixOS - All configurations\" --class submenu {\n" + entry("old 2", "2") +
		entry("old 1", "1") + "}\n"
	saved := "if [ \"${next_entry}\" ]; then\n  set default=\"${next_entry}\"\n  set next_entry=\n" +
		"  save_env next_entry\n" +
		"else\n  set default=\"${saved_entry}\"\nfi\nfunction savedefault {\n  if [ -z \"${boot_once}\" ]; then\n" +
		"  saved_entry=\"${chosen}\"\n  fi\n}\n"
	for what, c := range map[string]struct {
		config, env, want, once string
	}{
		"a number":              {"set default=\"0\"\n" + menu, "", "3", ""},
		"no default":            {menu, "", "3", ""},
		"a number that is gone": {"set default=7\n" + menu, "", "3", ""},
		"a title":               {"set default=\"NixOS\"\n" + menu, "", "3", ""},
		"a submenu":             {"set default=\"1\"\n" + menu, "", "", ""},
		"nothing saved":         {saved + menu, "", "3", ""},
		"saved":                 {saved + menu, "saved_entry=NixOS - All configurations>old 1\n", "1", ""},
		"saved by numbers":      {saved + menu, "saved_entry=1>0\n", "2", ""},
		"once":                  {saved + menu, "saved_entry=0\nnext_entry=1>1\n", "3", "1"},
		"once, not read":        {"set default=\"0\"\n" + menu, "next_entry=1>1\n", "3", ""},
		"a variable":            {"set default=\"${mine}\"\n" + menu, "", "", ""},
		"memtest":               {"menuentry \"memtest\" {\n linux16 /memtest\n}\n", "", "", ""},
		"nothing":               {"", "", "", ""},
	} {
		root := t.TempDir()
		write(t, root, map[string]string{"boot/grub/grub.cfg": c.config, "boot/grub/grubenv": "# GRUB Environment Block\n" +
			c.env + strings.Repeat("#", 100)})
		name := func(closure string) string {
			if closure == "" {
				return ""
			}
			return system(closure)
		}
		s := Read(root)
		if s.Default.Closure != name(c.want) || s.Once.Closure != name(c.once) || s.OnceSet != (c.once != "") ||
			s.Loader != "GRUB" {
			t.Errorf("%s: boots %q (%s), once %q", what, s.Default.Closure, s.Default.Unknown, s.Once.Closure)
		}
	}
}

func TestExtlinux(t *testing.T) {
	config := "# x\nDEFAULT nixos-default\nTIMEOUT 50\nLABEL nixos-default\n  MENU LABEL NixOS\n" +
		"  APPEND init=/nix/store/" +
		system("2") + "/init console=ttyS0\nLABEL nixos-1-default\n  APPEND init=/nix/store/" + system("1") + "/init\n"
	root := t.TempDir()
	write(t, root, map[string]string{"boot/extlinux/extlinux.conf": config, "boot/config.txt": "kernel=u-boot"})
	s := Read(root)
	if s.Default.Closure != system("2") || s.Loader != "extlinux" {
		t.Errorf("boots %q (%s)", s.Default.Closure, s.Default.Unknown)
	}
	for closure, want := range map[string]bool{"1": true, "2": true, "3": false} {
		if has, err := s.Starts(system(closure)); err != nil || has != want {
			t.Errorf("an entry for %s: %v, %v", closure, has, err)
		}
	}
	write(t, root, map[string]string{"boot/extlinux/extlinux.conf": strings.Replace(config, "DEFAULT nixos",
		"DEFAULT no", 1)})
	if s := Read(root); s.Default.Unknown == "" {
		t.Errorf("a label that is gone: boots %q", s.Default.Closure)
	}
}

// TestImageOfLanzaboote: the stub names its kernel and initrd, which may be gone.
func TestImageOfLanzaboote(t *testing.T) {
	tr := tree{map[string]string{"boot/loader/loader.conf": "default nixos-*\n", "boot/EFI/nixos/kernel-1.efi": "",
		"boot/EFI/nixos/initrd-1.efi": "", "boot/EFI/Linux/nixos-generation-1.efi": testImage(map[string]string{
			".osrel": "ID=lanzaboote\nVERSION_ID=Generation 1\n", ".cmdline": "init=/nix/store/" + system("1") + "/init",
			".linux": `\EFI\nixos\kernel-1.efi`, ".linuxh": "0123", ".initrd": `\EFI\nixos\initrd-1.efi`, ".initrdh": "0123"})},
		nil, nil}
	root := tr.write(t, "257.13")
	s := Read(root)
	if s.Default.Closure != system("1") {
		t.Fatalf("boots %q (%s)", s.Default.Closure, s.Default.Unknown)
	}
	if e := s.EntryOf(system("1")); e.Kernel != "/EFI/nixos/kernel-1.efi" || !slices.Equal(e.Initrds,
		[]string{"/EFI/nixos/initrd-1.efi"}) || len(e.Missing) > 0 {
		t.Errorf("entry %+v", e)
	}
	if err := os.Remove(root + "/boot/EFI/nixos/initrd-1.efi"); err != nil {
		t.Fatal(err)
	}
	if s := Read(root); s.Default.Closure != "" || !strings.Contains(s.Default.Unknown, "initrd-1") {
		t.Errorf("without its initrd: boots %q (%s)", s.Default.Closure, s.Default.Unknown)
	}
}

func FuzzRead(f *testing.F) {
	f.Add("default nixos-*\n", "linux /k\noptions init=/nix/store/"+system("1")+"/init\n")
	f.Add("set default=\"0\"\nmenuentry x {\n linux y init=/nix/store/"+system("1")+"/init\n}\n", "MZ")
	f.Add("DEFAULT a\nLABEL a\nAPPEND init=/nix/store/"+system("1")+"/init\n", "")
	f.Fuzz(func(t *testing.T, config, entry string) {
		root := t.TempDir()
		write(t, root, map[string]string{"boot/loader/loader.conf": config, "boot/loader/entries/a+1.conf": entry,
			"boot/grub/grub.cfg": config, "efi/extlinux/extlinux.conf": config, "efi/EFI/Linux/b.efi": entry})
		s := Read(root)
		if strings.ContainsAny(s.Default.Closure, "/ \n") || (s.Default.Closure == "") != (s.Default.Unknown != "") {
			t.Errorf("%q, %q", s.Default.Closure, s.Default.Unknown)
		}
	})
}

// TestUsedUp: a closure is used up when no entry of it has tries left.
func TestUsedUp(t *testing.T) {
	s := Read(newTree("default nixos-*\n").entry("nixos-generation-9+0-3.conf", "9").entry("nixos-generation-8.conf", "8").
		entry("nixos-generation-7+0-3.conf", "7").entry("nixos-b+1.conf", "7").write(t, "262.1"))
	if got := s.UsedUp(); !slices.Equal(got, []string{system("9")}) || s.Default.Closure != system("8") {
		t.Errorf("used up: %v, boots %q (%s)", got, s.Default.Closure, s.Default.Unknown)
	}
}

// TestPartitionThatIsNotMounted: what lies below the mount point of an ESP that is not mounted is not what boots.
func TestPartitionThatIsNotMounted(t *testing.T) {
	const fstab = "# boot\nUUID=1 / ext4 rw 0 1\n/dev/disk/by-uuid/2 /boot/ vfat umask=0077 0 2\n"
	const system1 = "36 1 8:2 / / rw - ext4 /dev/sda2 rw\n"
	for what, c := range map[string]struct {
		table, mounts string
		known         bool
	}{
		"mounted":          {fstab, system1 + "37 36 8:1 / /boot rw - vfat /dev/sda1 rw\n", true},
		"on demand":        {fstab, system1 + "37 36 0:9 / /boot rw - autofs systemd-1 rw\n", true},
		"not mounted":      {fstab, system1, false},
		"no such line":     {"UUID=1 / ext4 rw 0 1\n", system1, true},
		"a line of swap":   {"/dev/sda3 none swap sw 0 0\n#/dev/sda1 /boot vfat\n", system1, true},
		"mounts not known": {fstab, "", true},
	} {
		tr := newTree("").entry("nixos-generation-1.conf", "1")
		tr.files["etc/fstab"] = c.table
		if c.mounts != "" {
			tr.files["proc/self/mountinfo"] = c.mounts
		}
		s := Read(tr.write(t, "262.1"))
		if (s.Default.Closure == system("1")) != c.known ||
			!c.known && s.Default.Unknown != "/boot is in /etc/fstab and is not mounted" {
			t.Errorf("%s: boots %q (%s)", what, s.Default.Closure, s.Default.Unknown)
		}
		if has, err := s.Starts(system("1")); has != c.known || (err == nil) != c.known {
			t.Errorf("%s: has an entry: %t, %v", what, has, err)
		}
	}
}

// TestStamp: it changes with each file by which the loader chooses, and does not look where an ESP rests.
func TestStamp(t *testing.T) {
	const ext4 = "36 1 8:2 / / rw - ext4 /dev/sda2 rw\n"
	tr := newTree("default a\n").entry("nixos-generation-1.conf", "1")
	tr.files["proc/self/mountinfo"] = ext4
	root := tr.write(t, "262.1")
	last := Stamp(root)
	if again := Stamp(root); again != last {
		t.Errorf("nothing has changed: %q, then %q", last, again)
	}
	for _, name := range []string{"boot/loader/loader.conf", "boot/loader/entries/new.conf",
		variableFile("LoaderEntryDefault"), "boot/grub/grubenv"} {
		text := variableValue("changed")
		write(t, root, map[string]string{name: text})
		if now := Stamp(root); now == last {
			t.Errorf("%s has changed, and the stamp has not: %q", name, now)
		} else {
			last = now
		}
	}
	write(t, root, map[string]string{"proc/self/mountinfo": ext4 + "37 36 0:9 / /boot rw - autofs systemd-1 rw\n"})
	resting := Stamp(root)
	write(t, root, map[string]string{"boot/loader/loader.conf": "default another\n"})
	if now := Stamp(root); now != resting {
		t.Errorf("it looked where an ESP rests: %q, then %q", resting, now)
	}
}
