package nixops

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"slices"
	"strings"
	"time"
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
	env := slices.Clone(r.Env)
	if m.root != "" {
		env = append(env, "NIXFLEET_ROOT="+m.root)
	}
	if err := m.super.start(ctx, r.Unit, command, env); err != nil {
		return fail(err)
	}
	m.log.Info().Str("closure", r.Closure).Str("action", string(r.Action)).Str("unit", r.Unit).Msg("switch started")
	var state UnitState
	deaf := 0
	err = wait(ctx, 0, func() (bool, error) {
		var err error
		state, err = m.super.state(ctx, r.Unit)
		if err != nil && ctx.Err() == nil {
			// The supervisor may be replaced by the very switch it runs.
			if deaf++; deaf < maxDeaf {
				return false, nil
			}
			return false, err
		}
		deaf = 0
		return state.Phase != UnitRunning, err
	})
	if err != nil {
		return fail(err)
	}
	if state.Phase == UnitUnknown {
		return fail(fmt.Errorf("unit %s ended without a record", r.Unit))
	}
	exit, err := m.readExit(ctx, r, state.Exit, before)
	if err == nil && exit.Meaning() == MeaningLocked {
		err = ErrLockHeld
	}
	if err != nil {
		return exit, fmt.Errorf("%s %s: %w", r.Action, r.Closure, err)
	}
	return exit, nil
}

// wordsTime is how long the words of a unit that has ended may take to be there.
const wordsTime = 3 * time.Second

// readExit reads an exit by what the run changed. `boot` changes no running system; of
// its codes only that of the lock is an error number.
func (m *machine) readExit(ctx context.Context, r SwitchRequest, exit Exit, before string) (Exit, error) {
	if r.Action == ActionBoot && exit.Code != LockCode {
		return exit, nil
	}
	after, err := m.CurrentSystem(ctx)
	if err != nil {
		return exit, err
	}
	return exit.After(before, after, m.lastWords(ctx, r.Unit, exit)), nil
}

// LockCode is EAGAIN, with which the script ends when the lock is held, and not only then.
const LockCode = 11

// lastWords are what a script said that may have met a held lock. The journal has them a
// little later than the end of the unit.
func (m *machine) lastWords(ctx context.Context, unit string, exit Exit) string {
	if exit.Code != LockCode {
		return ""
	}
	words := ""
	err := wait(ctx, wordsTime, func() (bool, error) {
		var err error
		words, err = m.UnitOutput(ctx, unit)
		return strings.Contains(words, lockWords), err
	})
	if err != nil && !errors.Is(err, errWaited) {
		m.log.Warn().Err(err).Str("unit", unit).Msg("output of the unit not read")
	}
	return words
}

// changesUnits says whether the action reads and writes the lists of units.
func (r SwitchRequest) changesUnits() bool { return r.Action == ActionTest || r.Action == ActionSwitch }

// What a run leaves in /run/nixos for the next one.
var (
	// killedLists name what a run that was killed had stopped and not started again.
	killedLists = []string{"start-list", "restart-list", "reload-list"}
	// activationLists are written by activation scripts. One name of a unit that is active
	// and has no file ends each later run in its middle.
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

// maxDeaf is how many times in a row a supervisor may fail to answer during a
// switch, half a second apart.
const maxDeaf = 60

func (m *machine) SwitchState(ctx context.Context, unit string) (UnitState, error) {
	if err := CheckUnit(unit); err != nil {
		return UnitState{}, err
	}
	return m.super.state(ctx, unit)
}

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
