package nixops

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"regexp"
	"strconv"
	"strings"
	"time"

	"nixfleet/nixops/disk"
)

// A supervisor is what a machine has to run things that outlive their caller:
// systemd, launchd, or nothing but processes. Units are named without suffix.
type supervisor interface {
	// start runs a command in a unit of its own, with its output out of the
	// caller's hands. ErrUnitExists when the unit is running.
	start(ctx context.Context, unit string, command, env []string) error
	state(ctx context.Context, unit string) (UnitState, error)
	output(ctx context.Context, unit string) (string, error)
	// stop ends the unit's processes, the stubborn ones after stopGrace.
	stop(ctx context.Context, unit string) error
	arm(ctx context.Context, d Deadline) error
	disarm(ctx context.Context, unit string) error
	armed(ctx context.Context, unit string) (bool, error)
	// units describes every unit of the machine.
	units(ctx context.Context) ([]Unit, error)
	// startAgain is the host's StartAgain.
	startAgain(ctx context.Context, ran []string) (down []string, err error)
	// activeState is one unit's state in systemd's words.
	activeState(ctx context.Context, unit string) (string, error)
	// collect runs the collector of compliance evidence and says how it exited;
	// ErrNoCollector when there is none.
	collect(ctx context.Context) (exit int, err error)
	reboot(ctx context.Context) error
}

// stopGrace is how long processes may take to end by themselves.
const stopGrace = 10 * time.Second

// unitNames are the names a unit may have here: they become file names and
// arguments of other programs.
var unitNames = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9._@-]{0,100}$`)

// anyUnit are the names of systemd.unit(5), escapes included, and of launchd's jobs.
var anyUnit = regexp.MustCompile(`^[A-Za-z0-9:_.\\][A-Za-z0-9:_.\\@-]{0,254}$`)

// CheckUnit says what is wrong with the name of a unit of ours, which is given without suffix.
func CheckUnit(unit string) error {
	if !unitNames.MatchString(unit) {
		return fmt.Errorf("unit name %q: only letters, digits and . _ @ -", unit)
	}
	return nil
}

// CheckAnyUnit says what is wrong with the name of any unit of the machine.
func CheckAnyUnit(unit string) error {
	if !anyUnit.MatchString(unit) {
		return fmt.Errorf("unit name %q: not a name of systemd.unit(5)", unit)
	}
	return nil
}

// unitFiles is the directory where the end of each unit is recorded. It lies
// below /run, so that a record never outlives the boot it belongs to.
type unitFiles struct{ dir string }

func (f unitFiles) path(unit, kind string) string { return f.dir + "/" + unit + "." + kind }

// prepare makes the directory and forgets an earlier unit of the name. A timer is
// marked as one that has not fired.
func (f unitFiles) prepare(unit string, timer bool) error {
	if err := os.MkdirAll(f.dir, 0o700); err != nil {
		return err
	}
	for _, kind := range []string{"exit", "started", "out", "fired", "timer", "plist", "sh"} {
		if err := os.Remove(f.path(unit, kind)); err != nil && !errors.Is(err, os.ErrNotExist) {
			return err
		}
	}
	if !timer {
		return nil
	}
	return os.WriteFile(f.path(unit, "timer"), nil, 0o600)
}

// waiting says whether the unit is marked as a deadline that has not fired.
func (f unitFiles) waiting(unit string) bool {
	return disk.Exists(f.path(unit, "timer")) && !disk.Exists(f.path(unit, "fired"))
}

// script writes the shell script of a unit: run the command and record how it
// ended, in one write. The trap keeps the shell alive through the signal that ends the
// command, to record that too; descriptor 3 is the supervisor's. The command gets what is
// handedOn. The record needs no program but the shell.
//
// It is a file because a unit's command line must survive being written down and read
// again: systemd 252 does that to transient units at every daemon-reload, which
// is in the middle of every switch, and gets $, ; and the Ex settings wrong.
//
// A unit that has to wait by itself decides by making a directory whether it
// still happens; taking it back makes the same directory.
func (f unitFiles) script(unit string, wait time.Duration, command, env []string) error {
	var b strings.Builder
	if wait > 0 {
		fmt.Fprintf(&b, "sleep %.3f || exit\nmkdir %s || exit\n", wait.Seconds(), quote(f.path(unit, "fired")))
	}
	fmt.Fprintf(&b, "trap : TERM\n: >%s\n", quote(f.path(unit, "started")))
	for _, name := range handedOn {
		if value := os.Getenv(name); value != "" {
			fmt.Fprintf(&b, "export %s=%s\n", name, quote(value))
		}
	}
	for _, e := range env {
		name, value, ok := strings.Cut(e, "=")
		if !ok || !variable.MatchString(name) {
			return fmt.Errorf("unit %s: %q is not an environment variable", unit, name)
		}
		fmt.Fprintf(&b, "export %s=%s\n", name, quote(value))
	}
	for _, word := range command {
		b.WriteString(quote(word) + " ")
	}
	fmt.Fprintf(&b, "3>&-\ncode=$?\necho \"exited $code\" >%s\nexit $code\n", quote(f.path(unit, "exit")))
	return os.WriteFile(f.path(unit, "sh"), []byte(b.String()), 0o600)
}

// handedOn are the variables of ours that a unit's command gets. The PATH of PID 1 holds next to
// nothing on NixOS, and a deadline would find neither Nix nor systemctl. NIX_REMOTE is set where the
// Nix daemon is not root: root itself must not write to the store's database there, in an undo no more
// than in the agent.
var handedOn = []string{"PATH", "NIX_REMOTE"}

var variable = regexp.MustCompile(`^[A-Za-z_][A-Za-z0-9_]*$`)

// quote makes a shell word.
func quote(s string) string { return "'" + strings.ReplaceAll(s, "'", `'\''`) + "'" }

// ended is the state of a unit that does not run: by its record, or killed
// together with the shell that would have written one.
func (f unitFiles) ended(unit string) (UnitState, error) {
	exit, ok, err := f.exit(unit)
	switch {
	case err != nil:
		return UnitState{}, err
	case ok:
		return UnitState{Phase: UnitFinished, Exit: exit}, nil
	case disk.Exists(f.path(unit, "started")):
		return UnitState{Phase: UnitFinished, Exit: Exit{Code: -1, Signal: "KILL"}}, nil
	}
	return UnitState{Phase: UnitUnknown}, nil
}

// exit reads a record: "exited CODE". An empty one was never written.
func (f unitFiles) exit(unit string) (Exit, bool, error) {
	text, err := disk.Read(f.path(unit, "exit"), 256)
	if errors.Is(err, os.ErrNotExist) {
		return Exit{}, false, nil
	}
	if err != nil || len(text) == 0 { // about to be written
		return Exit{}, false, err
	}
	how, status, _ := strings.Cut(strings.TrimSpace(string(text)), " ")
	code, err := strconv.Atoi(status)
	if how != "exited" || err != nil {
		return Exit{}, false, fmt.Errorf("record of unit %s: %q is not an exit", unit, text)
	}
	return Exit{Code: code}, true, nil
}

// output is the end of the file that a unit writes to where there is no journal.
func (f unitFiles) output(unit string) (string, error) {
	file, err := os.Open(f.path(unit, "out"))
	if errors.Is(err, os.ErrNotExist) {
		return "", nil
	}
	if err != nil {
		return "", err
	}
	defer file.Close()
	info, err := file.Stat()
	if err != nil {
		return "", err
	}
	start := max(0, info.Size()-MaxOutput)
	text, err := io.ReadAll(io.NewSectionReader(file, start, MaxOutput))
	return string(text), err
}
