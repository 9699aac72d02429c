package sim

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"slices"
	"strings"
	"time"

	"nixfleet/nixops"
	"nixfleet/nixops/disk"
)

// Host is a simulated machine: a directory for its memory and one for the cache
// that it fetches from. It keeps time by package time, so that it lives in a
// testing/synctest bubble as well as on a wall clock, and starts no process unless
// a deadline fires without a callback. Several Hosts of one directory, in one process or
// in several, are the same machine.
type Host struct{ m *machine }

var _ nixops.Host = (*Host)(nil)

// NewSim opens or makes the simulated machine kept in dir, whose cache is
// cacheDir (see WriteClosure). A file "unreachable" in the cache cuts it off.
func New(dir, cacheDir string) (*Host, error) {
	m, err := openMachine(dir, cacheDir)
	if err != nil {
		return nil, fmt.Errorf("simulated machine: %w", err)
	}
	return &Host{m: m}, nil
}

func (m *machine) stored(closure string) string { return m.dir + "/store/" + closure + ".json" }

// read gives one value of the state.
func (s *Host) read(f func(*memory) string) (string, error) {
	var v string
	err := s.m.look(func(st *memory) error {
		v = f(st)
		return nil
	})
	return v, err
}

func (s *Host) CurrentSystem(ctx context.Context) (string, error) {
	return s.read(func(st *memory) string { return st.Current })
}

func (s *Host) BootedSystem(ctx context.Context) (string, error) {
	return s.read(func(st *memory) string { return st.Booted })
}

func (s *Host) Profile(ctx context.Context) (string, error) {
	return s.read(func(st *memory) string { return st.Profile })
}

func (s *Host) BootDefault(ctx context.Context) (string, error) {
	return s.read(func(st *memory) string { return st.BootDefault })
}

func (s *Host) HasBootEntry(ctx context.Context, closure string) (bool, error) {
	has := false
	err := s.m.look(func(st *memory) error {
		has = closure == st.BootDefault || slices.Contains(st.Entries, closure)
		return nil
	})
	return has, err
}

func (s *Host) BootID(ctx context.Context) (string, error) {
	return s.read(func(st *memory) string { return st.bootID() })
}

func (s *Host) SinceBoot(ctx context.Context) (time.Duration, error) {
	var since time.Duration
	err := s.m.look(func(st *memory) error {
		since = st.Asleep
		if !st.BootedAt.IsZero() {
			since += time.Since(st.BootedAt)
		}
		return nil
	})
	return since, err
}

