package nixops

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"slices"
	"time"
)

// Sim is a simulated machine: a directory for its memory and one for the cache
// that it fetches from. It keeps time by package time, so that it lives in a
// testing/synctest bubble as well as on a wall clock, and starts no process unless
// a deadline fires without a callback. Several Sims of one directory, in one process or
// in several, are the same machine.
type Sim struct{ m *simMachine }

var _ Host = (*Sim)(nil)

// NewSim opens or makes the simulated machine kept in dir, whose cache is
// cacheDir (see WriteSimClosure). A file "unreachable" in the cache cuts it off.
func NewSim(dir, cacheDir string) (*Sim, error) {
	m, err := openSimMachine(dir, cacheDir)
	if err != nil {
		return nil, fmt.Errorf("simulated machine: %w", err)
	}
	return &Sim{m: m}, nil
}

func (m *simMachine) stored(closure string) string { return m.dir + "/store/" + closure + ".json" }

// read gives one value of the state.
func (s *Sim) read(f func(*simState) string) (string, error) {
	var v string
	err := s.m.look(func(st *simState) error {
		v = f(st)
		return nil
	})
	return v, err
}

func (s *Sim) CurrentSystem(ctx context.Context) (string, error) {
	return s.read(func(st *simState) string { return st.Current })
}

func (s *Sim) BootedSystem(ctx context.Context) (string, error) {
	return s.read(func(st *simState) string { return st.Booted })
}

func (s *Sim) Profile(ctx context.Context) (string, error) {
	return s.read(func(st *simState) string { return st.Profile })
}

func (s *Sim) BootDefault(ctx context.Context) (string, error) {
	return s.read(func(st *simState) string { return st.BootDefault })
}

func (s *Sim) HasBootEntry(ctx context.Context, closure string) (bool, error) {
	has := false
	err := s.m.look(func(st *simState) error {
		has = closure == st.BootDefault || slices.Contains(st.Entries, closure)
		return nil
	})
	return has, err
}

func (s *Sim) BootID(ctx context.Context) (string, error) {
	return s.read(func(st *simState) string { return st.bootID() })
}

func (s *Sim) SinceBoot(ctx context.Context) (time.Duration, error) {
	var since time.Duration
	err := s.m.look(func(st *simState) error {
		since = st.Asleep
		if !st.BootedAt.IsZero() {
			since += time.Since(st.BootedAt)
		}
		return nil
	})
	return since, err
}

func (s *Sim) Realise(ctx context.Context, closure string, progress func(string)) error {
	path, err := storePath(closure)
	if err != nil {
		return err
	}
	fail := func(err error) error { return fmt.Errorf("realise %s: %w", closure, err) }
	if err := s.AddRoot(ctx, closure, closure); err != nil {
		return err
	}
	if exists(s.m.stored(closure)) {
		return nil
	}
	if exists(s.m.cache+"/unreachable") || !s.Online() {
		return fail(ErrUnreachable)
	}
	c, err := readSimClosure(s.m.cache, closure)
	if errors.Is(err, fs.ErrNotExist) {
		return fail(ErrNotFound)
	}
	if err != nil {
		return fail(err)
	}
	if progress != nil {
		progress(fmt.Sprintf("copying path '%s' from 'file://%s'...", path, s.m.cache))
	}
	if err := sleep(ctx, c.FetchTime); err != nil {
		return fail(err)
	}
	switch c.Signature {
	case "":
	case "unsigned", "foreign", "corrupt":
		return fail(fmt.Errorf("%s: %w", c.Signature, ErrUnsigned))
	case "other-path":
		return fail(ErrMismatch)
	default:
		return fail(fmt.Errorf("no signature %q", c.Signature))
	}
	return s.m.with(func(st *simState) error {
		if c.Size > st.StoreFree {
			return fail(ErrNoSpace)
		}
		st.StoreFree -= c.Size
		st.Fetched[closure]++
		return writeJSON(s.m.stored(closure), c)
	})
}

