package nixops

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"nixfleet/nixops/disk"
)

// bootDir is the directory that boot loaders and their installers use by default.
const bootDir = "/boot"

// maxBootConfig bounds a boot loader's file in bytes: GRUB's lists every generation.
const maxBootConfig = 8 << 20

// BootDefault reads the same files as the boot loader. Every NixOS entry names its closure on the
// kernel's command line: init=/nix/store/<closure>/init.
func (m *machine) BootDefault(ctx context.Context) (string, error) {
	if m.platform == "darwin" {
		return m.Profile(ctx)
	}
	for _, loader := range []struct {
		file string
		pick func(dir, config string) (string, error)
	}{
		{"/loader/loader.conf", systemdBootDefault},
		{"/grub/grub.cfg", grubDefault},
		{"/extlinux/extlinux.conf", extlinuxDefault},
	} {
		for _, dir := range loaderDirs {
			dir = m.root + dir
			config, err := disk.ReadLinked(dir+loader.file, maxBootConfig)
			if errors.Is(err, fs.ErrNotExist) {
				continue
			}
			if err != nil {
				return "", fmt.Errorf("boot default: %w", err)
			}
			closure, err := loader.pick(dir, string(config))
			if err != nil {
				return "", fmt.Errorf("boot default: %w", err)
			}
			return closure, nil
		}
	}
	return "", nil
}

// HasBootEntry looks for the closure in every file that a known loader reads.
func (m *machine) HasBootEntry(ctx context.Context, closure string) (bool, error) {
	if m.platform == "darwin" {
		return true, nil
	}
	if id, err := entryOf(m.root, closure); err != nil || id != "" {
		return id != "", err
	}
	for _, file := range []string{"/grub/grub.cfg", "/extlinux/extlinux.conf"} {
		for _, dir := range loaderDirs {
			config, err := disk.ReadLinked(m.root+dir+file, maxBootConfig)
			if err != nil && !errors.Is(err, fs.ErrNotExist) {
				return false, fmt.Errorf("boot entries: %w", err)
			}
			if strings.Contains(string(config), storeDir+"/"+closure+"/") {
				return true, nil
			}
		}
	}
	return false, nil
}

var initArgument = regexp.MustCompile(`\binit=(/nix/store/[^\s"']+)`)

// initClosure returns the closure that a kernel command line names, or "" if it names none.
func initClosure(text string) string {
	if m := initArgument.FindStringSubmatch(text); m != nil {
		return closureOf(m[1])
	}
	return ""
}

// systemdBootDefault follows loader.conf(5): the default is an entry, or the first entry of the menu
// that matches a pattern. The menu lists newer names first.
func systemdBootDefault(dir, config string) (string, error) {
	pattern := ""
	for line := range strings.Lines(config) {
		if f := strings.Fields(line); len(f) == 2 && f[0] == "default" {
			pattern = f[1]
		}
	}
	if pattern == "" {
		return "", nil
	}
	entries, err := os.ReadDir(dir + "/loader/entries")
	if err != nil {
		return "", err
	}
	slices.Reverse(entries)
	for _, e := range entries {
		whole, _ := path.Match(pattern, e.Name())
		stem, _ := path.Match(pattern, strings.TrimSuffix(e.Name(), ".conf"))
		if !whole && !stem {
			continue
		}
		entry, err := disk.ReadLinked(dir+"/loader/entries/"+e.Name(), maxFact)
		if err != nil {
			return "", err
		}
		return initClosure(string(entry)), nil
	}
	return "", nil
}

// grubDefault understands the configuration that NixOS writes: the default is the number of an entry
// at the top level.
func grubDefault(_, config string) (string, error) {
	want := 0
	if m := regexp.MustCompile(`(?m)^\s*set default="?(\d+)"?\s*$`).FindStringSubmatch(config); m != nil {
		want, _ = strconv.Atoi(m[1])
	}
	number, inside := -1, false
	for line := range strings.Lines(config) {
		if strings.HasPrefix(line, "menuentry ") || strings.HasPrefix(line, "submenu ") {
			number++
			inside = number == want
		}
		if closure := initClosure(line); inside && closure != "" {
			return closure, nil
		}
	}
	return "", nil
}

// extlinuxDefault returns the closure of the entry whose label DEFAULT names.
func extlinuxDefault(_, config string) (string, error) {
	want, label := "", ""
	for line := range strings.Lines(config) {
		f := strings.Fields(line)
		if len(f) < 2 {
			continue
		}
		switch strings.ToUpper(f[0]) {
		case "DEFAULT":
			want = f[1]
		case "LABEL":
			label = f[1]
		case "APPEND":
			if label == want && want != "" {
				return initClosure(line), nil
			}
		}
	}
	return "", nil
}
