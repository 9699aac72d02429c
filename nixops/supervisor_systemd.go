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

// systemd supervises with transient units of PID 1. Their output goes to the
// journal. They are collected when they end, so that a failed switch does not
// itself show as a failed unit; their script has recorded the end before that.
//
// Root's systemctl and systemd-run talk to PID 1 directly, not through D-Bus, so a
// switch that replaces the bus does not disturb them; hence no --wait, which does.
type systemd struct {
	files unitFiles
	again time.Duration // after which a deadline's command runs again that failed; zero: deadlineAgain
}

// deadlineAgain is how long a deadline that failed is left. It goes on until the next
// boot, since nobody else may be there to undo: the agent of the generation that is to be
// undone may be what is broken. A command that goes on by itself comes to it only when it
// was killed, as the kernel does where a bad release has used the memory up.
const deadlineAgain = 30 * time.Second

// toolTimeout bounds one call of systemctl or systemd-run; PID 1 is deaf while
// it reexecutes itself.
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

// arm gives the timer a moment and not a countdown: systemd starts a countdown
// (OnActiveSec) anew at every daemon-reload and daemon-reexec, and a switch has one in
// its middle. OnStartupSec counts from when this systemd began its work, in containers
// too, where OnBootSec does not count from the boot; it is remembered over both.
//
// There is one moment and no second one by the calendar: systemd would take the earlier
// one, so that a step of the clock would undo a good release.
func (s *systemd) arm(ctx context.Context, d Deadline) error {
	began, err := managerBegan(ctx)
	if err != nil {
		return err
	}
	now, err := monotonic()
	if err != nil {
		return err
	}
	// Whole milliseconds: systemd keeps no more of it when it reads the unit again.
	moment := (now + d.After - began + time.Millisecond - 1) / time.Millisecond
	again := cmp.Or(s.again, deadlineAgain)
	return s.run(ctx, d.Unit, d.Command, nil,
		fmt.Sprintf("--on-startup=%dms", moment),
		"--timer-property=AccuracySec=1s", "--timer-property=RemainAfterElapse=no",
		"--property=Restart=on-failure", fmt.Sprintf("--property=RestartSec=%dms", again.Milliseconds()),
		"--property=StartLimitIntervalSec=0")
}

// managerBegan is when PID 1 began its work, in CLOCK_MONOTONIC. systemctl(1) shows it
// in microseconds.
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
		return 0, fmt.Errorf("systemd says %q when asked for its %s", text, name)
	}
	return time.Duration(micro) * time.Microsecond, nil
}

// monotonic reads CLOCK_MONOTONIC, by which systemd's timers go.
func monotonic() (time.Duration, error) { return clock(unix.CLOCK_MONOTONIC) }

func clock(id int32) (time.Duration, error) {
	var now unix.Timespec
	if err := unix.ClockGettime(id, &now); err != nil {
		return 0, fmt.Errorf("read clock %d: %w", id, err)
	}
	return time.Duration(now.Nano()), nil
}

// logBurst is how many lines a unit may write in journald's interval of 30 s. Of more
// than it takes by itself, 10000, journald drops the end, and does not say so when the
// unit writes nothing afterwards. An interval of 0 does not lift the limit.
const logBurst = 100_000_000

// run makes the transient unit. Type=simple, because of a command that fails at
// once systemd-run would say that it could not be started.
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
	}, extra...)
	args = append(args, "--", "/bin/sh", s.files.path(unit, "sh"))
	_, err := command{path: "systemd-run", args: args, timeout: toolTimeout}.run(context.WithoutCancel(ctx))
	return err
}

// deafTime is how long PID 1 may not answer at all.
const deafTime = 15 * time.Second

// properties shows units as blocks of NAME=value lines.
func properties(ctx context.Context, names []string, patterns ...string) ([]map[string]string, error) {
	args := []string{"show", "--no-pager", "--property=" + strings.Join(names, ","), "--"}
	show := command{path: "systemctl", args: append(args, patterns...), timeout: toolTimeout}
	var out []byte
	var failed error
	// Of what it knows nothing systemctl shows defaults; it fails only while PID 1
	// cannot be talked to, which the reexecution in the middle of a switch is over
	// soon enough.
	err := wait(ctx, deafTime, func() (bool, error) {
		out, failed = show.run(ctx)
		return failed == nil, nil
	})
	if err != nil {
		return nil, errors.Join(err, failed)
	}
	return parseProperties(out)
}

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

// journalArguments asks for the end of what a unit wrote. Not by --boot: in a container
// the agent's sandbox sees another boot id than journald, and our names are used once.
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

// notLoaded is the exit status of systemctl for a unit that does not exist (LSB).
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
