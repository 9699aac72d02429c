package nixops

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"nixfleet/nixops/disk"
	"nixfleet/nixops/loader"
)

// bootDir is the directory that boot loaders and their installers use by default.
const bootDir = "/boot"

// stagedProfile is the system profile of a closure that waits for a boot. NixOS's installer for systemd-boot makes
// entries for every profile in that directory.
const stagedProfile = "/nix/var/nix/profiles/system-profiles/nixfleet-staged"

// stagedLink is the only generation of that profile. No generation of a system has the number 0, so that the entry
// sorts behind those of the system and never becomes the loader's default by its number.
const stagedLink = stagedProfile + "-0-link"

const entryOneShot = 1 << 3 // bit of LoaderFeatures

// CanBootOnce reads the features of the loader that started this boot. The loader sets that variable at every boot.
func (m *machine) CanBootOnce(ctx context.Context) (bool, error) {
	v := loader.ReadVariables(m.root)
	if v.Trouble != "" {
		return false, errors.New(v.Trouble)
	}
	return v.Features&entryOneShot != 0, nil
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
	path, err := StorePath(closure)
	if err != nil {
		return fmt.Errorf("set staged profile: %w", err)
	}
	if err := m.nix.valid(ctx, closure); err != nil {
		return fmt.Errorf("set staged profile: %w", err)
	}
	for link, target := range map[string]string{stagedLink: path, stagedProfile: filepath.Base(stagedLink)} {
		if err := disk.ReplaceLink(target, m.root+link); err != nil {
			return fmt.Errorf("set staged profile: %w", noSpace(err))
		}
	}
	return nil
}

// bootDirs returns the directories that an installer writes to: /boot, and every other partition that has entries. A
// partition without entries may belong to another system, so its free space does not matter.
func bootDirs(root string) []string {
	dirs := []string{bootDir}
	for _, dir := range loader.Dirs {
		for _, entries := range []string{"/loader/entries/*.conf", "/EFI/Linux/*.efi"} {
			files, err := filepath.Glob(root + dir + entries)
			if err == nil && len(files) > 0 && !slices.Contains(dirs, dir) {
				dirs = append(dirs, dir)
			}
		}
	}
	return dirs
}

func (m *machine) SetBootOnce(ctx context.Context, closure string) error {
	pattern := ""
	if closure != "" {
		entry := loader.Read(m.root).EntryOf(closure)
		if entry == nil {
			return fmt.Errorf("boot once: the boot loader has no entry for %s: %w", closure, ErrNotFound)
		}
		// A loader that cannot load all of it starts another entry, or stays in the firmware.
		if len(entry.Missing) > 0 {
			return fmt.Errorf("boot once: the boot loader's entry %s needs %s, which %s does not have: %w", entry.ID(),
				entry.Missing[0], entry.Dir, ErrNotFound)
		}
		pattern = entry.Pattern()
	}
	c := command{path: m.bootctl, args: []string{"set-oneshot", pattern}, timeout: toolTimeout}
	if m.root != "" {
		c.env = []string{"NIXFLEET_ROOT=" + m.root}
	}
	if _, err := c.run(ctx); err != nil {
		return fmt.Errorf("boot once: %w", err)
	}
	// bootctl ends well also where the firmware did not keep the variable.
	s := loader.Read(m.root)
	switch {
	case closure == "" && s.OnceSet:
		return fmt.Errorf("boot once: bootctl ended well, but the next boot still starts %q", s.Variables.OneShot)
	case closure != "" && (!s.OnceSet || s.Once.Closure != closure && s.Once.Unknown == ""):
		return fmt.Errorf("boot once: bootctl ended well, but the next boot does not start %s", closure)
	}
	return nil
}

func (m *machine) BootOnce(ctx context.Context) (string, error) {
	if s := loader.Read(m.root); s.OnceSet {
		return s.Once.Closure, nil
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
