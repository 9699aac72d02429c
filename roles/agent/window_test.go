package agent

import (
	"context"
	"strings"
	"testing"
	"time"

	"nixfleet/nixops"
	"nixfleet/nixops/sim"
)

// weekly is a machine whose window comes every Sunday at 02:30, by its zone two hours before
// UTC, but for one day.
type weekly struct {
	*sim.Host
	without time.Time
}

var aSunday = time.Date(2027, 1, 3, 2, 30, 0, 0, time.UTC)

func (w weekly) NextElapse(_ context.Context, calendar string, after time.Time) (time.Time, error) {
	expression, utc := strings.CutSuffix(calendar, " UTC")
	if strings.Contains(expression, "UTC") {
		return time.Time{}, nixops.ErrCalendar
	}
	offset := -2 * time.Hour
	if utc {
		offset = 0
	}
	for at := aSunday; ; at = at.AddDate(0, 0, 7) {
		if at.Add(offset).After(after) && (utc || !at.Equal(w.without)) {
			return at.Add(offset), nil
		}
	}
}

// A time that a day does not have, since the clock is set forward, makes a weekly window skip
// a week.
func TestWindowThatSkipsAWeek(t *testing.T) {
	never, march := time.Time{}, time.Date(2027, 3, 28, 2, 30, 0, 0, time.UTC)
	for _, now := range []time.Time{
		aSunday.Add(-3 * time.Hour), aSunday.Add(-time.Hour), aSunday.Add(time.Hour), aSunday.AddDate(0, 0, 3),
	} {
		for _, c := range []struct {
			window  string
			without time.Time
			skips   bool
		}{{"Sun 02:30", never, false}, {"Sun 02:30", march, true}, {"Sun 02:30 UTC", march, false}} {
			p := rebootPolicy{mode: rebootWindow, window: c.window}
			day, skips := p.skipped(t.Context(), weekly{nil, c.without}, now)
			if skips != c.skips || skips && !day.Equal(march) {
				t.Errorf("%q as of %s: %v on %s", c.window, now, skips, day)
			}
		}
	}
}
