package nixops

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/rs/zerolog"
)

func (m *machine) Switch(ctx context.Context, r SwitchRequest) (Exit, error) {
	fail := func(err error) (Exit, error) {
		return Exit{}, fmt.Errorf("%s %s: %w", r.Action, r.Closure, err)
	}
	if err := CheckUnit(r.Unit); err != nil {
		return fail(err)
	}
	command, err := scriptOf(m.root, m.platform, r.Closure, r.Action)
	if err != nil {
		return fail(err)
	}
	held, err := m.LockHeld(ctx)
	if err != nil {
		return fail(err)
	}
	if held {
		return fail(ErrLockHeld)
	}
	if r.changesUnits() {
		lists := append(slices.Clone(activationLists), killedLists...)
		if r.Continues {
			lists = activationLists
		}
		if err := clearLists(m.root, lists); err != nil {
			return fail(err)
		}
	}
	before, err := m.CurrentSystem(ctx)
	if err != nil {
		return fail(err)
	}
	current := func() (string, error) { return m.CurrentSystem(ctx) }
	words := func(exit Exit) string { return lastWords(ctx, m.UnitOutput, m.log, r.Unit, exit) }
	env := slices.Clone(r.Env)
	if m.root != "" {
		env = append(env, "NIXFLEET_ROOT="+m.root)
	}
	if err := m.super.start(ctx, r.Unit, command, env); err != nil {
		if !r.Here || errors.Is(err, ErrUnitExists) || ctx.Err() != nil {
			return fail(err)
		}
		m.log.Error().Err(err).Str("closure", r.Closure).Msg("no unit could be made; the script runs in this process's unit")
		exit, err := runHere(ctx, command, env)
		if err == nil {
			exit, err = readExit(r, exit, before, current, words)
		}
		if err != nil {
			return fail(err)
		}
		return exit, nil
	}
	m.log.Info().Str("closure", r.Closure).Str("action", string(r.Action)).Str("unit", r.Unit).Msg("switch started")
	state, err := ended(ctx, func() (UnitState, error) { return m.SwitchState(ctx, r.Unit) })
	if err != nil {
		return fail(err)
	}
	if state.Phase == UnitUnknown {
		return fail(fmt.Errorf("unit %s ended without a record", r.Unit))
	}
	exit, err := readExit(r, state.Exit, before, current, words)
	if err == nil && exit.Meaning() == MeaningLocked {
		err = ErrLockHeld
	}
	if err != nil {
		return exit, fmt.Errorf("%s %s: %w", r.Action, r.Closure, err)
	}
	return exit, nil
}

// ended asks for the state of a unit until it has ended.
func ended(ctx context.Context, ask func() (UnitState, error)) (UnitState, error) {
	var state UnitState
	deaf := 0 // failed questions in a row
	err := wait(ctx, 0, func() (bool, error) {
		var err error
		state, err = ask()
		if err != nil && ctx.Err() == nil {
			// The switch that the supervisor runs may replace the supervisor.
			if deaf++; deaf < maxDeaf {
				return false, nil
			}
			return false, err
		}
		deaf = 0
		return state.Phase != UnitRunning, err
	})
	return state, err
}

// runHere runs a script as a child of this process. The words of the script are lost.
func runHere(ctx context.Context, script, env []string) (Exit, error) {
	_, err := command{path: script[0], args: script[1:], env: env}.run(ctx)
	failed, ok := errors.AsType[*commandError](err)
	switch {
	case err == nil:
		return Exit{}, nil
	case ok && ctx.Err() == nil && failed.exitCode() >= 0:
		return Exit{Code: failed.exitCode()}, nil
	case ok && ctx.Err() == nil && errors.As(failed.err, new(*exec.ExitError)):
		return Exit{Code: -1, Signal: "KILL"}, nil
	}
	return Exit{}, err
}

// wordsTime is how long lastWords waits for the output of a unit that has ended.
const wordsTime = 3 * time.Second

