package nixops

import (
	"context"
	"errors"
	"slices"
	"strconv"
	"strings"
	"time"
)

// unitProperties are the properties of each unit that units asks systemctl(1) for.
var unitProperties = []string{
	"Id", "LoadState", "ActiveState", "SubState", "Result", "NRestarts", "FragmentPath", "SourcePath", "Restart",
	"TriggeredBy",
	"InactiveExitTimestampMonotonic",
}

func (s *systemd) units(ctx context.Context) ([]Unit, error) {
	blocks, err := properties(ctx, unitProperties, "*")
	if err != nil {
		return nil, err
	}
	now, err := monotonic()
	if err != nil {
		return nil, err
	}
	units := unitsOf(blocks, now)
	for i, u := range units {
		if u.Active && u.Restarts > 0 && !u.EndsWell && restartsAlways(blocks, u.Name) {
			units[i].EndsWell = s.endedWell(ctx, u.Name)
		}
	}
	return units, nil
}

// unitsOf makes units of their properties. A unit that waits for its automatic restart does not show as failed, but
// the result of its last run shows that it failed. now is the time in CLOCK_MONOTONIC.
func unitsOf(blocks []map[string]string, now time.Duration) []Unit {
	units := make([]Unit, 0, len(blocks))
	for _, b := range blocks {
		name := b["Id"]
		if name == "" {
			continue
		}
		waiting := strings.HasPrefix(b["SubState"], "auto-restart")
		u := Unit{
			Name: name, Active: b["ActiveState"] == "active" || b["ActiveState"] == "reloading",
			Failed:   b["ActiveState"] == "failed" || waiting && b["Result"] != "success",
			EndsWell: waiting && b["Result"] == "success", Triggered: b["TriggeredBy"] != "",
		}
		u.Restarts, _ = strconv.ParseUint(b["NRestarts"], 10, 64)
		if micro, err := strconv.ParseInt(b["InactiveExitTimestampMonotonic"], 10, 64); err == nil && micro > 0 {
			u.Age = now - time.Duration(micro)*time.Microsecond
		}
		u.Declared, u.Transient = origin(name, b["FragmentPath"], b["SourcePath"])
		units = append(units, u)
	}
	return units
}

// restartsAlways says whether systemd also restarts a unit after a success.
func restartsAlways(blocks []map[string]string, name string) bool {
	for _, b := range blocks {
		if b["Id"] == name {
			return b["Restart"] == "always" || b["Restart"] == "on-success"
		}
	}
	return false
}

// The ids of the messages that systemd writes to the journal when the run of a unit ends (sd-messages.h).
const (
	messageSuccess = "7ad2d189f7e94e70a38c781354912448"
	messageFailure = "d9b373ed55a64feb8242e02dbe79a49c"
)

// endedWell asks the journal whether the previous run of a unit that runs again was a success; systemd itself no longer
// knows. If the journal does not know either, the answer is no.
func (s *systemd) endedWell(ctx context.Context, unit string) bool {
	out, err := command{path: "journalctl", timeout: toolTimeout, args: []string{
		"--quiet", "--no-pager", "--output=cat", "--output-fields=MESSAGE_ID", "--lines=1",
		"_PID=1", "UNIT=" + unit, "MESSAGE_ID=" + messageSuccess, "MESSAGE_ID=" + messageFailure,
	}}.run(ctx)
	return err == nil && strings.TrimSpace(string(out)) == messageSuccess
}

// startTime is how long startAgain waits for the units to run.
const startTime = 30 * time.Second

func (s *systemd) startAgain(ctx context.Context, ran []string) ([]string, error) {
	down, err := s.down(ctx, ran)
	if err != nil || len(down) == 0 {
		return nil, err
	}
	args := append([]string{"start", "--no-block", "--no-ask-password", "--"}, down...)
	if _, err := (command{path: "systemctl", args: args, timeout: toolTimeout}).run(ctx); err != nil {
		return down, err
	}
	err = wait(ctx, startTime, func() (bool, error) {
		var err error
		down, err = s.down(ctx, down)
		return len(down) == 0, err
	})
	if errors.Is(err, errWaited) {
		err = nil
	}
	return down, err
}

// down returns the units that do not run although the running closure declares them and nothing else starts them. It
// asks for each unit by name, because systemd unloads a unit that was stopped.
func (s *systemd) down(ctx context.Context, names []string) ([]string, error) {
	var down []string
	for part := range slices.Chunk(names, 100) {
		blocks, err := properties(ctx, unitProperties, part...)
		if err != nil {
			return nil, err
		}
		for _, u := range unitsOf(blocks, 0) {
			if u.Declared && !u.Active && !u.Triggered && slices.Contains(names, u.Name) {
				down = append(down, u.Name)
			}
		}
	}
	return down, nil
}
