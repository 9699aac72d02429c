package nixops

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"nixfleet/nixops/disk"
)

// userGrace is how long a process of a user has to end before it is killed.
const userGrace = 10 * time.Second

// endUsersPart ends the processes of other users than root in a unit that have run longer than limit, and returns how
// many. The script then goes on, starts what it had stopped, and says that the activation of a user failed.
func endUsersPart(ctx context.Context, unit string, limit time.Duration) (int, error) {
	dirs, err := filepath.Glob("/proc/[0-9]*")
	if err != nil {
		return 0, err
	}
	now, err := sinceBoot()
	if err != nil {
		return 0, err
	}
	ended := 0
	for _, dir := range dirs {
		if ctx.Err() != nil {
			return ended, ctx.Err()
		}
		pid, err := strconv.Atoi(filepath.Base(dir))
		if err != nil {
			continue
		}
		// The descriptor first, so that the signal goes to the process that is looked at.
		fd, err := unix.PidfdOpen(pid, 0)
		if err != nil {
			continue
		}
		if age, ok := usersIn(dir, unit, now); ok && age > limit {
			signal := unix.SIGTERM
			if age > limit+userGrace {
				signal = unix.SIGKILL
			}
			if unix.PidfdSendSignal(fd, signal, nil, 0) == nil {
				ended++
			}
		}
		unix.Close(fd)
	}
	return ended, nil
}

// usersIn says whether a process is in a unit and runs as another user than root, and how long it has run.
func usersIn(dir, unit string, now time.Duration) (age time.Duration, ok bool) {
	var owner unix.Stat_t
	if err := unix.Stat(dir, &owner); err != nil || owner.Uid == 0 {
		return 0, false
	}
	groups, err := disk.Read(dir+"/cgroup", 64<<10)
	if err != nil || !inUnit(string(groups), unit) {
		return 0, false
	}
	stat, err := disk.Read(dir+"/stat", 4<<10)
	if err != nil {
		return 0, false
	}
	began, err := startOf(string(stat))
	return now - began, err == nil
}

// inUnit says whether a line of /proc/PID/cgroup (cgroups(7)) is that of the unit or below it.
func inUnit(groups, unit string) bool {
	for line := range strings.Lines(groups) {
		if strings.Contains(strings.TrimSpace(line)+"/", "/"+unit+".service/") {
			return true
		}
	}
	return false
}

// ticks is how many ticks a second has in /proc/PID/stat: USER_HZ, which is 100 on every platform of Linux that Go has.
const ticks = 100

// startOf returns the time from the boot to the start of a process, field 22 of /proc/PID/stat (proc_pid_stat(5)). The
// name in field 2 may contain anything.
func startOf(stat string) (time.Duration, error) {
	fields := strings.Fields(stat[strings.LastIndexByte(stat, ')')+1:])
	const started = 22 - 3 // the first field after the name is the third
	if len(fields) <= started {
		return 0, fmt.Errorf("%w: a process has %d fields", os.ErrInvalid, len(fields))
	}
	n, err := strconv.ParseInt(fields[started], 10, 64)
	return time.Duration(n) * time.Second / ticks, err
}
