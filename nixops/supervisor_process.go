package nixops

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"nixfleet/nixops/disk"
)

// processes runs units without an init. Each unit is a session of its own for which no process waits; its output goes
// to one file and the record of its end to another. A unit runs as long as its file lock is held, so that a reused
// process number cannot be mistaken for the unit's.
type processes struct {
	files unitFiles
	dir   string // directory of the lists failed-units, restarts and inactive-units
}

func (p *processes) start(ctx context.Context, unit string, command, env []string) error {
	return p.launch(ctx, unit, 0, command, env)
}

func (p *processes) arm(ctx context.Context, d Deadline) error {
	return p.launch(ctx, d.Unit, d.After, d.Command, nil)
}

// launch starts the unit's script at once. The script of a deadline waits by itself.
func (p *processes) launch(ctx context.Context, unit string, after time.Duration, command, env []string) error {
	if err := os.MkdirAll(p.files.dir, 0o700); err != nil {
		return err
	}
	lock, err := os.OpenFile(p.files.path(unit, "lock"), os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return err
	}
	defer lock.Close()
	// A process that only asks whether the lock is held also holds it for a moment.
	err = wait(ctx, 200*time.Millisecond, func() (bool, error) {
		return unix.Flock(int(lock.Fd()), unix.LOCK_EX|unix.LOCK_NB) == nil, nil
	})
	if errors.Is(err, errWaited) {
		err = ErrUnitExists
	}
	if err != nil {
		return fmt.Errorf("unit %s: %w", unit, err)
	}
	if err := p.files.prepare(unit, after > 0); err != nil {
		return err
	}
	if err := p.files.script(unit, after, command, env); err != nil {
		return err
	}
	out, err := os.OpenFile(p.files.path(unit, "out"), os.O_CREATE|os.O_WRONLY|os.O_TRUNC|os.O_APPEND, 0o600)
	if err != nil {
		return err
	}
	defer out.Close()
	// The outer shell ends at once, so that the inner shell is not a child of this process.
	cmd := exec.Command("/bin/sh", "-c", `/bin/sh "$0" &`, p.files.path(unit, "sh"))
	cmd.Dir = "/"
	cmd.Stdout, cmd.Stderr = out, out
	cmd.ExtraFiles = []*os.File{lock} // descriptor 3
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if err := cmd.Start(); err != nil {
		return err
	}
	group := strconv.Itoa(cmd.Process.Pid)
	err = os.WriteFile(p.files.path(unit, "group"), []byte(group), 0o600)
	return errors.Join(err, cmd.Wait())
}

// running says whether the unit's shell still runs.
func (p *processes) running(unit string) (bool, error) {
	return disk.Locked(p.files.path(unit, "lock"))
}

func (p *processes) state(ctx context.Context, unit string) (UnitState, error) {
	running, err := p.running(unit)
	if err != nil {
		return UnitState{}, err
	}
	if p.files.waiting(unit) {
		return UnitState{Phase: UnitUnknown}, nil
	}
	if running {
		return UnitState{Phase: UnitRunning}, nil
	}
	return p.files.ended(unit)
}

func (p *processes) output(ctx context.Context, unit string) (string, error) {
	return p.files.output(unit)
}

func (p *processes) stop(ctx context.Context, unit string) error {
	for _, step := range []struct {
		signal syscall.Signal
		wait   time.Duration
	}{{syscall.SIGTERM, stopGrace}, {syscall.SIGKILL, stopGrace}} {
		running, err := p.running(unit)
		if err != nil || !running {
			return err
		}
		text, err := disk.Read(p.files.path(unit, "group"), 32)
		if err != nil {
			return err
		}
		group, err := strconv.Atoi(string(text))
		if err != nil || group <= 1 {
			return fmt.Errorf("unit %s: %q is not a process group", unit, text)
		}
		if err := syscall.Kill(-group, step.signal); err != nil && !errors.Is(err, syscall.ESRCH) {
			return err
		}
		err = wait(ctx, step.wait, func() (bool, error) {
			running, err := p.running(unit)
			return !running, err
		})
		if err == nil || !errors.Is(err, errWaited) {
			return err
		}
	}
	return fmt.Errorf("unit %s does not end", unit)
}

func (p *processes) disarm(ctx context.Context, unit string) error {
	if !disk.Exists(p.files.path(unit, "timer")) {
		return nil
	}
	// The script of the deadline makes the same directory when it fires: only one of the two can succeed.
	if err := os.Mkdir(p.files.path(unit, "fired"), 0o700); err != nil {
		if errors.Is(err, os.ErrExist) {
			return nil
		}
		return err
	}
	err := p.stop(ctx, unit)
	return errors.Join(err, p.files.prepare(unit, false))
}

func (p *processes) armed(ctx context.Context, unit string) (bool, error) {
	running, err := p.running(unit)
	return running && p.files.waiting(unit), err
}

// units reads the lists that the closures' own scripts wrote, because without an init nobody else knows the units.
// Each line of failed-units is a unit that failed, each line of restarts is a unit and a count, and each line of
// inactive-units is a unit that does not run.
func (p *processes) units(ctx context.Context) ([]Unit, error) {
	units := map[string]Unit{}
	for _, kind := range []string{"inactive-units", "restarts", "failed-units"} {
		text, err := disk.Read(p.dir+"/"+kind, maxFact)
		if err != nil && !errors.Is(err, os.ErrNotExist) {
			return nil, err
		}
		for line := range strings.Lines(string(text)) {
			name, count, _ := strings.Cut(strings.TrimSpace(line), " ")
			if name == "" {
				continue
			}
			unit := units[name]
			unit.Name = name
			unit.Active = kind == "restarts"
			unit.Failed = kind == "failed-units"
			unit.Transient = MadeUp(name)
			unit.Declared = !unit.Transient
			if kind == "restarts" {
				unit.Restarts, _ = strconv.ParseUint(count, 10, 64)
			}
			units[name] = unit
		}
	}
	return slices.Collect(maps.Values(units)), nil
}

// startAgain does nothing: without an init the machine has no units but ours.
func (p *processes) startAgain(ctx context.Context, ran []string) ([]string, error) { return nil, nil }

// activeState returns "active" for every unit that is neither in failed-units nor in inactive-units.
func (p *processes) activeState(ctx context.Context, unit string) (string, error) {
	for _, list := range []struct{ file, state string }{{"failed-units", "failed"}, {"inactive-units", "inactive"}} {
		text, err := disk.Read(p.dir+"/"+list.file, maxFact)
		if err != nil && !errors.Is(err, os.ErrNotExist) {
			return "", err
		}
		if slices.Contains(strings.Split(string(text), "\n"), unit) {
			return list.state, nil
		}
	}
	return "active", nil
}

func (p *processes) reboot(ctx context.Context) error {
	return fmt.Errorf("reboot without an init: %w", ErrUnsupported)
}
