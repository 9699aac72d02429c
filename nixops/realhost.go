package nixops

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"time"

	"github.com/rs/zerolog"

	"nixfleet/nixops/disk"
)

// machine is the Host of a real machine.
type machine struct {
	root     string // "" or an absolute path that does not end in a slash
	platform string // GOOS
	nix      nix
	fetch    []string // the options that substitution returns
	super    supervisor
	files    unitFiles
	users    userWatch
	bootctl  string
	log      zerolog.Logger
}

// NewHost returns the machine that the configuration describes.
func NewHost(c HostConfig) (Host, error) {
	m := &machine{platform: runtime.GOOS, bootctl: cmp.Or(c.Bootctl, "bootctl"), log: c.Log}
	if c.Root != "" && c.Root != "/" {
		abs, err := filepath.Abs(c.Root)
		if err != nil {
			return nil, fmt.Errorf("root directory of the host: %w", err)
		}
		// Nix names the directories of the store by their real paths.
		if m.root, err = filepath.EvalSymlinks(abs); err != nil {
			return nil, fmt.Errorf("root directory of the host: %w", err)
		}
	}
	m.nix = nix{bin: c.Nix, confDir: c.NixConfDir, store: m.root}
	// Nix does not ask substituters if it cannot store their answers, and the home of a unit may be read-only.
	if m.root != "" || os.Geteuid() == 0 && os.Getenv("XDG_CACHE_HOME") == "" {
		m.nix.cache = m.root + "/var/cache/nixfleet"
	}
	if m.root != "" {
		m.nix.home = m.root + "/root"
	}
	m.fetch = substitution(c.Substituters, c.TrustedPublicKeys)

	run := c.RunDir
	if run == "" {
		run = m.root + "/run/nixfleet"
	}
	files := unitFiles{dir: run + "/units"}
	m.files = files
	kind := c.Supervisor
	if kind == "" {
		switch {
		case runtime.GOOS == "darwin":
			kind = SupervisorLaunchd
		case systemdRuns():
			kind = SupervisorSystemd
		default:
			kind = SupervisorProcess
		}
	}
	switch kind {
	case SupervisorSystemd:
		m.super = &systemd{files: files}
	case SupervisorProcess:
		m.super = &processes{files: files, dir: run}
	case SupervisorLaunchd:
		m.super = &launchd{files: files, ctl: cmp.Or(c.Launchctl, "launchctl")}
	default:
		return nil, fmt.Errorf("supervisor %q is not one of %s, %s and %s", kind, SupervisorSystemd, SupervisorProcess,
			SupervisorLaunchd)
	}
	return m, nil
}

// Paths below the root.
const (
	currentSystem = "/run/current-system"
	bootedSystem  = "/run/booted-system"
	systemProfile = "/nix/var/nix/profiles/system"
	rootsDir      = "/nix/var/nix/gcroots/nixfleet"
	switchLock    = "/run/nixos/switch-to-configuration.lock"
)

// behind returns the closure that a link leads to, or "" if there is no link.
func behind(root, link string) (string, error) {
	target, err := resolve(root, link)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return "", err
	}
	return closureOf(target), nil
}

func (m *machine) CurrentSystem(ctx context.Context) (string, error) {
	return behind(m.root, currentSystem)
}
func (m *machine) BootedSystem(ctx context.Context) (string, error) {
	return behind(m.root, bootedSystem)
}
func (m *machine) Profile(ctx context.Context) (string, error) { return behind(m.root, systemProfile) }

func (m *machine) BootID(ctx context.Context) (string, error) { return bootID(ctx) }

func (m *machine) SinceBoot(ctx context.Context) (time.Duration, error) { return sinceBoot() }

// scriptOf returns the command that runs a closure's own switch script on this machine.
func scriptOf(root, platform, closure string, action Action) ([]string, error) {
	path, err := StorePath(closure)
	if err != nil {
		return nil, err
	}
	command, err := switchCommand(platform, path, action)
	if err != nil {
		return nil, err
	}
	command[0] = root + command[0]
	if !executable(command[0]) {
		return nil, fmt.Errorf("%s cannot be executed: %w", command[0], ErrNotClosure)
	}
	return command, nil
}