func (s *Host) Realise(ctx context.Context, closure string, progress func(string)) error {
	path, err := nixops.StorePath(closure)
	if err != nil {
		return err
	}
	fail := func(err error) error { return fmt.Errorf("realise %s: %w", closure, err) }
	if err := s.AddRoot(ctx, closure, closure); err != nil {
		return err
	}
	if disk.Exists(s.m.stored(closure)) {
		return nil
	}
	if disk.Exists(s.m.cache+"/unreachable") || !s.Online() {
		return fail(nixops.ErrUnreachable)
	}
	c, err := readClosure(s.m.cache, closure)
	if errors.Is(err, fs.ErrNotExist) {
		return fail(nixops.ErrNotFound)
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
		return fail(fmt.Errorf("%s: %w", c.Signature, nixops.ErrUnsigned))
	case "other-path":
		return fail(nixops.ErrMismatch)
	default:
		return fail(fmt.Errorf("no signature %q", c.Signature))
	}
	return s.m.with(func(st *memory) error {
		if c.Size > st.StoreFree {
			return fail(nixops.ErrNoSpace)
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

func (s *Host) AddRoot(ctx context.Context, name, closure string) error {
	if _, err := nixops.StorePath(closure); err != nil {
		return err
	}
	if err := nixops.CheckRoot(name); err != nil {
		return err
	}
	return s.m.with(func(st *memory) error {
		st.Roots[name] = closure
		return nil
	})
}

func (s *Host) RemoveRoot(ctx context.Context, name string) error {
	return s.m.with(func(st *memory) error {
		delete(st.Roots, name)
		return nil
	})
}

func (s *Host) Roots(ctx context.Context) (map[string]string, error) {
	var roots map[string]string
	err := s.m.look(func(st *memory) error {
		roots = maps.Clone(st.Roots)
		return nil
	})
	return roots, err
}

// valid gives a closure of the store.
func (s *Host) valid(closure string) (Closure, error) {
	if _, err := nixops.StorePath(closure); err != nil {
		return Closure{}, err
	}
	c, err := s.m.closure(closure)
	if errors.Is(err, fs.ErrNotExist) {
		return c, fmt.Errorf("%s: %w", closure, nixops.ErrNotClosure)
	}
	return c, err
}

func (s *Host) Inspect(ctx context.Context, closure string) (nixops.Closure, error) {
	c, err := s.valid(closure)
	if err != nil {
		return nixops.Closure{}, err
	}
	is := nixops.Closure{
		Name: closure, HasSwitch: !c.NoSwitch, Specialisations: slices.Sorted(slices.Values(c.Specialisations)),
		AgentPath: c.Agent, Kernel: c.Kernel, Initrd: c.Initrd, KernelParams: c.KernelParams,
		SystemdPath: c.Systemd, DBus: c.DBus, SwitchInhibitor: c.SwitchInhibitor, Version: c.Version, SourceDate: nixops.SourceDate(c.Version),
	}
	if c.TrustJSON != "" {
		is.TrustJSON = []byte(c.TrustJSON)
	}
	if c.Agent == "self" {
		if is.AgentPath, err = os.Executable(); err != nil {
			return nixops.Closure{}, err
		}
	}
	return is, nil
}

func (s *Host) SupportsCheck(ctx context.Context, closure string) (bool, error) {
	c, err := s.valid(closure)
	return err == nil && !c.NoSwitch && !c.NoCheck, err
}

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
	err = s.m.with(func(st *memory) error {
		if st.locked() {
			return nixops.ErrLockHeld
		}
		before = st.Current
		if r.Action != nixops.ActionBoot && r.Action != nixops.ActionCheck && !r.Continues {
			st.Lists = ""
		}
		now := time.Now()
		end = now.Add(c.SwitchTime)
		st.Units[r.Unit] = ran{
			Closure: r.Closure, Action: r.Action, NoCheck: slices.Contains(r.Env, "NIXOS_NO_CHECK=1"),
			Start: now, End: end,
		}
		// The switch ends on time also when its caller is gone by then.
		key := "switch " + r.Unit
		s.m.timers[key] = time.AfterFunc(c.SwitchTime, func() {
			_ = s.m.with(func(*memory) error {
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
		case state.Phase == nixops.UnitUnknown:
			return fail(fmt.Errorf("unit %s ended without a record", r.Unit))
		case state.Phase == nixops.UnitFinished:
			return s.readExit(ctx, r, state.Exit, before)
		}
	}
}

// readExit is that of the real host. Whatever ends with 11 here has met the lock.
func (s *Host) readExit(ctx context.Context, r nixops.SwitchRequest, exit nixops.Exit, before string) (nixops.Exit, error) {
	after, err := s.CurrentSystem(ctx)
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
	err := s.m.look(func(st *memory) error {
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
	return s.m.deadlines.SwitchState(ctx, unit)
}

func (s *Host) UnitOutput(ctx context.Context, unit string) (string, error) {
	state, err := s.SwitchState(ctx, unit)
	if err != nil || state.Phase == nixops.UnitUnknown {
		return "", err
	}
	if text, err := s.m.deadlines.UnitOutput(ctx, unit); err != nil || text != "" {
		return text, err
	}
	if state.Phase == nixops.UnitRunning {
		return "activating the configuration...\n", nil
	}
	return fmt.Sprintf("activating the configuration...\n%s\n", state.Exit), nil
}

// StopUnit kills a switch: past half of its time the closure had become current.
func (s *Host) StopUnit(ctx context.Context, unit string) error {
	known := false
	err := s.m.with(func(st *memory) error {
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
		u.Done, u.End, u.Exit, u.Signal = true, now, -1, "TERM"
		st.Units[unit] = u
		return nil
	})
	if err != nil || known {
		return err
	}
	return s.m.deadlines.StopUnit(ctx, unit)
}

func (s *Host) SetProfile(ctx context.Context, closure string) error {
	if _, err := s.valid(closure); err != nil {
		return err
	}
	return s.m.with(func(st *memory) error {
		st.Profile = closure
		return nil
	})
}

func (s *Host) RestoreCurrent(ctx context.Context, closure string) error {
	c, err := s.valid(closure)
	if err != nil {
		return err
	}
	return s.m.with(func(st *memory) error {
		if st.Current != closure {
			st.activate(closure, c, time.Now())
		}
		return nil
	})
}

func (s *Host) ClearSwitchLists(ctx context.Context) error {
	return s.m.with(func(st *memory) error {
		st.Lists = ""
		return nil
	})
}

func (s *Host) LockHeld(ctx context.Context) (bool, error) {
	held := false
	err := s.m.look(func(st *memory) error {
		held = st.locked()
		return nil
	})
	return held, err
}

// failed names the units that failed, sorted.
func (s *Host) failed() ([]string, error) {
	failed := []string{}
	err := s.m.look(func(st *memory) error {
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

func (s *Host) ActiveState(ctx context.Context, unit string) (string, error) {
	if err := nixops.CheckAnyUnit(unit); err != nil {
		return "", err
	}
	failed, err := s.failed()
	if err != nil {
		return "", err
	}
	c := s.current()
	var since time.Duration
	err = s.m.look(func(st *memory) error {
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

func (s *Host) Units(ctx context.Context) ([]nixops.Unit, error) {
	failed, err := s.failed()
	if err != nil {
		return nil, err
	}
	units := map[string]nixops.Unit{}
	note := func(name string, change func(*nixops.Unit)) {
		u := units[name]
		u.Name, u.Transient = name, nixops.MadeUp(name)
		u.Declared = !u.Transient
		change(&u)
		units[name] = u
	}
	c := s.current()
	err = s.m.look(func(st *memory) error {
		since := time.Since(st.Switched)
		for _, name := range c.CrashLoop {
			note(name, func(u *nixops.Unit) { u.Restarts = uint64(since / cmp.Or(max(c.CrashEvery, 0), time.Second)) })
		}
		for _, name := range c.Inactive {
			if c.InactiveFor == 0 || since < c.InactiveFor {
				note(name, func(u *nixops.Unit) {})
			}
		}
		return nil
	})
	for _, name := range failed {
		note(name, func(u *nixops.Unit) { u.Failed = true })
	}
	return slices.SortedFunc(maps.Values(units), func(a, b nixops.Unit) int { return cmp.Compare(a.Name, b.Name) }), err
}

func (s *Host) StartAgain(ctx context.Context, ran []string) ([]string, error) { return nil, nil }

func (s *Host) ArmDeadline(ctx context.Context, d nixops.Deadline) error {
	if err := d.Check(); err != nil {
		return err
	}
	return s.m.with(func(st *memory) error {
		st.Deadlines[d.Unit] = armed{At: time.Now().Add(d.After), After: d.After, Command: d.Command}
		s.m.setTimer(d.Unit, d.After)
		return nil
	})
}

func (s *Host) DisarmDeadline(ctx context.Context, unit string) error {
	if err := nixops.CheckUnit(unit); err != nil {
		return err
	}
	return s.m.with(func(st *memory) error {
		delete(st.Deadlines, unit)
		s.m.dropTimer(unit)
		return nil
	})
}

func (s *Host) DeadlineArmed(ctx context.Context, unit string) (bool, error) {
	armed := false
	err := s.m.look(func(st *memory) error {
		_, armed = st.Deadlines[unit]
		return nil
	})
	return armed, err
}

func (s *Host) Space(ctx context.Context) (nixops.Space, error) {
	var free nixops.Space
	err := s.m.look(func(st *memory) error {
		free = nixops.Space{StoreFree: st.StoreFree, BootFree: st.BootFree}
		return nil
	})
	return free, err
}

func (s *Host) Reboot(ctx context.Context) error { return s.PowerCycle() }

func (s *Host) CollectEvidence(ctx context.Context) (nixops.Evidence, error) {
	c := s.current()
	if c.Evidence == "" && c.CollectorExit == 0 {
		return nixops.Evidence{}, nixops.ErrNoCollector
	}
	e := nixops.Evidence{ExitCode: c.CollectorExit}
	if c.Evidence != "" {
		e.Document = []byte(strings.ReplaceAll(c.Evidence, "NOW", time.Now().UTC().Format(time.RFC3339)))
	}
	return e, sleep(ctx, time.Second)
}
