package sim

import (
	"context"
	"fmt"
	"slices"
	"time"

	"nixfleet/nixops"
)

func (s *Host) Switch(ctx context.Context, r nixops.SwitchRequest) (nixops.Exit, error) {
	fail := func(err error) (nixops.Exit, error) {
		return nixops.Exit{}, fmt.Errorf("%s %s: %w", r.Action, r.Closure, err)
	}
	if err := nixops.CheckUnit(r.Unit); err != nil {
		return fail(err)
	}
	if err := r.Action.Check(); err != nil {
		return fail(err)
	}
	c, err := s.valid(r.Closure)
	if err == nil && c.NoSwitch {
		err = nixops.ErrNotClosure
	}
	if err != nil {
		return fail(err)
	}
	var end time.Time
	var before string
	err = s.with(func(st *memory) error {
		if st.locked() {
			return nixops.ErrLockHeld
		}
		before = st.Current
		if (r.Action == nixops.ActionTest || r.Action == nixops.ActionSwitch) && !r.Continues {
			st.Lists = ""
		}
		now := time.Now()
		end = now.Add(c.Script.SwitchTime)
		st.Units[r.Unit] = ran{
			Closure: r.Closure, Action: r.Action, NoCheck: slices.Contains(r.Env, "NIXOS_NO_CHECK=1"),
			Start: now, End: end,
		}
		// The switch ends on time even if its caller no longer runs then.
		key := "switch " + r.Unit
		s.timers[key] = time.AfterFunc(c.Script.SwitchTime, func() {
			_ = s.with(func(*memory) error {
				delete(s.timers, key)
				return nil
			})
		})
		return nil
	})
	if err != nil {
		return fail(err)
	}
	for {
		if err := nixops.Sleep(ctx, time.Until(end)); err != nil {
			return fail(err)
		}
		state, err := s.SwitchState(ctx, r.Unit)
		switch {
		case err != nil:
			return fail(err)
		case state.Phase == nixops.UnitUnknown:
			return fail(fmt.Errorf("unit %s ended without a record", r.Unit))
		case state.Phase == nixops.UnitFinished:
			return s.readExit(r, state.Exit, before)
		}
	}
}

// readExit does what the real host's readExit does. In the simulation, an exit with 11 always means a held lock.
func (m *machine) readExit(r nixops.SwitchRequest, exit nixops.Exit, before string) (nixops.Exit, error) {
	after, err := m.read(func(st *memory) string { return st.Current })
	if err != nil {
		return exit, fmt.Errorf("%s %s: %w", r.Action, r.Closure, err)
	}
	if r.Action != nixops.ActionBoot || exit.Code == nixops.LockCode {
		exit = exit.After(before, after, "")
	}
	if exit.Meaning() == nixops.MeaningLocked {
		return exit, fmt.Errorf("%s %s: %w", r.Action, r.Closure, nixops.ErrLockHeld)
	}
	return exit, nil
}

// locked says whether some switch holds the lock.
func (s *memory) locked() bool {
	for _, u := range s.Units {
		if u.Closure != "" && !u.Done {
			return true
		}
	}
	return s.LockHeld
}

func (s *Host) SwitchState(ctx context.Context, unit string) (nixops.UnitState, error) {
	state := nixops.UnitState{Phase: nixops.UnitUnknown}
	known := false
	err := s.look(func(st *memory) error {
		u, ok := st.Units[unit]
		known = ok
		switch {
		case ok && u.Done:
			state = nixops.UnitState{Phase: nixops.UnitFinished, Exit: nixops.Exit{Code: u.Exit, Signal: u.Signal}}
		case ok:
			state.Phase = nixops.UnitRunning
		}
		return nil
	})
	if err != nil || known {
		return state, err
	}
	return s.deadlines.SwitchState(ctx, unit)
}

func (s *Host) UnitOutput(ctx context.Context, unit string) (string, error) {
	state, err := s.SwitchState(ctx, unit)
	if err != nil || state.Phase == nixops.UnitUnknown {
		return "", err
	}
	if text, err := s.deadlines.UnitOutput(ctx, unit); err != nil || text != "" {
		return text, err
	}
	if state.Phase == nixops.UnitRunning {
		return "activating the configuration...\n", nil
	}
	closure, err := s.read(func(st *memory) string { return st.Units[unit].Closure })
	if err != nil {
		return "", err
	}
	c, err := s.closure(closure)
	if err != nil {
		return "", err
	}
	return fmt.Sprintf("activating the configuration...\n%s%s\n", c.Script.Says, state.Exit), nil
}

// StopUnit kills a switch. If half of the switch's time has passed, its closure is already the running one.
func (s *Host) StopUnit(ctx context.Context, unit string) error {
	known := false
	err := s.with(func(st *memory) error {
		u, ok := st.Units[unit]
		known = ok
		if !ok || u.Done || u.Closure == "" {
			return nil
		}
		now := time.Now()
		c, err := s.valid(u.Closure)
		if err != nil {
			return err
		}
		if (u.Action == nixops.ActionTest || u.Action == nixops.ActionSwitch) && now.Sub(u.Start) >= u.End.Sub(u.Start)/2 {
			st.activate(u.Closure, c, now)
			st.Lists = u.Closure
		}
		u.Done = true
		u.End = now
		u.Exit = -1
		u.Signal = "TERM"
		st.Units[unit] = u
		return nil
	})
	if err != nil || known {
		return err
	}
	return s.deadlines.StopUnit(ctx, unit)
}
