package sim

import (
	"cmp"
	"context"
	"maps"
	"slices"
	"strings"
	"time"

	"nixfleet/nixops"
)

// failed returns the names of the units that failed, sorted.
func (m *machine) failed() ([]string, error) {
	failed := []string{}
	err := m.look(func(st *memory) error {
		failed = append(failed, st.Failed...)
		if st.Current == "" {
			return nil
		}
		c, err := m.valid(st.Current)
		if err != nil {
			return err
		}
		if len(c.After.LateUnits) > 0 && time.Since(st.Switched) >= c.After.LateAfter {
			failed = append(failed, c.After.LateUnits...)
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
	err = s.look(func(st *memory) error {
		since = time.Since(st.Switched)
		return nil
	})
	switch {
	case err != nil:
		return "", err
	case slices.Contains(failed, unit):
		return "failed", nil
	case slices.Contains(c.After.Inactive, unit) && (c.After.InactiveFor == 0 || since < c.After.InactiveFor):
		return "inactive", nil
	case slices.Contains(c.After.CrashLoop, unit):
		return "activating", nil
	case strings.HasSuffix(unit, ".socket") && !slices.Contains(c.After.Sockets, unit):
		return "not-found", nil
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
	err = s.look(func(st *memory) error {
		since := time.Since(st.Switched)
		for _, name := range c.After.CrashLoop {
			note(name, func(u *nixops.Unit) { u.Restarts = uint64(since / cmp.Or(max(c.After.CrashEvery, 0), time.Second)) })
		}
		for _, name := range c.After.Inactive {
			if c.After.InactiveFor == 0 || since < c.After.InactiveFor {
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

func (s *Host) CollectEvidence(ctx context.Context) (nixops.Evidence, error) {
	c := s.current()
	if c.After.Evidence == "" && c.After.CollectorExit == 0 {
		return nixops.Evidence{}, nixops.ErrNoCollector
	}
	e := nixops.Evidence{ExitCode: c.After.CollectorExit}
	if c.After.Evidence != "" {
		e.Document = []byte(strings.ReplaceAll(c.After.Evidence, "NOW", time.Now().UTC().Format(time.RFC3339)))
	}
	return e, nixops.Sleep(ctx, time.Second)
}
