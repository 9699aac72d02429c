package nixops

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"time"
	"unicode/utf16"

	"nixfleet/nixops/disk"
)

// stagedProfile is the system profile of a closure that waits for a boot. NixOS's installer for systemd-boot makes
// entries for every profile in that directory.
const stagedProfile = "/nix/var/nix/profiles/system-profiles/nixfleet-staged"

// efiVariables is the directory of the Boot Loader Interface's variables
// (https://systemd.io/BOOT_LOADER_INTERFACE). A variable has four bytes of attributes, then its value.
const (
	efiVariables  = "/sys/firmware/efi/efivars/"
	loaderVendor  = "-4a67b082-0a4c-41cf-b6c7-440b29bb8c4f"
	entryOneShot  = 1 << 3 // bit of LoaderFeatures
	maxEFIContent = 4 << 10
)

// loaderVariable returns the value of a variable of the boot loader, or nil if it does not exist.
func loaderVariable(root, name string) ([]byte, error) {
	data, err := disk.ReadLinked(root+efiVariables+name+loaderVendor, maxEFIContent)
	if errors.Is(err, fs.ErrNotExist) || err == nil && len(data) <= 4 {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("read the boot loader's %s: %w", name, err)
	}
	return data[4:], nil
}

// CanBootOnce reads the features of the loader that started this boot. The loader sets that variable at every boot.
func (m *machine) CanBootOnce(ctx context.Context) (bool, error) {
	features, err := loaderVariable(m.root, "LoaderFeatures")
	if err != nil || len(features) < 8 {
		return false, err
	}
	return binary.LittleEndian.Uint64(features)&entryOneShot != 0, nil
}

func (m *machine) SetStaged(ctx context.Context, closure string) error {
	profile := m.root + stagedProfile
	if closure == "" {
		links, err := filepath.Glob(profile + "-*-link")
		if err != nil {
			return err
		}
		for _, link := range append([]string{profile}, links...) {
			if err := os.Remove(link); err != nil && !errors.Is(err, fs.ErrNotExist) {
				return fmt.Errorf("drop staged profile: %w", err)
			}
		}
		return nil
	}
	if now, err := behind(m.root, stagedProfile); err == nil && now == closure {
		return nil
	}
	if err := m.setProfile(ctx, stagedProfile, closure); err != nil {
		return fmt.Errorf("set staged profile: %w", err)
	}
	return nil
}

// loaderDirs are the directories on which an ESP or XBOOTLDR partition may be mounted (bootctl(1)).
var loaderDirs = []string{bootDir, "/efi", "/boot/efi"}

// bootDirs returns the directories that an installer writes to: /boot, and every other partition that has entries. A
// partition without entries may belong to another system, so its free space does not matter.
func bootDirs(root string) []string {
	dirs := []string{bootDir}
	for _, dir := range loaderDirs {
		entries, err := filepath.Glob(root + dir + "/loader/entries/*.conf")
		if err == nil && len(entries) > 0 && dir != bootDir {
			dirs = append(dirs, dir)
		}
	}
	return dirs
}

// tries matches the boot counter in the file name of an entry. It is not a part of the entry's id.
var tries = regexp.MustCompile(`\+\d+(-\d+)?\.conf$`)

// entryOf returns the id of the newest entry that starts a closure, or "" if there is none.
func entryOf(root, closure string) (string, error) {
	for _, dir := range loaderDirs {
		dir = root + dir + "/loader/entries"
		entries, err := os.ReadDir(dir)
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return "", err
		}
		slices.Reverse(entries)
		for _, e := range entries {
			if !strings.HasSuffix(e.Name(), ".conf") {
				continue
			}
			entry, err := disk.ReadLinked(dir+"/"+e.Name(), maxFact)
			if err != nil {
				return "", err
			}
			if initClosure(string(entry)) == closure {
				return tries.ReplaceAllString(e.Name(), ".conf"), nil
			}
		}
	}
	return "", nil
}

func (m *machine) SetBootOnce(ctx context.Context, closure string) error {
	entry := ""
	if closure != "" {
		var err error
		if entry, err = entryOf(m.root, closure); err != nil {
			return fmt.Errorf("boot once: %w", err)
		}
		if entry == "" {
			return fmt.Errorf("boot once: the boot loader has no entry for %s: %w", closure, ErrNotFound)
		}
	}
	c := command{path: m.bootctl, args: []string{"set-oneshot", entry}, timeout: toolTimeout}
	if m.root != "" {
		c.env = []string{"NIXFLEET_ROOT=" + m.root}
	}
	if _, err := c.run(ctx); err != nil {
		return fmt.Errorf("boot once: %w", err)
	}
	return nil
}

func (m *machine) BootOnce(ctx context.Context) (string, error) {
	value, err := loaderVariable(m.root, "LoaderEntryOneShot")
	if err != nil || value == nil {
		return "", err
	}
	words := make([]uint16, 0, len(value)/2)
	for ; len(value) >= 2; value = value[2:] {
		if w := binary.LittleEndian.Uint16(value); w != 0 {
			words = append(words, w)
		}
	}
	id := strings.TrimSuffix(string(utf16.Decode(words)), ".conf")
	for _, dir := range loaderDirs {
		names, err := filepath.Glob(m.root + dir + "/loader/entries/*.conf")
		if err != nil {
			return "", err
		}
		for _, name := range names {
			if strings.TrimSuffix(tries.ReplaceAllString(filepath.Base(name), ".conf"), ".conf") != id {
				continue
			}
			entry, err := disk.ReadLinked(name, maxFact)
			if err != nil {
				return "", fmt.Errorf("boot once: %w", err)
			}
			return initClosure(string(entry)), nil
		}
	}
	return "", nil
}

// NextElapse lets systemd itself read the expression. systemd-analyze prints the time in the machine's zone and, if
// that is not UTC, also in UTC.
func (m *machine) NextElapse(ctx context.Context, calendar string, after time.Time) (time.Time, error) {
	if m.platform != "linux" {
		return time.Time{}, fmt.Errorf("calendar %q: %w", calendar, ErrUnsupported)
	}
	out, err := command{
		path: "systemd-analyze", env: []string{"LC_ALL=C"}, timeout: toolTimeout,
		args: []string{"calendar", fmt.Sprintf("--base-time=@%d", after.Unix()), "--", calendar},
	}.run(ctx)
	if failed, ok := errors.AsType[*commandError](err); ok && failed.exitCode() > 0 {
		return time.Time{}, fmt.Errorf("calendar %q: %w: %s", calendar, ErrCalendar, strings.TrimSpace(failed.stderr))
	}
	if err != nil {
		return time.Time{}, fmt.Errorf("calendar %q: %w", calendar, err)
	}
	return parseElapse(calendar, string(out))
}

// parseElapse reads what systemd-analyze prints about a calendar expression.
func parseElapse(calendar, out string) (time.Time, error) {
	found := ""
	for line := range strings.Lines(out) {
		name, value, _ := strings.Cut(line, ": ")
		switch strings.TrimSpace(name) {
		case "Next elapse", "(in UTC)":
			found = strings.TrimSpace(value)
		}
	}
	if found == "never" {
		return time.Time{}, nil
	}
	const form = "Mon 2006-01-02 15:04:05 UTC"
	next, err := time.Parse(form, found)
	// time.Parse also accepts hours of one digit and a wrong day of the week.
	if err == nil && next.Format(form) != found {
		err = fmt.Errorf("that is not a time of the form %q", form)
	}
	if err != nil {
		return time.Time{}, fmt.Errorf("calendar %q: systemd-analyze says %q: %w", calendar, found, err)
	}
	return next, nil
}
