package loader

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"slices"
	"strings"
)

// Dirs are the directories on which an ESP or XBOOTLDR partition may be mounted (bootctl(1)), and in which other
// loaders have their files.
var Dirs = []string{"/efi", "/boot/efi", "/boot"}

// State is what the loader of a machine will do, as far as it can be read.
type State struct {
	Loader    string // "systemd-boot", "GRUB", "extlinux"; "" if none of them is known to be in use
	Default   Choice // what it starts by itself, next time
	Once      Choice // what it starts instead, once, if OnceSet
	OnceSet   bool
	Menu      *Menu // of systemd-boot; nil with others
	Variables Variables

	dir, text string // of the other loaders
}

// Read reads the machine below root ("" for this one). Nothing that it finds is an error: what cannot be read makes the
// choices unknown.
func Read(root string) State {
	v := ReadVariables(root)
	dirs := partitions(root)
	found := readable(root, dirs, v)
	// After the files were looked for, which mounts what is mounted on demand.
	if dir := unmounted(root); dir != "" {
		return State{Variables: v, Default: unknown("%s is in /etc/fstab and is not mounted", dir)}
	}
	foreign := unreadable(root, found)
	if v.Info != "" {
		running, _, _ := strings.Cut(v.Info, " ")
		ours := slices.DeleteFunc(slices.Clone(found), func(s State) bool { return !strings.EqualFold(s.Loader, running) })
		if len(ours) == 0 {
			return State{Variables: v, Default: unknown("this agent does not read the boot loader %q", v.Info)}
		}
		found, foreign = ours, ""
	}
	s := one(found, foreign)
	s.Variables = v
	return s
}

// one is the state of the only loader, or of several that start the same.
func one(found []State, foreign string) State {
	switch {
	case len(found) == 0 && foreign == "":
		return State{Default: unknown("no boot loader that this agent reads has files in %s", strings.Join(Dirs, ", "))}
	case len(found) == 0:
		return State{Default: unknown("this agent does not read the boot loader %s", foreign)}
	case foreign != "":
		return State{Default: unknown("both %s and %s are installed; which of them starts is not known",
			found[0].Loader, foreign)}
	}
	s := found[0]
	for _, other := range found[1:] {
		if other.Default.Closure != s.Default.Closure || other.OnceSet != s.OnceSet {
			return State{Default: unknown("%s and %s are installed and start different systems", s.describe(),
				other.describe())}
		}
	}
	return s
}

func (s State) describe() string {
	if s.Menu != nil {
		return s.Loader + " in " + s.Menu.ESP
	}
	return s.Loader + " in " + s.dir
}

// partitions are the directories of Dirs that exist, each once although links lead to it.
func partitions(root string) []string {
	var dirs []string
	var known []fs.FileInfo
	for _, dir := range Dirs {
		info, err := os.Stat(root + dir)
		if err != nil || slices.ContainsFunc(known, func(k fs.FileInfo) bool { return os.SameFile(k, info) }) {
			continue
		}
		dirs, known = append(dirs, dir), append(known, info)
	}
	return dirs
}

// readable reads each loader that has files here.
func readable(root string, dirs []string, v Variables) []State {
	var found []State
	for _, esp := range esps(root, dirs) {
		m := readMenu(root, esp, dirs, v)
		s := State{Loader: "systemd-boot", Menu: &m, Default: m.Default()}
		s.Once, s.OnceSet = m.Once()
		found = append(found, s)
	}
	for _, dir := range dirs {
		if exists(path.Join(root, dir, "grub/grub.cfg")) {
			found = append(found, readGrub(root, dir))
		}
		if exists(path.Join(root, dir, "extlinux/extlinux.conf")) {
			found = append(found, readExtlinux(root, dir))
		}
	}
	return found
}

// esps are the partitions from which systemd-boot may start: those that hold it, or else those with its loader.conf, or
// else those with entries.
func esps(root string, dirs []string) []string {
	var holding, configured, listing []string
	for _, dir := range dirs {
		conf := exists(path.Join(root, dir, "loader/loader.conf"))
		if installed(root+dir) != "" {
			holding = append(holding, dir)
		}
		if conf {
			configured = append(configured, dir)
		}
		if exists(path.Join(root, dir, "loader/entries")) || exists(path.Join(root, dir, "EFI/Linux")) {
			listing = append(listing, dir)
		}
	}
	for _, some := range [][]string{holding, configured, listing} {
		if len(some) > 0 {
			return some
		}
	}
	return nil
}

// unreadable names a loader that is installed here and that this package cannot read, or returns "".
func unreadable(root string, found []State) string {
	for name, files := range map[string][]string{
		"limine": {"/boot/limine/limine.conf", "/boot/limine.conf", "/boot/EFI/limine/limine.conf",
			"/efi/limine/limine.conf"},
		"rEFInd": {"/boot/EFI/refind/refind.conf", "/efi/EFI/refind/refind.conf", "/boot/efi/EFI/refind/refind.conf"},
	} {
		if slices.ContainsFunc(files, func(file string) bool { return exists(root + file) }) {
			return name
		}
	}
	// The firmware of a Raspberry Pi has a config.txt also where it starts U-Boot, which reads extlinux.conf.
	for _, file := range []string{"/boot/firmware/config.txt", "/boot/config.txt"} {
		if len(found) == 0 && exists(root+file) {
			return "of the Raspberry Pi's firmware"
		}
	}
	return ""
}

func exists(file string) bool {
	_, err := os.Stat(file)
	return err == nil || !errors.Is(err, fs.ErrNotExist)
}

// EntryOf is the entry of systemd-boot that starts a closure, the first in the loader's order; nil if there is none.
func (s State) EntryOf(closure string) *Entry {
	if s.Menu == nil || closure == "" {
		return nil
	}
	entries := slices.Clone(s.Menu.Entries)
	arrange(entries, Entry.ID)
	for i := range entries {
		if entries[i].Closure == closure {
			return &entries[i]
		}
	}
	return nil
}

// Starts says whether the loader has an entry for a closure. An error says that it cannot be known.
func (s State) Starts(closure string) (bool, error) {
	switch {
	case s.Loader == "":
		return false, fmt.Errorf("%w: %s", ErrUnknown, s.Default.Unknown)
	case s.Menu != nil && s.EntryOf(closure) != nil:
		return true, nil
	case s.Menu != nil && len(s.Menu.Trouble) > 0:
		return false, fmt.Errorf("%w: %s", ErrUnknown, s.Menu.Trouble[0])
	case s.Menu != nil:
		return false, nil
	case s.text == "":
		return false, fmt.Errorf("%w: %s", ErrUnknown, s.Default.Unknown)
	}
	return strings.Contains(s.text, "/nix/store/"+closure+"/"), nil
}

// ErrUnknown means that the loader's files do not tell.
var ErrUnknown = errors.New("what the boot loader does is not known")
