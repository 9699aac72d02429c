package sim

import (
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"time"

	"nixfleet/nixops"
)

// This file has what tests, people and accidents do to a simulated machine from outside.

// Alone promises that no other process opens this machine until Close. The machine then reads its memory from disk
// only once, and afterwards only writes it.
func (m *machine) Alone() {
	m.alone.Store(true)
}

// OnDeadline makes a deadline call f instead of executing its command. f runs in a goroutine of its own, and the
// deadline's unit runs as long as f does.
func (m *machine) OnDeadline(f func(nixops.Deadline)) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.onDeadline = f
}

// OnSwitched makes the machine call f after each activation, just as a real switch restarts the agent's unit. f runs in
// a goroutine of its own.
func (m *machine) OnSwitched(f func(closure string)) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.onSwitched = f
}

// OnBoot makes the machine call f after each PowerCycle or Reboot, in a goroutine of its own.
func (m *machine) OnBoot(f func(closure string)) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.onBoot = f
}

// Install makes the closure the only system of the machine, as an installer does.
func (m *machine) Install(closure string) error {
	c, err := readClosure(m.cache, closure)
	if err != nil {
		return fmt.Errorf("install %s: %w", closure, err)
	}
	if err := writeJSON(m.stored(closure), c); err != nil {
		return err
	}
	return m.with(func(st *memory) error {
		st.Current = closure
		st.Profile = closure
		st.Boot.Booted = closure
		st.Boot.BootDefault = closure
		st.Boot.Entries = []string{closure}
		st.Boot.Staged = ""
		st.Boot.BootOnce = ""
		st.Failed = slices.Sorted(slices.Values(c.After.FailedUnits))
		st.Switched = time.Now()
		st.Boot.BootedAt = time.Now()
		return nil
	})
}

// Online says whether the running closure lets the machine reach the network.
func (m *machine) Online() bool { return !m.current().After.CutsNetwork }

// AgentStarts says whether the running closure's agent can run.
func (m *machine) AgentStarts() bool { return !m.current().After.AgentBroken }

// current returns how the running closure behaves, or the zero Closure if none runs.
func (m *machine) current() Closure {
	name, err := m.read(func(st *memory) string { return st.Current })
	if err != nil || name == "" {
		return Closure{}
	}
	c, err := m.closure(name)
	if err != nil {
		return Closure{}
	}
	return c
}

// PowerCycle cuts the power and boots the closure that the boot loader chooses. Everything that ran is gone, and so is
// a switch that did not change the boot default. If the closure hangs, the machine boots once more, as if a person or
// a watchdog had reset it.
func (m *machine) PowerCycle() error {
	var call func(string)
	var booted string
	err := m.with(func(st *memory) error {
		next := st.Boot.BootDefault
		if st.Boot.BootOnce != "" {
			next, st.Boot.BootOnce = st.Boot.BootOnce, ""
		}
		c, err := m.closure(next)
		if err == nil && c.NoBoot && next != st.Boot.BootDefault {
			st.Boot.Boots++
			next = st.Boot.BootDefault
			c, err = m.closure(next)
		}
		if err == nil && c.NoBoot {
			err = fmt.Errorf("the closure hangs")
		}
		if err != nil {
			return fmt.Errorf("boot %q: %w", next, err)
		}
		st.Boot.Boots++
		st.Boot.BootedAt, st.Boot.Asleep = time.Now(), 0
		st.Current, st.Boot.Booted = next, next
		st.Switched = time.Now()
		st.Failed = slices.Sorted(slices.Values(c.After.FailedUnits))
		st.Units = map[string]ran{}
		st.LockHeld = false
		st.Lists = ""
		for unit := range st.Deadlines {
			m.dropTimer(unit)
		}
		st.Deadlines, st.Notes = map[string]armed{}, map[string][]byte{}
		call, booted = m.onBoot, st.Boot.Booted
		return nil
	})
	if err == nil && call != nil {
		go call(booted)
	}
	return err
}

// Suspend makes the machine sleep for a time that its processes and its deadlines do not notice. Only SinceBoot counts
// that time.
func (m *machine) Suspend(d time.Duration) error {
	return m.with(func(st *memory) error {
		st.Boot.Asleep += d
		return nil
	})
}