// sleep waits for a time of the machine.
func sleep(ctx context.Context, d time.Duration) error {
	if d <= 0 {
		return ctx.Err()
	}
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-timer.C:
		return nil
	}
}

func (s *Sim) AddRoot(ctx context.Context, name, closure string) error {
	if _, err := storePath(closure); err != nil {
		return err
	}
	if err := checkRoot(name); err != nil {
		return err
	}
	return s.m.with(func(st *simState) error {
		st.Roots[name] = closure
		return nil
	})
}

func (s *Sim) RemoveRoot(ctx context.Context, name string) error {
	return s.m.with(func(st *simState) error {
		delete(st.Roots, name)
		return nil
	})
}

func (s *Sim) Roots(ctx context.Context) (map[string]string, error) {
	var roots map[string]string
	err := s.m.look(func(st *simState) error {
		roots = maps.Clone(st.Roots)
		return nil
	})
	return roots, err
}

// valid gives a closure of the store.
func (s *Sim) valid(closure string) (SimClosure, error) {
	if _, err := storePath(closure); err != nil {
		return SimClosure{}, err
	}
	c, err := s.m.closure(closure)
	if errors.Is(err, fs.ErrNotExist) {
		return c, fmt.Errorf("%s: %w", closure, ErrNotClosure)
	}
	return c, err
}

func (s *Sim) Inspect(ctx context.Context, closure string) (Closure, error) {
	c, err := s.valid(closure)
	if err != nil {
		return Closure{}, err
	}
	is := Closure{
		Name: closure, HasSwitch: !c.NoSwitch, Specialisations: slices.Sorted(slices.Values(c.Specialisations)),
		AgentPath: c.Agent, Kernel: c.Kernel, Initrd: c.Initrd, KernelParams: c.KernelParams,
		SystemdPath: c.Systemd, DBus: c.DBus, SwitchInhibitor: c.SwitchInhibitor, Version: c.Version, SourceDate: sourceDate(c.Version),
	}
	if c.TrustJSON != "" {
		is.TrustJSON = []byte(c.TrustJSON)
	}
	if c.Agent == "self" {
		if is.AgentPath, err = os.Executable(); err != nil {
			return Closure{}, err
		}
	}
	return is, nil
}

func (s *Sim) SupportsCheck(ctx context.Context, closure string) (bool, error) {
	c, err := s.valid(closure)
	return err == nil && !c.NoSwitch && !c.NoCheck, err
}

func (s *Sim) Switch(ctx context.Context, r SwitchRequest) (Exit, error) {
	fail := func(err error) (Exit, error) {
		return Exit{}, fmt.Errorf("%s %s: %w", r.Action, r.Closure, err)
	}
	if err := checkUnit(r.Unit); err != nil {
		return fail(err)
	}
	if _, err := switchCommand("linux", r.Closure, r.Action); err != nil {
		return fail(err)
	}
	c, err := s.valid(r.Closure)
	if err == nil && c.NoSwitch {
		err = ErrNotClosure
	}
	if err != nil {
		return fail(err)
	}
	var end time.Time
	var before string
	err = s.m.with(func(st *simState) error {
		if st.locked() {
			return ErrLockHeld
		}
		before = st.Current
		if r.changesUnits() && !r.Continues {
			st.Lists = ""
		}
		now := time.Now()
		end = now.Add(c.SwitchTime)
		st.Units[r.Unit] = simUnit{
			Closure: r.Closure, Action: r.Action, NoCheck: slices.Contains(r.Env, "NIXOS_NO_CHECK=1"),
			Start: now, End: end,
		}
		// The switch ends on time also when its caller is gone by then.
		key := "switch " + r.Unit
		s.m.timers[key] = time.AfterFunc(c.SwitchTime, func() {
			_ = s.m.with(func(*simState) error {
				delete(s.m.timers, key)
				return nil
			})
		})
		return nil
	})
	if err != nil {
		return fail(err)
	}
	for {
		if err := sleep(ctx, time.Until(end)); err != nil {
			return fail(err)
		}
		state, err := s.SwitchState(ctx, r.Unit)
		switch {
		case err != nil:
			return fail(err)
		case state.Phase == UnitUnknown:
			return fail(fmt.Errorf("unit %s ended without a record", r.Unit))
		case state.Phase == UnitFinished:
			return s.readExit(ctx, r, state.Exit, before)
		}
	}
}

