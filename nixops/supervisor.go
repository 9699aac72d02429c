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
	"sync"
	"time"

	"nixfleet/nixops/disk"
)

// A supervisor runs commands that outlive their caller: systemd, launchd, or plain processes. The names of units have
// no suffix, unless a method says so.
type supervisor interface {
	// start runs a command in a unit of its own, whose output does not go through the caller. It returns
	// ErrUnitExists if the unit already runs.
	start(ctx context.Context, unit string, command, env []string) error
	state(ctx context.Context, unit string) (UnitState, error)
	output(ctx context.Context, unit string) (string, error)
	// stop ends the unit's processes, and kills those that still run after stopGrace.
	stop(ctx context.Context, unit string) error
	arm(ctx context.Context, d Deadline) error
	disarm(ctx context.Context, unit string) error
	armed(ctx context.Context, unit string) (bool, error)
	// units returns every unit of the machine.
	units(ctx context.Context) ([]Unit, error)
	// startAgain is the host's StartAgain.
	startAgain(ctx context.Context, ran []string) (down []string, err error)
	// activeState returns the state of a unit, whose name has its suffix, in systemd's words.
	activeState(ctx context.Context, unit string) (string, error)
	// collect runs the collector of compliance evidence and returns its exit status, or ErrNoCollector if the
	// host has no collector.
	collect(ctx context.Context) (exit int, err error)
	reboot(ctx context.Context) error
}

// stopGrace is how long a supervisor waits for processes to end before it kills them.
const stopGrace = 10 * time.Second

// unitNames matches the names that our units may have. They become file names and arguments of other programs.
var unitNames = sync.OnceValue(func() *regexp.Regexp {
	return regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9._@-]{0,100}$`)
})

// anyUnit matches the names of systemd.unit(5), including escapes, and of launchd's jobs.
var anyUnit = sync.OnceValue(func() *regexp.Regexp {
	return regexp.MustCompile(`^[A-Za-z0-9:_.\\][A-Za-z0-9:_.\\@-]{0,254}$`)
})

// CheckUnit returns an error if the name is not valid for a unit of ours. Such a name has no suffix.
func CheckUnit(unit string) error {
	if !unitNames().MatchString(unit) {
		return fmt.Errorf("unit name %q may contain only letters, digits and . _ @ -", unit)
	}
	return nil
}

// CheckAnyUnit returns an error if no unit of the machine can have that name.
func CheckAnyUnit(unit string) error {
	if !anyUnit().MatchString(unit) {
		return fmt.Errorf("%q is not a unit name as systemd.unit(5) describes it", unit)
	}
	return nil
}

// unitFiles is the directory with the record of how each unit ended. It is below /run, so that no record outlives the
// boot that it belongs to.
type unitFiles struct{ dir string }

func (f unitFiles) path(unit, kind string) string { return f.dir + "/" + unit + "." + kind }

// prepare makes the directory and removes the files of an earlier unit of that name. For a timer it makes the file
// that marks the timer as not fired yet.
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

// script writes the shell script of a unit. The script runs the command, and the shell alone then records in one
// write how the command ended. The trap keeps the shell alive when a signal ends the command, so that the shell
// records that too. Descriptor 3 belongs to the supervisor. The command also gets the variables in handedOn.
//
// The script is a file because systemd 252 writes the command lines of transient units down and reads them again at
// every daemon-reload, which is in the middle of every switch, and makes mistakes with $, ; and the Ex settings.
//
// A unit that waits by itself makes the directory "fired" when its time has come, and ends if the directory already
// exists. To cancel the unit, the supervisor makes the same directory.
func (f unitFiles) script(unit string, wait time.Duration, command, env []string) error {
	var b strings.Builder
	if wait > 0 {
		fmt.Fprintf(&b, "sleep %.3f || exit\nmkdir %s || exit\n", wait.Seconds(), quote(f.path(unit, "fired")))
	}
	// In a shell of its own: one that cannot write here, because /run is full, must not end the script.
	fmt.Fprintf(&b, "trap : TERM\n(: >%s) || :\n", quote(f.path(unit, "started")))
	for _, name := range handedOn {
		if value := os.Getenv(name); value != "" {
			fmt.Fprintf(&b, "export %s=%s\n", name, quote(value))
		}
	}
	for _, e := range env {
		name, value, ok := strings.Cut(e, "=")
		if !ok || !variable().MatchString(name) {
			return fmt.Errorf("unit %s: %q is not an environment variable", unit, name)
		}
		fmt.Fprintf(&b, "export %s=%s\n", name, quote(value))
	}
	for _, word := range command {
		b.WriteString(quote(word) + " ")
	}
	// The room of the record is taken now, and the shell writes into it.
	record := f.path(unit, "exit")
	fmt.Fprintf(&b, "3>&-\ncode=$?\necho \"exited $code\" 1<>%s\nexit $code\n", quote(record))
	return errors.Join(os.WriteFile(record, []byte(strings.Repeat(" ", 63)+"\n"), 0o600),
		os.WriteFile(f.path(unit, "sh"), []byte(b.String()), 0o600))
}

// handedOn are the environment variables of this process that a unit's command also gets. On NixOS, the PATH of PID 1
// has almost no programs, and a deadline would find neither Nix nor systemctl. NIX_REMOTE is set where the Nix daemon
// does not run as root: there, root itself must not write to the store's database, neither in the agent nor in an
// undo.
var handedOn = []string{"PATH", "NIX_REMOTE"}

// variable matches the name of an environment variable.
var variable = sync.OnceValue(func() *regexp.Regexp {
	return regexp.MustCompile(`^[A-Za-z_][A-Za-z0-9_]*$`)
})

// quote returns a string as one word of the shell.
func quote(s string) string { return "'" + strings.ReplaceAll(s, "'", `'\''`) + "'" }

// ended returns the state of a unit that does not run, from its record. If a unit that was started has no record, it
// was killed together with the shell that would have written the record.
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

// exit reads the record of a unit, "exited CODE". A blank file is the room of a record.
func (f unitFiles) exit(unit string) (Exit, bool, error) {
	text, err := disk.Read(f.path(unit, "exit"), 256)
	if errors.Is(err, os.ErrNotExist) {
		return Exit{}, false, nil
	}
	if err != nil || strings.TrimSpace(string(text)) == "" {
		return Exit{}, false, err
	}
	how, status, _ := strings.Cut(strings.TrimSpace(string(text)), " ")
	code, err := strconv.Atoi(status)
	if how != "exited" || err != nil {
		return Exit{}, false, fmt.Errorf("record of unit %s: %q is not an exit", unit, text)
	}
	return Exit{Code: code}, true, nil
}

// output returns the end of the file that a unit writes to if the machine has no journal.
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