// HoldLock takes or releases the switch lock, as a switch by hand does.
func (m *machine) HoldLock(held bool) error {
	return m.with(func(st *memory) error {
		st.LockHeld = held
		return nil
	})
}

// HideLoader makes the host unable to read what its boot loader does, and says why; "" ends that. The loader goes on as
// before.
func (m *machine) HideLoader(why string) error {
	return m.with(func(st *memory) error {
		st.Boot.Unknown = why
		return nil
	})
}

// SetThisBoot says how far this boot and the next ones have come.
func (m *machine) SetThisBoot(boot nixops.ThisBoot) error {
	return m.with(func(st *memory) error {
		st.Boot.This = &boot
		return nil
	})
}

// FallBack makes the boot loader run out of tries for a closure and boot another one in its place, as a boot counter
// does. The profile stays.
func (m *machine) FallBack(from, to string) error {
	if err := m.with(func(st *memory) error {
		st.Boot.UsedUp = append(st.Boot.UsedUp, from)
		st.Boot.BootDefault = to
		return nil
	}); err != nil {
		return err
	}
	return m.PowerCycle()
}

// SetBootDefault makes the boot loader start a closure by itself, as `bootctl set-default` by hand does.
func (m *machine) SetBootDefault(closure string) error {
	return m.with(func(st *memory) error {
		st.Boot.BootDefault = closure
		return nil
	})
}

// SetLoader changes the boot loader. "" means systemd-boot; any other boot loader cannot boot once.
func (m *machine) SetLoader(name string) error {
	return m.with(func(st *memory) error {
		st.Boot.Loader = name
		return nil
	})
}

// SetSpace sets the free space, in bytes.
func (m *machine) SetSpace(free nixops.Space) error {
	return m.with(func(st *memory) error {
		st.StoreFree, st.BootFree, st.Boot.ReadOnly = free.StoreFree, free.BootFree, free.BootReadOnly
		return nil
	})
}

// SwitchByHand switches as an operator's nixos-rebuild does: at once and without the agent.
func (m *machine) SwitchByHand(closure string) error {
	c, err := readClosure(m.cache, closure)
	if err != nil {
		return err
	}
	if err := writeJSON(m.stored(closure), c); err != nil {
		return err
	}
	return m.with(func(st *memory) error {
		st.Profile = closure
		st.Boot.BootDefault = closure
		st.Boot.Entries = []string{closure}
		st.activate(closure, c, time.Now())
		return nil
	})
}

// CollectGarbage removes the closures that no root, profile or running system needs, and returns their names.
func (m *machine) CollectGarbage() ([]string, error) {
	var gone []string
	err := m.with(func(st *memory) error {
		live := slices.Collect(maps.Values(st.Roots))
		live = append(live, st.Current, st.Boot.Booted, st.Profile, st.Boot.BootDefault, st.Boot.Staged)
		entries, err := os.ReadDir(m.dir + "/store")
		if err != nil {
			return err
		}
		for _, e := range entries {
			name, ok := cutJSON(e.Name())
			if !ok || slices.Contains(live, name) {
				continue
			}
			m.closures.Delete(name)
			if err := os.Remove(m.stored(name)); err != nil {
				return err
			}
			gone = append(gone, name)
		}
		return nil
	})
	return gone, err
}

// Fetches returns how many times the machine fetched a closure from the cache.
func (m *machine) Fetches(closure string) (int, error) {
	n := 0
	err := m.look(func(st *memory) error {
		n = st.Fetched[closure]
		return nil
	})
	return n, err
}

func cutJSON(name string) (string, bool) {
	ext := filepath.Ext(name)
	return name[:len(name)-len(ext)], ext == ".json"
}

// Damage spoils the contents of a closure in the store, as a power cut after its download may. Its script then cannot
// run to its end, until Realise has looked at the contents.
func (m *machine) Damage(closure string) error {
	return m.with(func(st *memory) error {
		st.Damaged = append(st.Damaged, closure)
		return nil
	})
}

func (m *machine) repair(closure string) error {
	return m.with(func(st *memory) error {
		if !slices.Contains(st.Damaged, closure) {
			return nil
		}
		st.Damaged = slices.DeleteFunc(st.Damaged, func(c string) bool { return c == closure })
		return fmt.Errorf("%w: %s", nixops.ErrRepaired, closure)
	})
}
