package pki

import (
	"fmt"
	"regexp"
	"strings"
	"time"

	"github.com/go-json-experiment/json/jsontext"
)

// Timestamp is a point in time as artifacts and the wire write it: RFC 3339 in
// UTC with suffix Z and 0, 3, 6 or 9 fractional digits, the fewest that lose
// nothing.
type Timestamp struct{ time.Time }

// At is t in UTC.
func At(t time.Time) Timestamp { return Timestamp{t.UTC()} }

var timestampForm = regexp.MustCompile(
	`^(\d{4}-\d{2}-\d{2})[Tt ](\d{2}:\d{2}):(\d{2})(\.\d+)?(Z|z|UTC|[+-](?:[01]\d|2[0-3])(?::?[0-5]\d)?)$`)

// ParseTimestamp reads RFC 3339 with T, t or one space between date and time,
// any number of fractional digits (those past the ninth are dropped), and the
// offset as Z, z, UTC, ±hh:mm, ±hhmm or ±hh. A missing offset is refused. A leap
// second (RFC 3339 §5.6) is read as the second after it, which it shares its
// number with.
func ParseTimestamp(s string) (Timestamp, error) {
	m := timestampForm.FindStringSubmatch(s)
	if m == nil {
		return Timestamp{}, fmt.Errorf("%.40q is not a time such as 2026-03-01T12:00:00Z", s)
	}
	date, clock, second, fraction, offset := m[1], m[2], m[3], m[4], m[5]
	leap := second == "60"
	if leap {
		second = "59"
	}
	if len(fraction) > 10 {
		fraction = fraction[:10]
	}
	switch {
	case offset == "z" || offset == "UTC":
		offset = "Z"
	case len(offset) == 3:
		offset += ":00"
	case len(offset) == 5:
		offset = offset[:3] + ":" + offset[3:]
	}
	t, err := time.Parse(time.RFC3339Nano, date+"T"+clock+":"+second+fraction+offset)
	if err != nil {
		return Timestamp{}, fmt.Errorf("%.40q is not a time: %w", s, err)
	}
	if leap {
		if u := t.UTC(); u.Hour() != 23 || u.Minute() != 59 {
			return Timestamp{}, fmt.Errorf("%.40q is not a time: a leap second ends a day in UTC", s)
		}
		t = t.Add(time.Second)
	}
	if !writable(t) {
		return Timestamp{}, fmt.Errorf("%.40q is not a time: in UTC its year is not 0000 to 9999", s)
	}
	return At(t), nil
}

// writable tells whether the year in UTC has the four digits that the written form gives it.
func writable(t time.Time) bool {
	year := t.UTC().Year()
	return 0 <= year && year <= 9999
}

// String is the written form.
func (t Timestamp) String() string {
	u := t.UTC()
	text := u.Format("2006-01-02T15:04:05")
	if n := u.Nanosecond(); n != 0 {
		digits := strings.TrimSuffix(strings.TrimSuffix(fmt.Sprintf("%09d", n), "000"), "000")
		text += "." + digits
	}
	return text + "Z"
}

// The four methods below hide those of the embedded time.Time, whose written
// form trims zeros and whose reader knows one form only.

// MarshalText writes the written form.
func (t Timestamp) MarshalText() ([]byte, error) {
	if !writable(t.Time) {
		return nil, fmt.Errorf("time of the year %d cannot be written", t.UTC().Year())
	}
	return []byte(t.String()), nil
}

// UnmarshalText reads every form of ParseTimestamp.
func (t *Timestamp) UnmarshalText(text []byte) error {
	parsed, err := ParseTimestamp(string(text))
	if err == nil {
		*t = parsed
	}
	return err
}

// MarshalJSON writes the written form as a JSON string.
func (t Timestamp) MarshalJSON() ([]byte, error) {
	text, err := t.MarshalText()
	if err != nil {
		return nil, err
	}
	return []byte(`"` + string(text) + `"`), nil
}

// UnmarshalJSON reads every form of ParseTimestamp from a JSON string.
func (t *Timestamp) UnmarshalJSON(doc []byte) error {
	text, err := jsontext.AppendUnquote(nil, doc)
	if err != nil {
		return fmt.Errorf("time: %w", err)
	}
	return t.UnmarshalText(text)
}
