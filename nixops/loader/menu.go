package loader

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"strings"

	"nixfleet/nixops/disk"
)

const (
	maxEntry = 64 << 10 // bytes of a file in loader/entries
	maxFiles = 4096     // files of one directory that are looked at
	// maxConfig bounds a loader's file in bytes: GRUB's lists every generation.
	maxConfig = 8 << 20
)

// Menu is what systemd-boot finds when it starts.
type Menu struct {
	ESP        string // directory of the partition with loader.conf
	Entries    []Entry
	ByDefault  string // loader.conf's `default`, a pattern
	Preferring string // loader.conf's `preferred`, a pattern that passes over entries without tries
	Version    string // words about the loader that the partition holds, such as "systemd-boot 257.13"
	Variables  Variables
	Trouble    []string // what could not be read, in words; then no choice is known
}

// readMenu reads what systemd-boot would find with the ESP and the other partitions in those directories. A file that
// cannot be read is noted as trouble.
func readMenu(root, esp string, dirs []string, v Variables) Menu {
	m := Menu{ESP: esp, Variables: v, Version: installed(root + esp)}
	if v.Trouble != "" {
		m.Trouble = append(m.Trouble, v.Trouble)
	}
	config, err := disk.ReadLinked(path.Join(root, esp, "loader/loader.conf"), maxConfig)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		m.Trouble = append(m.Trouble, fmt.Sprintf("loader.conf cannot be read: %v", err))
	}
	for key, value := range keys(string(config)) {
		switch {
		case strings.HasPrefix(value, "@") && !strings.EqualFold(value, "@saved"): // the loader ignores such a line
		case key == "default":
			m.ByDefault = value
		case key == "preferred":
			m.Preferring = value
		}
	}
	// The loader takes the ESP's entry first where both partitions have the same id.
	seen := map[string]bool{}
	for _, dir := range append([]string{esp}, dirs...) {
		if seen[dir] {
			continue
		}
		seen[dir] = true
		m.addFiles(root, dir, "loader/entries", ".conf", readType1)
		m.addFiles(root, dir, "EFI/Linux", ".efi", readImage)
	}
	return m
}

// keys yields the lines of a file of the Boot Loader Specification as keys and values.
func keys(text string) func(yield func(key, value string) bool) {
	return func(yield func(key, value string) bool) {
		for line := range strings.Lines(text) {
			line = strings.TrimSpace(line)
			if line == "" || line[0] == '#' {
				continue
			}
			end := strings.IndexAny(line, " \t")
			if end < 0 {
				continue
			}
			value := strings.TrimSpace(line[end:])
			if n := len(value); n >= 2 && value[0] == '"' && value[n-1] == '"' {
				value = value[1 : n-1]
			}
			if !yield(line[:end], value) {
				return
			}
		}
	}
}

// addFiles adds the entries of a directory.
func (m *Menu) addFiles(root, dir, sub, suffix string, read func(file string) (Entry, error)) {
	where := path.Join(root+dir, sub)
	files, err := os.ReadDir(where)
	if errors.Is(err, fs.ErrNotExist) {
		return
	}
	if err != nil {
		m.Trouble = append(m.Trouble, fmt.Sprintf("%s cannot be read: %v", path.Join(dir, sub), err))
		return
	}
	for i, f := range files {
		name := strings.ToLower(f.Name())
		if name[0] == '.' || strings.HasPrefix(name, "auto-") || !strings.HasSuffix(name, suffix) || f.IsDir() {
			continue
		}
		if i >= maxFiles {
			m.Trouble = append(m.Trouble, fmt.Sprintf("%s has more than %d files", path.Join(dir, sub), maxFiles))
			return
		}
		e, err := read(path.Join(where, f.Name()))
		if errors.Is(err, errNotForUs) {
			continue
		}
		if err != nil {
			m.Trouble = append(m.Trouble, fmt.Sprintf("entry %s cannot be read: %v", f.Name(), err))
			continue
		}
		e.Name, e.Dir, e.Path = f.Name(), dir, path.Join("/", sub, f.Name())
		e.Counter, _ = counterOf(f.Name())
		e.lookFor(root + dir)
		m.Entries = append(m.Entries, e)
	}
}

// lookFor notes which files of the entry the partition lacks.
func (e *Entry) lookFor(partition string) {
	for _, file := range append([]string{e.Kernel}, e.Initrds...) {
		if file == "" {
			continue
		}
		// The file system of an ESP does not tell capital letters apart; where it is mounted, neither does the kernel.
		if info, err := os.Stat(path.Join(partition, file)); err != nil || !info.Mode().IsRegular() {
			e.Missing = append(e.Missing, file)
			e.NoKernel = e.NoKernel || file == e.Kernel
		}
	}
}

// errNotForUs means that the loader leaves an entry out of its menu on this machine.
var errNotForUs = errors.New("not for this machine")

// readType1 reads a file of loader/entries.
func readType1(file string) (Entry, error) {
	text, err := disk.ReadLinked(file, maxEntry)
	if err != nil {
		return Entry{}, err
	}
	var e Entry
	var options []string
	for key, value := range keys(string(text)) {
		switch key {
		case "linux", "efi", "uki":
			e.Kernel = slashes(value)
		case "initrd":
			e.Initrds = append(e.Initrds, slashes(value))
		case "sort-key":
			e.SortKey = value
		case "machine-id":
			e.Machine = value
		case "version":
			e.Version = value
		case "options":
			options = append(options, value)
		case "architecture":
			if !strings.EqualFold(value, architecture) {
				return Entry{}, errNotForUs
			}
		}
	}
	e.Closure = Closure(strings.Join(options, " "))
	// The loader shows no entry that names nothing to start. One that names a closure all the same is kept: it may be
	// half of what an installer is writing.
	if e.Kernel == "" && e.Closure == "" {
		return Entry{}, errNotForUs
	}
	return e, nil
}

// installed is what the systemd-boot in a partition says of itself; "" if it says nothing.
func installed(partition string) string {
	for _, pattern := range []string{"EFI/systemd/systemd-boot*.efi", "EFI/BOOT/BOOT*.EFI"} {
		dir, base := path.Split(pattern)
		files, _ := os.ReadDir(path.Join(partition, dir)) // a directory that is not there has none
		for _, f := range files {
			if ok, _ := path.Match(strings.ToLower(base), strings.ToLower(f.Name())); !ok {
				continue
			}
			if words := magic(path.Join(partition, dir, f.Name())); words != "" {
				return words
			}
		}
	}
	return ""
}
