package pki

import (
	"testing"
	"time"
)

func TestParseTimestamp(t *testing.T) {
	for _, c := range []struct{ in, want string }{ // want "" when refused
		{"2026-03-01T12:00:00Z", "2026-03-01T12:00:00Z"},
		{"2026-03-01t12:00:00z", "2026-03-01T12:00:00Z"},
		{"2026-03-01 12:00:00UTC", "2026-03-01T12:00:00Z"},
		{"2026-03-01 12:00:00Z", "2026-03-01T12:00:00Z"},
		{"2026-03-01T14:00:00+02:00", "2026-03-01T12:00:00Z"},
		{"2026-03-01T14:00:00+0200", "2026-03-01T12:00:00Z"},
		{"2026-03-01T07:00:00-05", "2026-03-01T12:00:00Z"},
		{"2026-03-01T12:00:00-00:00", "2026-03-01T12:00:00Z"},
		{"2026-03-01T12:00:00.12Z", "2026-03-01T12:00:00.120Z"},
		{"2026-03-01T12:00:00.120000Z", "2026-03-01T12:00:00.120Z"},
		{"2026-03-01T12:00:00.0001Z", "2026-03-01T12:00:00.000100Z"},
		{"2026-03-01T12:00:00.000000001Z", "2026-03-01T12:00:00.000000001Z"},
		{"2026-03-01T12:00:00.1234567899999Z", "2026-03-01T12:00:00.123456789Z"},
		{"2026-03-01T12:00:00.000000Z", "2026-03-01T12:00:00Z"},
		{"0000-01-01T00:00:00Z", "0000-01-01T00:00:00Z"},
		{"9999-12-31T23:59:59Z", "9999-12-31T23:59:59Z"},

		{"", ""},
		{"2026-03-01", ""},
		{"2026-03-01T12:00:00", ""},
		{"2026-03-01T12:00:00.Z", ""},
		{"2026-03-01T12:00:00,5Z", ""},
		{"2026-03-01  12:00:00Z", ""},
		{"2026-03-01\n12:00:00Z", ""},
		{" 2026-03-01T12:00:00Z", ""},
		{"2026-03-01T12:00:00Z\n", ""},
		{"2026-03-01T12:00:00utc", ""},
		{"2026-03-01T12:00:00GMT", ""},
		{"2026-03-01T12:00:00+1", ""},
		{"2026-03-01T12:00:00+02:0", ""},
		{"2026-13-01T12:00:00Z", ""},
		{"2026-02-29T12:00:00Z", ""},
		{"2026-03-01T24:00:00Z", ""},
		{"2026-03-01T12:00Z", ""},
		{"26-03-01T12:00:00Z", ""},
		{"20260301T120000Z", ""},
		{"1772366400", ""},
		{"٢٠٢٦-03-01T12:00:00Z", ""},
		// In UTC these are years that have no four digits.
		{"0000-01-01T00:00:00+01:00", ""},
		{"9999-12-31T23:59:59-01:00", ""},
	} {
		got, err := ParseTimestamp(c.in)
		if c.want == "" {
			if err == nil {
				t.Errorf("%q was read as %s", c.in, got)
			}
			continue
		}
		if err != nil || got.String() != c.want || got.Location() != time.UTC {
			t.Errorf("%q: got %s, %v; want %s", c.in, got, err, c.want)
		}
	}
}

func TestTimestampJSON(t *testing.T) {
	var v struct {
		At Timestamp `json:"at" shape:"R"`
	}
	if err := Decode([]byte(`{"at":"2026-03-01 13:00:00\u002e5+01"}`), &v); err != nil {
		t.Fatal(err)
	}
	got, err := Marshal(v)
	if want := `{"at":"2026-03-01T12:00:00.500Z"}`; err != nil || string(got) != want {
		t.Errorf("got %s, %v; want %s", got, err, want)
	}
	v.At = At(time.Date(10000, 1, 1, 0, 0, 0, 0, time.UTC))
	if got, err := Marshal(v); err == nil {
		t.Errorf("wrote %s", got)
	}
	if a, b := At(time.Unix(1, 0)), At(time.Unix(1, 0).In(time.FixedZone("x", 3600))); a != b {
		t.Errorf("%v and %v are one instant", a, b)
	}
}

func FuzzParseTimestamp(f *testing.F) {
	for _, s := range []string{"2026-03-01T12:00:00Z", "2026-03-01 14:00:00.1234567899+0200", "0000-01-01T00:00:00+01:00", "2026-02-29T12:00:00z"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		once, err := ParseTimestamp(s)
		if err != nil {
			return
		}
		twice, err := ParseTimestamp(once.String())
		if err != nil || twice != once || twice.String() != once.String() {
			t.Fatalf("%q was read as %s, that as %s, %v", s, once, twice, err)
		}
		if _, err := time.Parse(time.RFC3339Nano, once.String()); err != nil {
			t.Fatalf("%q was written as %s: %v", s, once, err)
		}
	})
}