// readExit adds to an exit what the run changed. It leaves an exit of `boot` as it is, because `boot` does not change
// the running system, unless the code is that of a held lock.
func readExit(r SwitchRequest, exit Exit, before string, current func() (string, error),
	words func(Exit) string) (Exit, error) {
	if r.Action == ActionBoot && exit.Code != LockCode {
		return exit, nil
	}
	after, err := current()
	if err != nil {
		return exit, err
	}
	return exit.After(before, after, words(exit)), nil
}

// LockCode is EAGAIN. The script exits with it when the lock is held, but also for other reasons.
const LockCode = 11

// lastWords returns the output of a script whose exit code may mean that the lock is held, else "". The journal may
// have the output only a little after the unit has ended.
func lastWords(ctx context.Context, output func(context.Context, string) (string, error), log zerolog.Logger,
	unit string, exit Exit) string {
	if exit.Code != LockCode {
		return ""
	}
	words := ""
	err := wait(ctx, wordsTime, func() (bool, error) {
		var err error
		words, err = output(ctx, unit)
		return strings.Contains(words, lockWords), err
	})
	if err != nil && !errors.Is(err, errWaited) {
		log.Warn().Err(err).Str("unit", unit).Msg("could not read the output of the unit")
	}
	return words
}

// changesUnits says whether the action reads and writes the lists of units.
func (r SwitchRequest) changesUnits() bool { return r.Action == ActionTest || r.Action == ActionSwitch }

// The lists that a run leaves in /run/nixos for the next run.
var (
	// killedLists name the units that a killed run had stopped and had not started again.
	killedLists = []string{"start-list", "restart-list", "reload-list"}
	// activationLists are the lists that activation scripts write. If a list names a unit that is active and has
	// no file, every later run fails halfway.
	activationLists = []string{
		"activation-restart-list", "activation-reload-list", "dry-activation-restart-list", "dry-activation-reload-list",
	}
)

func (m *machine) ClearSwitchLists(ctx context.Context) error {
	return clearLists(m.root, append(slices.Clone(activationLists), killedLists...))
}

func clearLists(root string, lists []string) error {
	for _, list := range lists {
		err := os.Remove(root + "/run/nixos/" + list)
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("clear switch lists: %w", err)
		}
	}
	return nil
}

// maxDeaf is how many times in a row the supervisor may fail to answer during a switch. Switch asks twice a second.
const maxDeaf = 60

func (m *machine) SwitchState(ctx context.Context, unit string) (UnitState, error) {
	if err := CheckUnit(unit); err != nil {
		return UnitState{}, err
	}
	state, err := m.super.state(ctx, unit)
	if err == nil && state.Phase == UnitRunning {
		m.users.look(ctx, unit, m.log)
	}
	return state, err
}

// userWatch keeps the part of users in a switch bounded. SwitchState looks, because whoever waits for a switch calls it
// again and again, also when the agent that began the switch has been replaced.
type userWatch struct {
	mu   sync.Mutex
	next time.Time
}

// userPause is the time between two looks at the processes of a unit.
const userPause = 5 * time.Second

func (w *userWatch) look(ctx context.Context, unit string, log zerolog.Logger) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if now := time.Now(); now.Before(w.next) {
		return
	}
	w.next = time.Now().Add(userPause)
	ended, err := endUsersPart(ctx, unit, userTime)
	if err != nil {
		log.Warn().Err(err).Str("unit", unit).Msg("processes of users not looked at")
	}
	if ended > 0 {
		log.Warn().Str("unit", unit).Int("processes", ended).Dur("after",
			userTime).Msg("the part of a user in the switch was ended, which took too long")
	}
}

// userTime is how long one process of a user may take in the unit of a switch. switch-to-configuration runs a part for
// each user who is logged in or lingers, and waits for it without a limit of its own, after it has stopped the units of
// the system. Without this limit any user could keep a host from being updated and from being brought back.
const userTime = time.Minute

func (m *machine) UnitOutput(ctx context.Context, unit string) (string, error) {
	if err := CheckUnit(unit); err != nil {
		return "", err
	}
	text, err := m.super.output(ctx, unit)
	return legible(text), err
}

func (m *machine) StopUnit(ctx context.Context, unit string) error {
	if err := CheckUnit(unit); err != nil {
		return err
	}
	return m.super.stop(ctx, unit)
}
