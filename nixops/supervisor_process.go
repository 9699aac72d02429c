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

// processes supervises without an init: each unit is a session of its own that
// nobody waits for, its output goes to a file and its end to another. A held flock
// says that it runs, so that no process number is mistaken for another's.
type processes struct {
	files unitFiles
	dir   string // where failed-units and restarts are listed
}

func (p *processes) start(ctx context.Context, unit string, command, env []string) error {
	return p.launch(ctx, unit, 0, command, env)
}

func (p *processes) arm(ctx context.Context, d Deadline) error {
	return p.launch(ctx, d.Unit, d.After, d.Command, nil)
}

// launch starts the unit's script at once; one that has to wait does so itself.
func (p *processes) launch(ctx context.Context, unit string, after time.Duration, command, env []string) error {
	if err := os.MkdirAll(p.files.dir, 0o700); err != nil {
		return err
	}
	lock, err := os.OpenFile(p.files.path(unit, "lock"), os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return err
	}
	defer lock.Close()
	// Somebody who only asks whether it is held has it for a moment, too.
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
	// The outer shell ends at once, so that the inner one is nobody's child.
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

// running says whether the unit's shell lives.
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
	// The same step by which the deadline itself decides that it fires.
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

// units reads what the closures' own scripts wrote down, because without an init
// nobody else knows: one failed unit a line in failed-units, one "unit count" a line in
// restarts, one unit that does not run a line in inactive-units.
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
			unit.Name, unit.Active = name, kind == "restarts"
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

// startAgain has nothing to do: without an init there are no units but ours.
func (p *processes) startAgain(ctx context.Context, ran []string) ([]string, error) { return nil, nil }

// activeState takes every unit for active that is not listed as failed or, one
// per line, in inactive-units.
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
