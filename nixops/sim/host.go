package sim

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"slices"
	"time"

	"nixfleet/nixops"
	"nixfleet/nixops/disk"
)

// Host is a simulated machine with one directory for its memory and one for the cache that it fetches from. Its only
// clock is package time, so that it works in a testing/synctest bubble as well as by the wall clock. It starts a
// process only when a deadline fires without a callback. Several Hosts of one directory, in one process or in
// several, are the same machine.
type Host struct{ *machine }

var _ nixops.Host = (*Host)(nil)

// New opens or makes the simulated machine whose memory is in dir and whose cache is cacheDir (see WriteClosure). While
// the cache has a file "unreachable", the machine cannot reach the cache.
func New(dir, cacheDir string) (*Host, error) {
	m, err := openMachine(dir, cacheDir)
	if err != nil {
		return nil, fmt.Errorf("simulated machine: %w", err)
	}
	return &Host{m}, nil
}

func (s *Host) CurrentSystem(ctx context.Context) (string, error) {
	return s.read(func(st *memory) string { return st.Current })
}

func (s *Host) BootedSystem(ctx context.Context) (string, error) {
	return s.read(func(st *memory) string { return st.Boot.Booted })
}

func (s *Host) Profile(ctx context.Context) (string, error) {
	return s.read(func(st *memory) string { return st.Profile })
}

func (s *Host) BootDefault(ctx context.Context) (string, error) {
	return s.read(func(st *memory) string { return st.Boot.known() })
}

func (s *Host) HasBootEntry(ctx context.Context, closure string) (bool, error) {
	has := false
	err := s.look(func(st *memory) error {
		if st.Boot.Unknown != "" {
			return fmt.Errorf("boot entry of %s: %s", closure, st.Boot.Unknown)
		}
		has = closure == st.Boot.BootDefault || slices.Contains(st.Boot.Entries, closure)
		return nil
	})
	return has, err
}

func (s *Host) BootID(ctx context.Context) (string, error) {
	return s.read(func(st *memory) string { return st.bootID() })
}

func (s *Host) SinceBoot(ctx context.Context) (time.Duration, error) {
	var since time.Duration
	err := s.look(func(st *memory) error {
		since = st.Boot.Asleep
		if !st.Boot.BootedAt.IsZero() {
			since += time.Since(st.Boot.BootedAt)
		}
		return nil
	})
	return since, err
}

func (s *Host) Realise(ctx context.Context, closure string, progress func(string), how ...nixops.Fetch) error {
	path, err := nixops.StorePath(closure)
	if err != nil {
		return err
	}
	fail := func(err error) error { return fmt.Errorf("realise %s: %w", closure, err) }
	if err := s.AddRoot(ctx, closure, closure); err != nil {
		return err
	}
	if disk.Exists(s.stored(closure)) {
		if slices.Contains(how, nixops.Verified) {
			return s.repair(closure)
		}
		return nil
	}
	if disk.Exists(s.cache+"/unreachable") || !s.Online() {
		return fail(nixops.ErrUnreachable)
	}
	c, err := readClosure(s.cache, closure)
	if errors.Is(err, fs.ErrNotExist) {
		return fail(nixops.ErrNotFound)
	}
	if err != nil {
		return fail(err)
	}
	if progress != nil {
		progress(fmt.Sprintf("copying path '%s' from 'file://%s'...", path, s.cache))
	}
	if err := nixops.Sleep(ctx, c.Cache.FetchTime); err != nil {
		return fail(err)
	}
	switch c.Cache.Signature {
	case "":
	case "unsigned", "foreign", "corrupt":
		return fail(fmt.Errorf("%s: %w", c.Cache.Signature, nixops.ErrUnsigned))
	case "other-path":
		return fail(nixops.ErrMismatch)
	default:
		return fail(fmt.Errorf("unknown kind of signature %q", c.Cache.Signature))
	}
	return s.with(func(st *memory) error {
		if c.Cache.Size > st.StoreFree {
			return fail(nixops.ErrNoSpace)
		}
		st.StoreFree -= c.Cache.Size
		st.Fetched[closure]++
		return writeJSON(s.stored(closure), c)
	})
}

func (s *Host) AddRoot(ctx context.Context, name, closure string) error {
	if _, err := nixops.StorePath(closure); err != nil {
		return err
	}
	if err := nixops.CheckRoot(name); err != nil {
		return err
	}
	return s.with(func(st *memory) error {
		st.Roots[name] = closure
		return nil
	})
}

