package nixops

import (
	"bufio"
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// systemd runs units as transient units of PID 1. Their output goes to the journal. PID 1 unloads them when they end,
// so that a failed switch does not itself show as a failed unit; their script has recorded the end before that.
//
// The systemctl and systemd-run of root talk to PID 1 directly and not through D-Bus, so that a switch that replaces
// the bus does not disturb them. With --wait they would use D-Bus, so nothing here uses --wait for a switch.
type systemd struct {
	files unitFiles
	again time.Duration // pause before a deadline's failed command runs again; zero means deadlineAgain
}

// deadlineAgain is the pause before PID 1 runs the failed command of a deadline again. PID 1 repeats the command until
// the next boot, because nobody else may be able to undo: the agent of the bad generation may be broken. A command
// that tries again by itself needs this only if it was killed, for example by the kernel because a bad release has
// used up the memory.
const deadlineAgain = 30 * time.Second

// toolTimeout bounds one call of systemctl or systemd-run. PID 1 does not answer while it re-executes itself.
const toolTimeout = 45 * time.Second

func (s *systemd) start(ctx context.Context, unit string, cmd, env []string) error {
	state, err := s.state(ctx, unit)
	if err != nil {
		return err
	}
	if state.Phase == UnitRunning {
		return fmt.Errorf("unit %s: %w", unit, ErrUnitExists)
	}
	return s.run(ctx, unit, cmd, env)
}

// arm gives the timer a fixed moment and not a countdown. systemd restarts a countdown (OnActiveSec) at every
// daemon-reload and daemon-reexec, and a switch has one in its middle. OnStartupSec counts from the moment at which
// this systemd started, which systemd remembers over both; this also works in containers, where OnBootSec does not
// count from the boot of the container.
//
// The timer has no second moment by the calendar: systemd would fire at the earlier of the two, and a step of the
// clock would undo a good release.
func (s *systemd) arm(ctx context.Context, d Deadline) error {
	began, err := managerBegan(ctx)
	if err != nil {
		return err
	}
	now, err := monotonic()
	if err != nil {
		return err
	}
	// The moment is in whole milliseconds, because systemd keeps no finer time when it reads the unit again.
	moment := (now + d.After - began + time.Millisecond - 1) / time.Millisecond
	again := cmp.Or(s.again, deadlineAgain)
	return s.run(ctx, d.Unit, d.Command, nil,
		fmt.Sprintf("--on-startup=%dms", moment),
		"--timer-property=AccuracySec=1s", "--timer-property=RemainAfterElapse=no",
		"--property=Restart=on-failure", fmt.Sprintf("--property=RestartSec=%dms", again.Milliseconds()),
		"--property=StartLimitIntervalSec=0")
}

// managerBegan returns the time at which PID 1 started, in CLOCK_MONOTONIC. systemctl(1) shows it in microseconds.
func managerBegan(ctx context.Context) (time.Duration, error) {
	const name = "UserspaceTimestampMonotonic"
	blocks, err := properties(ctx, []string{name})
	if err != nil {
		return 0, err
	}
	text := ""
	if len(blocks) > 0 {
		text = blocks[0][name]
	}
	micro, err := strconv.ParseInt(text, 10, 64)
	if err != nil || micro <= 0 {
		return 0, fmt.Errorf("systemd gives %q as its %s, which is not a time", text, name)
	}
	return time.Duration(micro) * time.Microsecond, nil
}

// monotonic reads CLOCK_MONOTONIC, which systemd's timers use.
func monotonic() (time.Duration, error) { return clock(unix.CLOCK_MONOTONIC) }

func clock(id int32) (time.Duration, error) {
	var now unix.Timespec
	if err := unix.ClockGettime(id, &now); err != nil {
		return 0, fmt.Errorf("read clock %d: %w", id, err)
	}
	return time.Duration(now.Nano()), nil
}

// logBurst is how many lines a unit may write in journald's interval of 30 s. By default, journald drops the lines
// after the first 10000, and does not report that if the unit writes nothing afterwards. An interval of 0 does not
// remove the limit.
const logBurst = 100_000_000

// run makes the transient unit. Its type is simple, because with another type systemd-run would report that a command
// which fails at once could not be started.
func (s *systemd) run(ctx context.Context, unit string, cmd, env []string, extra ...string) error {
	if err := s.files.prepare(unit, false); err != nil {
		return err
	}
	if err := s.files.script(unit, 0, cmd, env); err != nil {
		return err
	}
	args := append([]string{
		"--quiet", "--collect", "--no-ask-password", "--unit=" + unit, "--service-type=simple",
		"--property=StandardOutput=journal", "--property=StandardError=journal",
		"--property=LogRateLimitBurst=" + strconv.Itoa(logBurst),
		"--property=TimeoutStopSec=" + strconv.Itoa(int(stopGrace.Seconds())),
		// A release that uses up the memory is ended before what takes its host back.
		"--property=OOMScoreAdjust=-900",
	}, extra...)
	args = append(args, "--", "/bin/sh", s.files.path(unit, "sh"))
	_, err := command{path: "systemd-run", args: args, timeout: toolTimeout}.run(context.WithoutCancel(ctx))
	return err
}

// deafTime is how long properties waits for PID 1 to answer.
const deafTime = 15 * time.Second

// properties returns the named properties of the units that match the patterns, one map for each unit.
func properties(ctx context.Context, names []string, patterns ...string) ([]map[string]string, error) {
	args := []string{"show", "--no-pager", "--property=" + strings.Join(names, ","), "--"}
	show := command{path: "systemctl", args: append(args, patterns...), timeout: toolTimeout}
	var out []byte
	var failed error
	// systemctl shows defaults for units that it does not know. It fails only while PID 1 does not answer, and
	// PID 1 answers again soon after its re-execution in the middle of a switch.
	err := wait(ctx, deafTime, func() (bool, error) {
		out, failed = show.run(ctx)
		return failed == nil, nil
	})
	if err != nil {
		return nil, errors.Join(err, failed)
	}
	return parseProperties(out)
}

// parseProperties reads blocks of NAME=value lines with empty lines between them.
func parseProperties(out []byte) ([]map[string]string, error) {
	var blocks []map[string]string
	block := map[string]string{}
	lines := bufio.NewScanner(bytes.NewReader(out))
	lines.Buffer(nil, 1<<20)
	for lines.Scan() {
		name, value, ok := strings.Cut(lines.Text(), "=")
		switch {
		case ok:
			block[name] = value
		case lines.Text() == "" && len(block) > 0:
			blocks = append(blocks, block)
			block = map[string]string{}
		}
	}
	if len(block) > 0 {
		blocks = append(blocks, block)
	}
	return blocks, lines.Err()
}

func (s *systemd) active(ctx context.Context, unit string) (bool, error) {
	blocks, err := properties(ctx, []string{"ActiveState"}, unit)
	if err != nil || len(blocks) == 0 {
		return false, err
	}
	switch blocks[0]["ActiveState"] {
	case "active", "activating", "deactivating", "reloading", "refreshing", "maintenance":
		return true, nil
	}
	return false, nil
}

func (s *systemd) state(ctx context.Context, unit string) (UnitState, error) {
	running, err := s.active(ctx, unit+".service")
	if err != nil {
		return UnitState{}, err
	}
	if running {
		return UnitState{Phase: UnitRunning}, nil
	}
	return s.files.ended(unit)
}

// journalArguments returns the arguments with which journalctl prints the end of what a unit wrote. It does not use
// --boot, because in a container the agent's sandbox sees another boot id than journald. The names of our units are
// used only once, so no older output can appear.
func journalArguments(unit string) []string {
	return []string{"--no-pager", "--output=cat", "--lines=200", "--unit=" + unit + ".service"}
}

func (s *systemd) output(ctx context.Context, unit string) (string, error) {
	out, err := command{path: "journalctl", args: journalArguments(unit), timeout: toolTimeout}.run(ctx)
	if over := len(out) - MaxOutput; over > 0 {
		out = out[over:]
	}
	return string(out), err
}

// notLoaded is the exit status of systemctl if the unit does not exist (LSB).
const notLoaded = 5

func (s *systemd) stop(ctx context.Context, unit string) error {
	return s.stopUnit(ctx, unit+".service")
}

func (s *systemd) stopUnit(ctx context.Context, unit string) error {
	_, err := command{path: "systemctl", args: []string{"stop", "--", unit}, timeout: 3 * stopGrace}.run(ctx)
	if failed, ok := errors.AsType[*commandError](err); ok && failed.exitCode() == notLoaded {
		return nil
	}
	return err
}

func (s *systemd) disarm(ctx context.Context, unit string) error {
	return s.stopUnit(ctx, unit+".timer")
}

func (s *systemd) armed(ctx context.Context, unit string) (bool, error) {
	return s.active(ctx, unit+".timer")
}

func (s *systemd) activeState(ctx context.Context, unit string) (string, error) {
	blocks, err := properties(ctx, []string{"LoadState", "ActiveState"}, unit)
	if err != nil {
		return "", err
	}
	if len(blocks) == 0 || blocks[0]["LoadState"] == "not-found" && blocks[0]["ActiveState"] == "inactive" {
		return "not-found", nil
	}
	return blocks[0]["ActiveState"], nil
}

func (s *systemd) reboot(ctx context.Context) error {
	_, err := command{path: "systemctl", args: []string{"reboot", "--no-ask-password"}, timeout: toolTimeout}.run(ctx)
	return err
}

// systemdRuns says whether PID 1 is systemd, as sd_booted(3) does.
func systemdRuns() bool {
	info, err := os.Lstat("/run/systemd/system")
	return err == nil && info.IsDir()
}
