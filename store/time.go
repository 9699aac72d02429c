package store

import (
	"fmt"
	"math"
	"strconv"
	"strings"
	"time"

	"nixfleet/pki"
)

// layout is UTC text that SQLite's datetime() reads and that compares
// correctly as text.
const layout = "2006-01-02 15:04:05.000"

// lastMoment is the last one that still compares correctly as text.
var lastMoment = time.Date(9999, 12, 31, 23, 59, 59, 999e6, time.UTC)

func text(t time.Time) string {
	if t.After(lastMoment) {
		t = lastMoment
	}
	return t.UTC().Format(layout)
}

func textOrNull(t *time.Time) any {
	if t == nil {
		return nil
	}
	return text(*t)
}

// written are the forms of SQLite's datetime() besides those of RFC 3339. A
// fraction may follow the seconds of each.
var written = []string{
	layout, time.DateTime, "2006-01-02T15:04:05", "2006-01-02 15:04", "2006-01-02T15:04", time.DateOnly,
	"2006-01-02 15:04:05 Z07:00", "2006-01-02 15:04Z07:00", "2006-01-02T15:04Z07:00", "2006-01-02 15:04 Z07:00",
}

// parseTime also reads what people write: what datetime() reads, the results of
// unixepoch() and julianday(), and RFC 3339. A word that datetime() would take
// for another moment each time, such as now, is not a time.
func parseTime(s string) (time.Time, error) {
	tidy := strings.Join(strings.Fields(s), " ")
	for _, form := range written {
		if t, err := time.Parse(form, tidy); err == nil {
			return t, nil
		}
	}
	if t, ok := numericTime(tidy); ok {
		return t, nil
	}
	t, err := pki.ParseTimestamp(tidy)
	if err != nil {
		return time.Time{}, fmt.Errorf("%.40q is not a time", s)
	}
	return t.Time, nil
}

const (
	unixEpochDay = 2440587.5    // the Julian day of 1970-01-01
	lastDay      = 5373484.5    // that of 10000-01-01; a greater number is Unix seconds
	lastSecond   = 253402300800 // of the same day, in Unix seconds
)

// numericTime reads a number as datetime(…, 'auto') does, from 1970 on.
func numericTime(s string) (time.Time, bool) {
	if strings.Trim(s, "0123456789.") != "" {
		return time.Time{}, false
	}
	n, err := strconv.ParseFloat(s, 64)
	switch {
	case err != nil || n < unixEpochDay || n >= lastSecond:
		return time.Time{}, false
	case n < lastDay:
		n = (n - unixEpochDay) * 24 * 60 * 60
	}
	return time.UnixMilli(int64(math.Round(n * 1000))).UTC(), true
}

// moment scans a time column into a time.Time.
type moment struct{ to *time.Time }

// Scan reads the column's text.
func (m moment) Scan(v any) error {
	s, ok := v.(string)
	if !ok {
		return fmt.Errorf("time column holds %T", v)
	}
	t, err := parseTime(s)
	*m.to = t
	return err
}

// maybe scans a time column that may be null.
type maybe struct{ to **time.Time }

// Scan reads the column's text or null.
func (m maybe) Scan(v any) error {
	if v == nil {
		*m.to = nil
		return nil
	}
	t := new(time.Time)
	*m.to = t
	return moment{t}.Scan(v)
}
