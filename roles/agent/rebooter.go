package agent

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/rs/zerolog"

	"nixfleet/nixops"
	"nixfleet/roles/agent/journal"
	"nixfleet/roles/command"
)

// What the agent may do by itself about an update that waits for a boot.
const (
	rebootNever     = "never"
	rebootWindow    = "window"
	rebootImmediate = "immediate"
)

const (
	// windowLength is how long a window stays open after the time that its
	// expression names.
	windowLength = time.Hour
	rebootLook   = 5 * time.Second
	// rebootRetry is the pause after a reboot that could not be begun.
	rebootRetry = 15 * time.Minute
)

// rebootPolicy is the host's own word on reboots, from its configuration.
type rebootPolicy struct {
	mode   string
	window string // OnCalendar expression
}

func parseRebootPolicy(text string) (rebootPolicy, error) {
	mode, window, colon := strings.Cut(text, ":")
	switch {
	case text == "":
		return rebootPolicy{mode: rebootNever}, nil
	case mode == rebootWindow && strings.TrimSpace(window) == "":
		return rebootPolicy{}, errors.New("window needs an OnCalendar expression, as in window:Sun 03:00")
	case mode == rebootWindow, !colon && (mode == rebootNever || mode == rebootImmediate):
		return rebootPolicy{mode, strings.TrimSpace(window)}, nil
	}
	return rebootPolicy{}, fmt.Errorf("%q: use never, immediate or window:ONCALENDAR", text)
}

func (p rebootPolicy) String() string {
	switch p.mode {
	case rebootWindow:
		return "this host reboots in its window, " + p.window
	case rebootImmediate:
		return "this host reboots now"
	}
	return "somebody has to reboot this host"
}

// check has the machine itself read the window's expression. One that it cannot
// read is refused; a machine that cannot say is believed.
func (p rebootPolicy) check(ctx context.Context, host nixops.Host) error {
	if p.mode != rebootWindow {
		return nil
	}
	next, err := host.NextElapse(ctx, p.window, time.Now())
	if errors.Is(err, nixops.ErrCalendar) {
		return &command.Error{Err: fmt.Errorf("--reboot-policy: %w", err), Hint: "systemd-analyze calendar '" + p.window +
			"'"}
	}
	if err == nil && next.IsZero() {
		return fmt.Errorf("--reboot-policy: the window %q never comes", p.window)
	}
	return nil
}

const (
	// elapsesAhead is how many times of a window are looked at: a weekly one comes less often in a year.
	elapsesAhead = 60
	// zonesApart is how much one time of day differs between two zones, at most.
	zonesApart = 15 * time.Hour
)

// skipped is a day on which the window does not come although its expression names it: its
// time does not exist there, since the clock is set forward. A weekly window then skips a
// week. UTC, in which every time exists, has the same expression on that day.
func (p rebootPolicy) skipped(ctx context.Context, host nixops.Host, now time.Time) (time.Time, bool) {
	next := func(expression string, after time.Time) time.Time {
		at, err := host.NextElapse(ctx, expression, after)
		if err != nil {
			return time.Time{} // such as of one that names its zone
		}
		return at
	}
	utc := p.window + " UTC"
	here, there := next(p.window, now), next(utc, now)
	switch {
	case here.Sub(there) > zonesApart: // the first has passed here, and not there yet
		there = next(utc, there)
	case there.Sub(here) > zonesApart:
		here = next(p.window, here)
	}
	for range elapsesAhead {
		if here.IsZero() || there.IsZero() {
			return time.Time{}, false
		}
		if here.Sub(there) > zonesApart {
			return there, true
		}
		here, there = next(p.window, here), next(utc, there)
	}
	return time.Time{}, false
}

// open says whether the window is open, and when it is next worth asking.
func (p rebootPolicy) open(ctx context.Context, host nixops.Host, now time.Time) (bool, time.Time, error) {
	if p.mode == rebootImmediate {
		return true, now, nil
	}
	next, err := host.NextElapse(ctx, p.window, now.Add(-windowLength))
	return err == nil && !next.IsZero() && !next.After(now), next, err
}

// rebooter reboots the host for what is staged, when its policy allows.
type rebooter struct {
	log      zerolog.Logger
	host     nixops.Host
	dir      journal.Directory
	status   *statusFile
	work     *work
	memory   *memory
	reporter *reporter
	reboots  rebootPolicy
}

// run reboots the host for what is staged, when its policy allows.
func (r *rebooter) run(ctx context.Context) {
	if r.reboots.mode == rebootNever {
		return
	}
	var opens time.Time // not worth asking before
	for {
		pause := rebootLook
		if j := r.awaitsReboot(ctx); j == nil {
			opens = time.Time{}
		} else if now := time.Now(); !now.Before(opens) {
			open, next, err := r.reboots.open(ctx, r.host, now)
			switch {
			case err != nil:
				r.log.Error().Err(err).Msg("reboot window cannot be determined")
				opens = now.Add(rebootRetry)
			case open:
				if err := r.reboot(ctx, j); err != nil {
					r.log.Error().Err(err).Msg("reboot failed")
					r.status.waiting("somebody to reboot this host: %v", err)
					opens = now.Add(rebootRetry)
				}
			case next.IsZero():
				opens = now.Add(rebootRetry)
			default:
				opens = next
				r.status.waiting("a reboot: %s differs and cannot be switched live; the window opens at %s", j.Component,
					next.UTC().Format(time.RFC3339))
			}
		}
		if nixops.Sleep(ctx, pause) != nil {
			return
		}
	}
}

// awaitsReboot is the staged activation that may be booted now; nil while there
// is none, root holds the host, or the control plane has not heard of it yet:
// until then this host has no slot of a budget for being away.
func (r *rebooter) awaitsReboot(ctx context.Context) *journal.Journal {
	j, err := r.dir.Journal()
	if err != nil || j == nil || j.Step != journal.Staged || !j.Reboots || r.work.busy.Load() ||
		r.memory.hold.Load() != nil || r.reporter.outbox.waiting(j.ChannelRef) {
		return nil
	}
	if boot, err := r.host.BootID(ctx); err != nil || boot != j.BootID {
		return nil
	}
	return j
}

// reboot holds the journal's lock until the machine has the order, so that what
// is staged is not taken back meanwhile.
func (r *rebooter) reboot(ctx context.Context, staged *journal.Journal) error {
	unlock, err := r.dir.Lock()
	if err != nil {
		return err
	}
	defer unlock()
	j, err := r.dir.Journal()
	if err != nil || j == nil || j.Step != journal.Staged || j.Units != staged.Units {
		return err
	}
	work := context.WithoutCancel(ctx)
	if err := r.host.SetBootOnce(work, j.Closure); err != nil {
		return err
	}
	r.log.Warn().Str("closure", j.Closure).Str("component", j.Component).Msg("rebooting")
	r.status.waiting("the reboot into %s", j.Closure)
	return r.host.Reboot(work)
}
