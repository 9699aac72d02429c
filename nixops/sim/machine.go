package sim

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/go-json-experiment/json"

	"nixfleet/nixops/disk"

	"nixfleet/nixops"
)

// machine is the hardware behind all Hosts of one directory in this process. An agent may end and another may start;
// the deadline stays.
type machine struct {
	dir, cache string
	deadlines  nixops.Host // runs deadlines' commands when there is no callback

	mu         sync.Mutex
	closed     bool
	alone      atomic.Bool // no other process has the machine open
	kept       *memory     // what is on disk, if alone; nil until it was read
	keptText   []byte
	closures   sync.Map               // of the store, by name, if alone
	timers     map[string]*time.Timer // of deadlines, by unit; of switches, by "switch " and unit
	onDeadline func(nixops.Deadline)
	onSwitched func(closure string)
	onBoot     func(closure string)
}

// machines are the machines that this process has open.
var machines = struct {
	sync.Mutex
	byDir map[string]*machine
}{byDir: map[string]*machine{}}

// openMachine returns the machine of a directory. If this process has not opened it yet, openMachine also starts the
// timers of the deadlines that an earlier process armed.
func openMachine(dir, cache string) (*machine, error) {
	dir, err := filepath.Abs(dir)
	if err != nil {
		return nil, err
	}
	if err := os.MkdirAll(filepath.Join(dir, "store"), 0o755); err != nil {
		return nil, err
	}
	machines.Lock()
	defer machines.Unlock()
	if m := machines.byDir[dir]; m != nil {
		return m, nil
	}
	m := &machine{dir: dir, cache: cache, timers: map[string]*time.Timer{}}
	m.deadlines, err = nixops.NewHost(nixops.HostConfig{Supervisor: nixops.SupervisorProcess, RunDir: dir})
	if err != nil {
		return nil, err
	}
	err = m.with(func(s *memory) error {
		now := time.Now()
		for unit, d := range s.Deadlines {
			m.setTimer(unit, d.At.Sub(now))
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	machines.byDir[dir] = m
	return m, nil
}

// Close stops the machine's timers and keeps its files.
func (m *machine) Close() {
	machines.Lock()
	delete(machines.byDir, m.dir)
	machines.Unlock()
	m.mu.Lock()
	defer m.mu.Unlock()
	m.closed = true
	for unit := range m.timers {
		m.dropTimer(unit)
	}
}

// overdue is how long after the opening of the machine a deadline fires whose time has already passed. The caller that
// opens the machine needs this time to call OnDeadline.
const overdue = 50 * time.Millisecond

// setTimer starts the timer of a deadline. The caller holds m.mu.
func (m *machine) setTimer(unit string, after time.Duration) {
	m.dropTimer(unit)
	m.timers[unit] = time.AfterFunc(max(after, overdue), func() { m.fire(unit) })
}

// dropTimer stops a timer. The caller holds m.mu.
func (m *machine) dropTimer(unit string) {
	if t := m.timers[unit]; t != nil {
		t.Stop()
		delete(m.timers, unit)
	}
}

// with calls f with the state, under the lock of all processes that have the machine open, and writes what f changed.
// Afterwards it starts the callbacks for the switches that have ended meanwhile, each in a goroutine of its own.
func (m *machine) with(f func(*memory) error) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.closed {
		return fmt.Errorf("simulated machine %s: %w", m.dir, fs.ErrClosed)
	}
	if !m.alone.Load() {
		lock, err := disk.WaitLock(filepath.Join(m.dir, "lock"))
		if err != nil {
			return err
		}
		defer func() { _ = disk.Unlock(lock) }()
	}
	s, was, err := m.load()
	if err != nil {
		return fmt.Errorf("simulated machine %s: %w", m.dir, err)
	}
	activated, err := m.advance(s, time.Now())
	if err != nil {
		return err
	}
	failed := f(s)
	is, err := json.Marshal(*s, durations, json.Deterministic(true))
	if err != nil {
		return err
	}
	if !bytes.Equal(is, was) {
		if err := disk.ReplaceVolatile(filepath.Join(m.dir, "state.json"), is, 0o600); err != nil {
			m.kept = nil
			return err
		}
	}
	if m.alone.Load() {
		m.kept, m.keptText = s, is
	}
	if call := m.onSwitched; call != nil {
		for _, closure := range activated {
			go call(closure)
		}
	}
	return failed
}

// look is with for an f that changes nothing. It does not read the state again if only this process has the machine
// open and nothing has happened to the machine meanwhile.
func (m *machine) look(f func(*memory) error) error {
	m.mu.Lock()
	if m.kept == nil || m.closed || m.kept.due(time.Now()) {
		m.mu.Unlock()
		return m.with(f)
	}
	defer m.mu.Unlock()
	return f(m.kept)
}

// due says whether a switch has ended that is not in the state yet.
func (s *memory) due(now time.Time) bool {
	for _, u := range s.Units {
		if !u.Done && !u.End.After(now) {
			return true
		}
	}
	return false
}

// load returns the state and its text on disk. The caller holds m.mu and, unless only this process has the machine
// open, the lock of all processes.
func (m *machine) load() (*memory, []byte, error) {
	if m.kept != nil {
		return m.kept, m.keptText, nil
	}
	s := memory{
		StoreFree: 64 << 30, BootFree: 512 << 20, Boot: bootMemory{Boots: 1},
		Roots: map[string]string{}, Units: map[string]ran{},
		Deadlines: map[string]armed{}, Notes: map[string][]byte{}, Fetched: map[string]int{},
	}
	text, err := disk.Read(filepath.Join(m.dir, "state.json"), maxSimFile)
	if err == nil {
		err = json.Unmarshal(text, &s, durations)
	}
	if errors.Is(err, fs.ErrNotExist) {
		err = nil
	}
	return &s, text, err
}

// closure reads a closure of the machine's store. Closures in the store never change.
func (m *machine) closure(name string) (Closure, error) {
	if c, ok := m.closures.Load(name); ok {
		return c.(Closure), nil
	}
	c, err := readClosure(m.dir+"/store", name)
	if err == nil && m.alone.Load() {
		m.closures.Store(name, c)
	}
	return c, err
}

// advance changes the state by what has happened until now, and returns the closures that were activated.
func (m *machine) advance(s *memory, now time.Time) ([]string, error) {
	var activated []string
	for _, name := range slices.Sorted(maps.Keys(s.Units)) {
		u := s.Units[name]
		if u.Done || u.End.After(now) {
			continue
		}
		c, err := m.closure(u.Closure)
		if err != nil {
			return nil, fmt.Errorf("unit %s: %w", name, err)
		}
		u.Done = true
		var active bool
		u.Exit, active = s.run(u, c)
		if active {
			activated = append(activated, u.Closure)
		}
		s.Units[name] = u
	}
	return activated, nil
}

// run changes the state as a switch script does that gets to its end, and says whether the script activated its
// closure. The order is that of switch-to-configuration-ng: checks first, then the init interface, then activation,
// then units.
func (s *memory) run(u ran, c Closure) (exit int, activated bool) {
	if u.Action == nixops.ActionCheck || u.Action == nixops.ActionDryActivate {
		return c.Script.CheckExit, false
	}
	if c.Script.CheckExit != 0 && !u.NoCheck {
		return 1, false
	}
	if u.Action == nixops.ActionBoot || u.Action == nixops.ActionSwitch {
		if c.Script.BootExit == 0 && !c.Script.BootSkips || c.Script.BootLate {
			s.Boot.BootDefault = u.Closure
			s.Boot.Entries = slices.Compact(slices.Sorted(slices.Values([]string{u.Closure, s.Profile, s.Boot.Staged})))
		}
		if c.Script.BootExit != 0 || c.Script.BootSkips {
			return c.Script.BootExit, false
		}
	}
	switch {
	case u.Action == nixops.ActionBoot:
		return 0, false
	case c.Script.ExitCode == 1 || c.Script.ExitCode == 11 || c.Script.ExitCode == 100:
		return c.Script.ExitCode, false
	}
	s.activate(u.Closure, c, u.End)
	if slices.Contains(s.Damaged, u.Closure) {
		return 1, true // in its middle
	}
	if c.Script.ExitCode == 101 {
		s.Lists = u.Closure
	}
	if c.Script.ExitCode == 0 && len(c.After.FailedUnits) > 0 {
		return 4, true
	}
	return c.Script.ExitCode, true
}

func (s *memory) activate(closure string, c Closure, at time.Time) {
	s.Current, s.Switched = closure, at
	s.Failed = slices.Sorted(slices.Values(c.After.FailedUnits))
	if s.Lists != "" && s.Lists != closure {
		// The lists of a killed switch start the bad generation's units.
		s.Failed = append(s.Failed, "left-by-killed-switch.service")
	}
}

// fire runs a deadline. If several processes have the machine open, only the first one runs it.
func (m *machine) fire(unit string) {
	var d armed
	armed := false
	err := m.with(func(s *memory) error {
		delete(m.timers, unit)
		if d, armed = s.Deadlines[unit]; !armed {
			return nil
		}
		if early := time.Until(d.At); early > time.Millisecond {
			// The deadline was armed again in the meantime.
			armed = false
			m.setTimer(unit, early)
			return nil
		}
		delete(s.Deadlines, unit)
		if m.onDeadline != nil {
			s.Units[unit] = ran{Start: time.Now(), End: time.Now().Add(365 * 24 * time.Hour)}
		}
		return nil
	})
	if err != nil || !armed {
		return
	}
	m.mu.Lock()
	call := m.onDeadline
	m.mu.Unlock()
	if call == nil {
		// The command runs in a process of its own, so that a real agent's undo does not run in the agent. If it
		// fails, SwitchState and UnitOutput show that.
		now := nixops.Deadline{Unit: unit, After: time.Millisecond, Command: d.Command}
		_ = m.deadlines.ArmDeadline(context.Background(), now)
		return
	}
	call(nixops.Deadline{Unit: unit, After: d.After, Command: d.Command})
	// A machine that was closed in the meantime needs no record, so the error does not matter.
	_ = m.with(func(s *memory) error {
		if u, ok := s.Units[unit]; ok {
			u.Done, u.End = true, time.Now()
			s.Units[unit] = u
		}
		return nil
	})
}

// bootID returns an id that changes with every boot.
func (s *memory) bootID() string {
	return fmt.Sprintf("00000000-0000-4000-8000-%012d", s.Boot.Boots)
}

func (m *machine) stored(closure string) string { return m.dir + "/store/" + closure + ".json" }

// read returns one value of the state.
func (m *machine) read(f func(*memory) string) (string, error) {
	var v string
	err := m.look(func(st *memory) error {
		v = f(st)
		return nil
	})
	return v, err
}

// valid returns a closure of the store, or ErrNotClosure if the store does not have it.
func (m *machine) valid(closure string) (Closure, error) {
	if _, err := nixops.StorePath(closure); err != nil {
		return Closure{}, err
	}
	c, err := m.closure(closure)
	if errors.Is(err, fs.ErrNotExist) {
		return c, fmt.Errorf("%s: %w", closure, nixops.ErrNotClosure)
	}
	return c, err
}