// readExit is that of the real host. Whatever ends with 11 here has met the lock.
func (s *Sim) readExit(ctx context.Context, r SwitchRequest, exit Exit, before string) (Exit, error) {
	after, err := s.CurrentSystem(ctx)
	if err != nil {
		return exit, fmt.Errorf("%s %s: %w", r.Action, r.Closure, err)
	}
	if r.Action != ActionBoot || exit.Code == lockCode {
		exit = exit.After(before, after, "")
	}
	if exit.Meaning() == MeaningLocked {
		return exit, fmt.Errorf("%s %s: %w", r.Action, r.Closure, ErrLockHeld)
	}
	return exit, nil
}

// locked says whether some switch holds the lock.
func (s *simState) locked() bool {
	for _, u := range s.Units {
		if u.Closure != "" && !u.Done {
			return true
		}
	}
	return s.LockHeld
}

func (s *Sim) SwitchState(ctx context.Context, unit string) (UnitState, error) {
	state := UnitState{Phase: UnitUnknown}
	known := false
	err := s.m.look(func(st *simState) error {
		u, ok := st.Units[unit]
		known = ok
		switch {
		case ok && u.Done:
			state = UnitState{Phase: UnitFinished, Exit: Exit{Code: u.Exit, Signal: u.Signal}}
		case ok:
			state.Phase = UnitRunning
		}
		return nil
	})
	if err != nil || known {
		return state, err
	}
	return s.m.deadlines.state(ctx, unit)
}

func (s *Sim) UnitOutput(ctx context.Context, unit string) (string, error) {
	state, err := s.SwitchState(ctx, unit)
	if err != nil || state.Phase == UnitUnknown {
		return "", err
	}
	if text, err := s.m.deadlines.output(ctx, unit); err != nil || text != "" {
		return text, err
	}
	if state.Phase == UnitRunning {
		return "activating the configuration...\n", nil
	}
	return fmt.Sprintf("activating the configuration...\n%s\n", state.Exit), nil
}

// StopUnit kills a switch: past half of its time the closure had become current.
func (s *Sim) StopUnit(ctx context.Context, unit string) error {
	known := false
	err := s.m.with(func(st *simState) error {
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
		if (u.Action == ActionTest || u.Action == ActionSwitch) && now.Sub(u.Start) >= u.End.Sub(u.Start)/2 {
			st.activate(u.Closure, c, now)
			st.Lists = u.Closure
		}
		u.Done, u.End, u.Exit, u.Signal = true, now, -1, "TERM"
		st.Units[unit] = u
		return nil
	})
	if err != nil || known {
		return err
	}
	return s.m.deadlines.stop(ctx, unit)
}

func (s *Sim) SetProfile(ctx context.Context, closure string) error {
	if _, err := s.valid(closure); err != nil {
		return err
	}
	return s.m.with(func(st *simState) error {
		st.Profile = closure
		return nil
	})
}

func (s *Sim) RestoreCurrent(ctx context.Context, closure string) error {
	c, err := s.valid(closure)
	if err != nil {
		return err
	}
	return s.m.with(func(st *simState) error {
		if st.Current != closure {
			st.activate(closure, c, time.Now())
		}
		return nil
	})
}

func (s *Sim) ClearSwitchLists(ctx context.Context) error {
	return s.m.with(func(st *simState) error {
		st.Lists = ""
		return nil
	})
}

