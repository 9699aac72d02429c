package nixops

import (
	"bufio"
	"bytes"
	"context"
	"encoding/xml"
	"errors"
	"fmt"
	"os"
	"strings"
	"time"
)

// launchd runs units as jobs of macOS's system domain, which outlive their caller. macOS's launchd neither keeps the
// exit code of a job that is gone nor has timers that fire once after a time, so the unit's script does both.
type launchd struct {
	files unitFiles
	ctl   string // launchctl
}

// label returns the name of a unit's job.
func label(unit string) string { return "org.nixfleet." + unit }

func (l *launchd) start(ctx context.Context, unit string, cmd, env []string) error {
	return l.bootstrap(ctx, unit, 0, cmd, env)
}

func (l *launchd) arm(ctx context.Context, d Deadline) error {
	return l.bootstrap(ctx, d.Unit, d.After, d.Command, nil)
}

func (l *launchd) bootstrap(ctx context.Context, unit string, after time.Duration, cmd, env []string) error {
	loaded, err := l.loaded(ctx, unit)
	if err != nil {
		return err
	}
	if loaded {
		if _, done, err := l.files.exit(unit); err != nil || !done {
			return errors.Join(fmt.Errorf("unit %s: %w", unit, ErrUnitExists), err)
		}
		if err := l.stop(ctx, unit); err != nil {
			return err
		}
	}
	if err := l.files.prepare(unit, after > 0); err != nil {
		return err
	}
	if err := l.files.script(unit, after, cmd, env); err != nil {
		return err
	}
	plist := l.files.path(unit, "plist")
	if err := os.WriteFile(plist, propertyList(label(unit), l.files.path(unit, "out"),
		[]string{"/bin/sh", l.files.path(unit, "sh")}), 0o600); err != nil {
		return err
	}
	_, err = command{path: l.ctl, args: []string{"bootstrap", "system", plist}, timeout: toolTimeout}.run(
		context.WithoutCancel(ctx))
	return err
}

// propertyList returns the property list of a job that runs once (launchd.plist(5)).
func propertyList(label, out string, args []string) []byte {
	var b bytes.Buffer
	text := func(tag, s string) {
		b.WriteString("<" + tag + ">")
		xml.EscapeText(&b, []byte(s)) // cannot fail on a buffer
		b.WriteString("</" + tag + ">\n")
	}
	b.WriteString(xml.Header + "<plist version=\"1.0\"><dict>\n")
	text("key", "Label")
	text("string", label)
	text("key", "ProgramArguments")
	b.WriteString("<array>\n")
	for _, a := range args {
		text("string", a)
	}
	b.WriteString("</array>\n")
	for _, key := range []string{"StandardOutPath", "StandardErrorPath"} {
		text("key", key)
		text("string", out)
	}
	b.WriteString("<key>RunAtLoad</key><true/>\n<key>AbandonProcessGroup</key><false/>\n</dict></plist>\n")
	return b.Bytes()
}

// loaded says whether launchd knows the job.
func (l *launchd) loaded(ctx context.Context, unit string) (bool, error) {
	_, err := command{path: l.ctl, args: []string{"print", "system/" + label(unit)}, timeout: toolTimeout}.run(ctx)
	if failed, ok := errors.AsType[*commandError](err); ok && failed.exitCode() > 0 {
		return false, nil
	}
	return err == nil, err
}

func (l *launchd) state(ctx context.Context, unit string) (UnitState, error) {
	exit, done, err := l.files.exit(unit)
	if err != nil {
		return UnitState{}, err
	}
	if done {
		return UnitState{Phase: UnitFinished, Exit: exit}, nil
	}
	loaded, err := l.loaded(ctx, unit)
	switch {
	case err != nil || l.files.waiting(unit):
		return UnitState{Phase: UnitUnknown}, err
	case !loaded:
		return l.files.ended(unit)
	}
	return UnitState{Phase: UnitRunning}, nil
}

func (l *launchd) output(ctx context.Context, unit string) (string, error) {
	return l.files.output(unit)
}

func (l *launchd) stop(ctx context.Context, unit string) error {
	loaded, err := l.loaded(ctx, unit)
	if err != nil || !loaded {
		return err
	}
	_, err = command{path: l.ctl, args: []string{"bootout", "system/" + label(unit)}, timeout: 3 * stopGrace}.run(ctx)
	return err
}

func (l *launchd) disarm(ctx context.Context, unit string) error {
	armed, err := l.armed(ctx, unit)
	if err != nil || !armed {
		return err
	}
	if err := os.Mkdir(l.files.path(unit, "fired"), 0o700); err != nil {
		if errors.Is(err, os.ErrExist) {
			return nil
		}
		return err
	}
	err = l.stop(ctx, unit)
	return errors.Join(err, l.files.prepare(unit, false))
}

func (l *launchd) armed(ctx context.Context, unit string) (bool, error) {
	if !l.files.waiting(unit) {
		return false, nil
	}
	return l.loaded(ctx, unit)
}

// units returns the jobs that `launchctl list` prints (process, status, label). A job that does not run has failed if
// the status of its last run is not 0. units does not know who declares a job.
func (l *launchd) units(ctx context.Context) ([]Unit, error) {
	var units []Unit
	err := l.list(ctx, func(name, state string) {
		units = append(units, Unit{Name: name, Active: state == "active", Failed: state == "failed", Declared: true,
			Triggered: true})
	})
	return units, err
}

// startAgain has nothing to do: launchd keeps its jobs running by itself.
func (l *launchd) startAgain(ctx context.Context, ran []string) ([]string, error) { return nil, nil }

// list calls each with every job and its state in systemd's words.
func (l *launchd) list(ctx context.Context, each func(name, state string)) error {
	out, err := command{path: l.ctl, args: []string{"list"}, timeout: toolTimeout}.run(ctx)
	if err != nil {
		return err
	}
	lines := bufio.NewScanner(bytes.NewReader(out))
	for lines.Scan() {
		f := strings.Fields(lines.Text())
		switch {
		case len(f) != 3 || f[0] == "PID":
		case f[0] != "-":
			each(f[2], "active")
		case f[1] != "0":
			each(f[2], "failed")
		default:
			each(f[2], "inactive")
		}
	}
	return lines.Err()
}

func (l *launchd) activeState(ctx context.Context, unit string) (string, error) {
	found := "not-found"
	err := l.list(ctx, func(name, state string) {
		if name == unit {
			found = state
		}
	})
	return found, err
}

func (l *launchd) reboot(ctx context.Context) error {
	_, err := command{path: "/sbin/shutdown", args: []string{"-r", "now"}, timeout: toolTimeout}.run(ctx)
	return err
}