// switchCommand returns the command that activates a platform's closures, with its logical path. nix-darwin has one
// script for that, and its boot default is the profile itself.
func switchCommand(platform, path string, action Action) ([]string, error) {
	if err := action.Check(); err != nil {
		return nil, err
	}
	if platform != "darwin" {
		return []string{path + "/bin/switch-to-configuration", string(action)}, nil
	}
	switch action {
	case ActionBoot, ActionCheck, ActionDryActivate:
		return []string{path + "/sw/bin/true"}, nil
	default:
		return []string{path + "/activate"}, nil
	}
}

func executable(path string) bool {
	info, err := os.Stat(path)
	return err == nil && info.Mode().IsRegular() && info.Mode().Perm()&0o111 != 0
}

func (m *machine) SetProfile(ctx context.Context, closure string) error {
	if now, err := m.Profile(ctx); err == nil && now == closure {
		return nil
	}
	err := setProfile(ctx, m.nix, m.root, closure, m.fetch)
	if err == nil {
		return nil
	}
	// An undo must also work when Nix does not, for example because the disk is full.
	if link := generationOf(m.root, systemProfile, closure); link != "" {
		m.log.Error().Err(err).Str("generation", link).Msg("profile set without Nix")
		return disk.ReplaceLink(link, m.root+systemProfile)
	}
	return fmt.Errorf("set profile: %w", err)
}

// generationOf returns the name of a generation's link of a profile that leads to the closure, or "" if there is none.
func generationOf(root, profile, closure string) string {
	links, _ := filepath.Glob(root + profile + "-*-link") // the pattern is valid
	for _, link := range links {
		if target, err := os.Readlink(link); err == nil && target == storeDir+"/"+closure {
			return filepath.Base(link)
		}
	}
	return ""
}

// setProfile makes a new generation of the system profile and checks that the profile leads to the closure.
func setProfile(ctx context.Context, nix nix, root, closure string, options []string) error {
	path, err := StorePath(closure)
	if err != nil {
		return err
	}
	if err := nix.valid(ctx, closure); err != nil {
		return err
	}
	if err := os.MkdirAll(filepath.Dir(root+systemProfile), 0o755); err != nil {
		return noSpace(err)
	}
	c := nix.command("nix-env", "--profile", root+systemProfile, "--set", path)
	c.args = append(c.args, options...)
	c.timeout = quick
	if _, err := c.run(ctx); err != nil {
		return classify(err)
	}
	if now, err := behind(root, systemProfile); err != nil || now != closure {
		return fmt.Errorf("the profile leads to %q: %w", now, errors.Join(ErrMismatch, err))
	}
	return nil
}

func (m *machine) RestoreCurrent(ctx context.Context, closure string) error {
	path, err := StorePath(closure)
	if err != nil {
		return err
	}
	if now, err := m.CurrentSystem(ctx); err == nil && now == closure {
		return nil
	}
	// This does not ask Nix: an undo must also work when Nix's database does not.
	if !disk.Exists(m.root + path) {
		return fmt.Errorf("restore current system %s: %w", closure, ErrNotClosure)
	}
	err = disk.ReplaceLink(path, m.root+currentSystem)
	if err != nil && disk.IsFull(err) {
		m.files.makeRoom()
		err = disk.ReplaceLink(path, m.root+currentSystem)
	}
	if err != nil {
		return fmt.Errorf("restore current system: %w", noSpace(err))
	}
	return nil
}

func (m *machine) LockHeld(ctx context.Context) (bool, error) {
	held, err := disk.Locked(m.root + switchLock)
	// If the lock is not a regular file, the script itself says what is wrong.
	if errors.Is(err, disk.ErrNotRegular) {
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("switch lock: %w", err)
	}
	return held, nil
}

func (m *machine) ActiveState(ctx context.Context, unit string) (string, error) {
	if err := CheckAnyUnit(unit); err != nil {
		return "", err
	}
	state, err := m.super.activeState(ctx, unit)
	if err != nil {
		return "", fmt.Errorf("state of unit %s: %w", unit, err)
	}
	return state, nil
}

func (m *machine) Space(ctx context.Context, closure string) (Space, error) {
	store, err := disk.Free(m.root + storeDir)
	if err != nil {
		return Space{}, fmt.Errorf("free space of the store: %w", err)
	}
	space := Space{StoreFree: store}
	if err := bootRoom(m.root, closure, &space); err != nil {
		return Space{}, err
	}
	return space, nil
}

func (m *machine) Reboot(ctx context.Context) error {
	if m.root != "" {
		return fmt.Errorf("reboot of a host below %s: %w", m.root, ErrUnsupported)
	}
	return m.super.reboot(ctx)
}
