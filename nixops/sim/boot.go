package sim

import (
	"context"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"nixfleet/nixops"
)

// This file has the boot loader and the calendar of a simulated machine.

func (s *Host) CanBootOnce(ctx context.Context) (bool, error) {
	loader, err := s.read(func(st *memory) string { return st.Boot.Loader })
	return loader == "", err
}

func (s *Host) SetStaged(ctx context.Context, closure string) error {
	if closure != "" {
		if _, err := s.valid(closure); err != nil {
			return err
		}
	}
	return s.with(func(st *memory) error {
		st.Boot.Staged = closure
		return nil
	})
}

func (s *Host) SetBootOnce(ctx context.Context, closure string) error {
	return s.with(func(st *memory) error {
		switch {
		case st.Boot.Loader != "":
			return fmt.Errorf("boot once with %s: %w", st.Boot.Loader, nixops.ErrUnsupported)
		case closure != "" && !slices.Contains(st.Boot.Entries, closure):
			return fmt.Errorf("boot once: the boot loader has no entry for %s: %w", closure, nixops.ErrNotFound)
		}
		st.Boot.BootOnce = closure
		return nil
	})
}

func (s *Host) BootOnce(ctx context.Context) (string, error) {
	return s.read(func(st *memory) string { return st.Boot.BootOnce })
}

// NextBoot is known unless the test says why it is not.
func (s *Host) NextBoot(ctx context.Context) (nixops.NextBoot, error) {
	var next nixops.NextBoot
	err := s.look(func(st *memory) error {
		next = nixops.NextBoot{Loader: st.Boot.Loader, Default: st.Boot.known(), Once: st.Boot.BootOnce,
			Unknown: st.Boot.Unknown, UsedUp: st.Boot.UsedUp}
		if next.Loader == "" {
			next.Loader = "systemd-boot"
		}
		return nil
	})
	return next, err
}

// BootStamp changes with what the loader would start.
func (s *Host) BootStamp(context.Context) string {
	stamp, err := s.read(func(st *memory) string { return st.Boot.BootDefault + st.Boot.BootOnce + st.Boot.Unknown })
	if err != nil {
		return ""
	}
	return stamp
}

// ThisBoot is over and not counted, unless the test says something else.
func (s *Host) ThisBoot(ctx context.Context) (nixops.ThisBoot, error) {
	boot := nixops.ThisBoot{Over: true}
	err := s.look(func(st *memory) error {
		if st.Boot.This != nil {
			boot = *st.Boot.This
		}
		return nil
	})
	return boot, err
}

// StartedBy is what the last boot started.
func (s *Host) StartedBy(ctx context.Context) (string, error) {
	return s.read(func(st *memory) string { return st.Boot.Booted })
}

// known is the boot default, as far as the agent can see it.
func (b bootMemory) known() string {
	if b.Unknown != "" {
		return ""
	}
	return b.BootDefault
}

// NextElapse understands "hourly", "daily", and a time of day with or without days of the week ("03:00",
// "Mon,Sat 03:00"). All times are in UTC; " UTC" may follow.
func (s *Host) NextElapse(ctx context.Context, calendar string, after time.Time) (time.Time, error) {
	bad := fmt.Errorf("calendar %q: %w", calendar, nixops.ErrCalendar)
	after = after.UTC()
	words := strings.Fields(strings.TrimSuffix(calendar, " UTC"))
	if len(words) == 1 && words[0] == "hourly" {
		return after.Truncate(time.Hour).Add(time.Hour), nil
	}
	if len(words) == 1 && words[0] == "daily" {
		words = []string{"00:00"}
	}
	var days []string
	if len(words) == 2 {
		days, words = strings.Split(words[0], ","), words[1:]
	}
	if len(words) != 1 {
		return time.Time{}, bad
	}
	hourText, minuteText, _ := strings.Cut(words[0], ":")
	hour, err := strconv.Atoi(hourText)
	minute, errMinute := strconv.Atoi(minuteText)
	if err != nil || errMinute != nil || hour < 0 || hour > 23 || minute < 0 || minute > 59 {
		return time.Time{}, bad
	}
	for ahead := range 8 {
		next := time.Date(after.Year(), after.Month(), after.Day()+ahead, hour, minute, 0, 0, time.UTC)
		if next.After(after) && (len(days) == 0 || slices.Contains(days, next.Weekday().String()[:3])) {
			return next, nil
		}
	}
	return time.Time{}, bad
}