func (s *Host) RemoveRoot(ctx context.Context, name string) error {
	return s.with(func(st *memory) error {
		delete(st.Roots, name)
		return nil
	})
}

func (s *Host) Roots(ctx context.Context) (map[string]string, error) {
	var roots map[string]string
	err := s.look(func(st *memory) error {
		roots = maps.Clone(st.Roots)
		return nil
	})
	return roots, err
}

func (s *Host) Inspect(ctx context.Context, closure string) (nixops.Closure, error) {
	c, err := s.valid(closure)
	if err != nil {
		return nixops.Closure{}, err
	}
	is := nixops.Closure{
		Name: closure, HasSwitch: !c.NoSwitch, Specialisations: slices.Sorted(slices.Values(c.Specialisations)),
		AgentPath: c.Agent, Kernel: c.Kernel, Initrd: c.Initrd, KernelParams: c.KernelParams,
		SystemdPath: c.Systemd, DBus: c.DBus, SwitchInhibitor: c.SwitchInhibitor,
		Version: c.Version, SourceDate: nixops.SourceDate(c.Version),
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
	return err == nil && !c.NoSwitch && !c.Script.NoCheck, err
}

func (s *Host) SetProfile(ctx context.Context, closure string) error {
	if _, err := s.valid(closure); err != nil {
		return err
	}
	return s.with(func(st *memory) error {
		st.Profile = closure
		return nil
	})
}

func (s *Host) RestoreCurrent(ctx context.Context, closure string) error {
	c, err := s.valid(closure)
	if err != nil {
		return err
	}
	return s.with(func(st *memory) error {
		if st.Current != closure {
			st.activate(closure, c, time.Now())
		}
		return nil
	})
}

func (s *Host) ClearSwitchLists(ctx context.Context) error {
	return s.with(func(st *memory) error {
		st.Lists = ""
		return nil
	})
}

func (s *Host) LockHeld(ctx context.Context) (bool, error) {
	held := false
	err := s.look(func(st *memory) error {
		held = st.locked()
		return nil
	})
	return held, err
}

func (s *Host) ArmDeadline(ctx context.Context, d nixops.Deadline) error {
	if err := d.Check(); err != nil {
		return err
	}
	return s.with(func(st *memory) error {
		st.Deadlines[d.Unit] = armed{At: time.Now().Add(d.After), After: d.After, Command: d.Command}
		st.Notes[d.Unit] = d.Note
		s.setTimer(d.Unit, d.After)
		return nil
	})
}

func (s *Host) DisarmDeadline(ctx context.Context, unit string) error {
	if err := nixops.CheckUnit(unit); err != nil {
		return err
	}
	return s.with(func(st *memory) error {
		delete(st.Deadlines, unit)
		delete(st.Notes, unit)
		s.dropTimer(unit)
		return nil
	})
}

func (s *Host) DeadlineNote(ctx context.Context, unit string) ([]byte, error) {
	if unit != "" {
		if err := nixops.CheckUnit(unit); err != nil {
			return nil, err
		}
	}
	var note []byte
	err := s.look(func(st *memory) error {
		note = st.Notes[unit]
		if unit == "" && len(st.Notes) > 0 {
			note = st.Notes[slices.Max(slices.Collect(maps.Keys(st.Notes)))]
		}
		return nil
	})
	return note, err
}

func (s *Host) DeadlineArmed(ctx context.Context, unit string) (bool, error) {
	armed := false
	err := s.look(func(st *memory) error {
		_, armed = st.Deadlines[unit]
		return nil
	})
	return armed, err
}

func (s *Host) Space(ctx context.Context, closure string) (nixops.Space, error) {
	var free nixops.Space
	err := s.look(func(st *memory) error {
		free = nixops.Space{StoreFree: st.StoreFree, BootFree: st.BootFree,
			BootReadOnly: st.Boot.ReadOnly}
		if c, err := s.closure(closure); closure != "" && err == nil && c.Cache.BootSize > st.BootFree {
			free.BootLacks, free.BootLacking = c.Cache.BootSize-st.BootFree, "/boot"
		}
		return nil
	})
	return free, err
}

func (s *Host) Reboot(ctx context.Context) error { return s.PowerCycle() }