func (s *Sim) LockHeld(ctx context.Context) (bool, error) {
	held := false
	err := s.m.look(func(st *simState) error {
		held = st.locked()
		return nil
	})
	return held, err
}

// failed names the units that failed, sorted.
func (s *Sim) failed() ([]string, error) {
	failed := []string{}
	err := s.m.look(func(st *simState) error {
		failed = append(failed, st.Failed...)
		if st.Current == "" {
			return nil
		}
		c, err := s.valid(st.Current)
		if err != nil {
			return err
		}
		if len(c.LateUnits) > 0 && time.Since(st.Switched) >= c.LateAfter {
			failed = append(failed, c.LateUnits...)
		}
		return nil
	})
	slices.Sort(failed)
	return slices.Compact(failed), err
}

func (s *Sim) ActiveState(ctx context.Context, unit string) (string, error) {
	if !anyUnit.MatchString(unit) {
		return "", fmt.Errorf("unit name %q is none", unit)
	}
	failed, err := s.failed()
	if err != nil {
		return "", err
	}
	c := s.current()
	var since time.Duration
	err = s.m.look(func(st *simState) error {
		since = time.Since(st.Switched)
		return nil
	})
	switch {
	case err != nil:
		return "", err
	case slices.Contains(failed, unit):
		return "failed", nil
	case slices.Contains(c.Inactive, unit) && (c.InactiveFor == 0 || since < c.InactiveFor):
		return "inactive", nil
	case slices.Contains(c.CrashLoop, unit):
		return "activating", nil
	}
	return "active", nil
}

func (s *Sim) Units(ctx context.Context) ([]Unit, error) {
	failed, err := s.failed()
	if err != nil {
		return nil, err
	}
	units := map[string]Unit{}
	note := func(name string, change func(*Unit)) {
		u := units[name]
		u.Name, u.Transient = name, madeUp.MatchString(name)
		u.Declared = !u.Transient
		change(&u)
		units[name] = u
	}
	c := s.current()
	err = s.m.look(func(st *simState) error {
		since := time.Since(st.Switched)
		for _, name := range c.CrashLoop {
			note(name, func(u *Unit) { u.Restarts = uint64(since / cmp.Or(max(c.CrashEvery, 0), time.Second)) })
		}
		for _, name := range c.Inactive {
			if c.InactiveFor == 0 || since < c.InactiveFor {
				note(name, func(u *Unit) {})
			}
		}
		return nil
	})
	for _, name := range failed {
		note(name, func(u *Unit) { u.Failed = true })
	}
	return sortedUnits(units), err
}

func (s *Sim) StartAgain(ctx context.Context, ran []string) ([]string, error) { return nil, nil }

func (s *Sim) ArmDeadline(ctx context.Context, d Deadline) error {
	if err := checkDeadline(d); err != nil {
		return err
	}
	return s.m.with(func(st *simState) error {
		st.Deadlines[d.Unit] = simDeadline{At: time.Now().Add(d.After), After: d.After, Command: d.Command}
		s.m.setTimer(d.Unit, d.After)
		return nil
	})
}

func (s *Sim) DisarmDeadline(ctx context.Context, unit string) error {
	if err := checkUnit(unit); err != nil {
		return err
	}
	return s.m.with(func(st *simState) error {
		delete(st.Deadlines, unit)
		s.m.dropTimer(unit)
		return nil
	})
}

func (s *Sim) DeadlineArmed(ctx context.Context, unit string) (bool, error) {
	armed := false
	err := s.m.look(func(st *simState) error {
		_, armed = st.Deadlines[unit]
		return nil
	})
	return armed, err
}

func (s *Sim) Space(ctx context.Context) (Space, error) {
	var free Space
	err := s.m.look(func(st *simState) error {
		free = Space{StoreFree: st.StoreFree, BootFree: st.BootFree}
		return nil
	})
	return free, err
}

func (s *Sim) Reboot(ctx context.Context) error { return s.PowerCycle() }
