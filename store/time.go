package store

import (
	"fmt"
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

// parseTime also reads what people write: datetime('now') and RFC 3339.
func parseTime(s string) (time.Time, error) {
	for _, form := range []string{layout, time.DateTime, "2006-01-02T15:04:05", "2006-01-02 15:04", time.DateOnly} {
		if t, err := time.Parse(form, s); err == nil {
			return t, nil
		}
	}
	t, err := pki.ParseTimestamp(s)
	if err != nil {
		return time.Time{}, fmt.Errorf("%.40q is no time", s)
	}
	return t.Time, nil
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
