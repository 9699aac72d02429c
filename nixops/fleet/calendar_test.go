package fleet

import (
	"errors"
	"os/exec"
	"strings"
	"testing"
	"time"
)

func moment(t *testing.T, text string) time.Time {
	t.Helper()
	at, err := time.Parse(time.RFC3339, text)
	if err != nil {
		t.Fatal(err)
	}
	return at
}

func place(t *testing.T, name string) *time.Location {
	t.Helper()
	at, err := Zone(name)
	if err != nil {
		t.Fatal(err)
	}
	return at
}

// TestCalendar covers what an expression may say, the clock set forward over it, the clock set back over it, and days
// that most years do not have.
func TestCalendar(t *testing.T) {
	for _, c := range []struct{ expression, zone, after, next string }{
		{"Sat 02:00", "", "2026-11-29T06:00:00Z", "2026-12-05T02:00:00Z"},
		{"Sat 02:00", "", "2026-12-05T02:00:00Z", "2026-12-12T02:00:00Z"},
		{"Mon..Fri 22:30", "", "2026-11-27T22:30:00Z", "2026-11-30T22:30:00Z"},
		{"sat,Sunday 02:00:00", "", "2026-12-05T02:00:00Z", "2026-12-06T02:00:00Z"},
		{"Fri..Mon 01:00", "", "2026-11-30T01:00:00Z", "2026-12-04T01:00:00Z"},
		{"Sun *-*-1..7 03:00", "", "2026-11-29T06:00:00Z", "2026-12-06T03:00:00Z"},
		{"*-*-* 00/6:15", "", "2026-11-29T06:15:00Z", "2026-11-29T12:15:00Z"},
		{"12-24 20:00", "", "2026-12-24T20:00:00Z", "2027-12-24T20:00:00Z"},
		{"2027-*-01", "", "2026-11-29T06:00:00Z", "2027-01-01T00:00:00Z"},
		{"monthly", "", "2026-12-31T23:59:59Z", "2027-01-01T00:00:00Z"},
		{"hourly", "Asia/Kathmandu", "2026-11-29T06:00:00Z", "2026-11-29T06:15:00Z"},
		{"*-*-31 04:00", "", "2026-08-31T04:00:00Z", "2026-10-31T04:00:00Z"},

		{"*-02-29 03:00", "", "2024-02-29T03:00:00Z", "2028-02-29T03:00:00Z"},
		{"*-02-29 03:00", "", "2096-02-29T03:00:00Z", "2104-02-29T03:00:00Z"}, // 2100 is not a leap year
		{"Sun *-02-29 03:00", "", "2032-02-29T03:00:00Z", "2060-02-29T03:00:00Z"},

		{"Sun 02:30", "Europe/Berlin", "2026-03-28T12:00:00Z", "2026-03-29T01:00:00Z"}, // 03:00, when 02:30 is left out
		{"Sun 02:30", "Europe/Berlin", "2026-03-29T01:00:00Z", "2026-04-05T00:30:00Z"},
		{"Sun 02:30", "Europe/Berlin", "2026-10-24T12:00:00Z", "2026-10-25T00:30:00Z"}, // the first of two
		{"Sun 02:30", "Europe/Berlin", "2026-10-25T00:30:00Z", "2026-11-01T01:30:00Z"},
		{"Sun 03:00", "Europe/Berlin", "2026-10-25T00:30:00Z", "2026-10-25T02:00:00Z"},
		{"*-*-* 02:15", "America/New_York", "2026-03-08T05:00:00Z", "2026-03-08T07:00:00Z"},
		{"*-*-* 01:15", "America/New_York", "2026-11-01T04:00:00Z", "2026-11-01T05:15:00Z"},
		{"*-*-* 02:15", "Australia/Lord_Howe", "2026-10-03T10:00:00Z", "2026-10-03T15:30:00Z"}, // by half an hour

		{"2020-01-01", "", "2026-11-29T06:00:00Z", ""},
		{"*-02-30", "", "2026-11-29T06:00:00Z", ""},
	} {
		calendar, err := ParseCalendar(c.expression)
		if err != nil {
			t.Errorf("%s: %v", c.expression, err)
			continue
		}
		at := place(t, c.zone)
		next, said := calendar.Next(moment(t, c.after), at), ""
		if !next.IsZero() {
			said = next.UTC().Format(time.RFC3339)
		}
		if said != c.next {
			t.Errorf("%s in %q after %s comes at %q, want %q", c.expression, c.zone, c.after, said, c.next)
		}
		if next.IsZero() {
			continue
		}
		if last := calendar.Last(next, at); !last.Equal(next) {
			t.Errorf("%s in %q: the last until %s is %s", c.expression, c.zone, said, last)
		}
		if last := calendar.Last(next.Add(-time.Second), at); last.After(moment(t, c.after)) {
			t.Errorf("%s in %q: between %s and %s lies %s", c.expression, c.zone, c.after, said, last)
		}
	}
	for _, wrong := range []string{
		"", " ", "Xyz 02:00", "25:00", "02:60", "*-13-01", "*-*-*~1", "02:00:30", "Sat 02:00 Europe/Berlin", "0/0:00",
		"5..3:00", "Sat 02:00 x", "1969-01-01", "-", ":", "minutely",
	} {
		if _, err := ParseCalendar(wrong); !errors.Is(err, ErrCalendar) {
			t.Errorf("%q is read: %v", wrong, err)
		}
	}
}

// TestCalendarAsSystemd asks systemd what it makes of the same expressions.
func TestCalendarAsSystemd(t *testing.T) {
	program, err := exec.LookPath("systemd-analyze")
	if err != nil {
		t.Skip("no systemd-analyze to compare with")
	}
	for _, expression := range []string{
		"Sat 02:00", "Mon..Fri 22:30", "Sun *-*-1..7 03:00", "*-*-* 00/6:15", "12-24 20:00", "weekly", "quarterly", "Sat",
		"*-02-29 03:00", "2..20/5:00/20", "*-1,7-1..31/10 4:00",
	} {
		calendar, err := ParseCalendar(expression)
		if err != nil {
			t.Fatal(err)
		}
		cmd := exec.CommandContext(t.Context(), program, "calendar", "--iterations=3", expression)
		cmd.Env = append(cmd.Environ(), "TZ=UTC", "LC_ALL=C")
		out, err := cmd.Output()
		if err != nil {
			t.Fatalf("%s: %v", expression, err)
		}
		at := time.Now()
		for line := range strings.Lines(string(out)) {
			_, when, _ := strings.Cut(line, "Next elapse:")
			if _, after, iteration := strings.Cut(line, "Iteration #"); iteration {
				_, when, _ = strings.Cut(after, ":")
			}
			if when = strings.TrimSpace(when); when == "" {
				continue
			}
			at = calendar.Next(at, time.UTC)
			if said := at.Format("Mon 2006-01-02 15:04:05 UTC"); said != when {
				t.Errorf("%s comes at %s, and for systemd at %s", expression, said, when)
			}
		}
	}
}

// TestZones compares the rules that are built in with the files of the machine's Go.
func TestZones(t *testing.T) {
	for _, name := range []string{
		"Europe/Berlin", "Europe/Dublin", "America/New_York", "America/Sao_Paulo", "Asia/Tokyo", "Australia/Lord_Howe",
		"Pacific/Auckland", "Asia/Kolkata", "UTC", "Etc/GMT+5", "CET",
	} {
		theirs, err := time.LoadLocation(name)
		if err != nil {
			t.Skipf("no time zone database to compare with: %v", err)
		}
		ours := place(t, name)
		for at := moment(t, "2026-01-01T00:00:00Z"); at.Year() < 2032; at = at.Add(7 * time.Hour) {
			_, want := at.In(theirs).Zone()
			if _, is := at.In(ours).Zone(); is != want {
				t.Fatalf("%s at %s is %d seconds from UTC, want %d", name, at, is, want)
			}
		}
	}
	for _, name := range []string{"Europe", "Berlin", "Mars/Phobos", "Europe/Berlin Europe/Paris", "\n"} {
		if _, err := Zone(name); !errors.Is(err, ErrZone) {
			t.Errorf("%q is read: %v", name, err)
		}
	}
	for line := range strings.Lines(zones) {
		for _, name := range strings.Fields(line)[1:] {
			place(t, name)
		}
	}
}

// TestPhases covers windows that overlap, that meet, that do not come again, and a night with the clock set back.
func TestPhases(t *testing.T) {
	at := func(m Maintenance, when string) string {
		t.Helper()
		w, err := m.Read()
		if err != nil {
			t.Fatal(err)
		}
		p := w.At(moment(t, when))
		text := "closed"
		if p.Open {
			text = "open"
		}
		for _, x := range []time.Time{p.From, p.Until} {
			if x.IsZero() {
				text += " -"
			} else {
				text += " " + x.UTC().Format("01-02T15:04")
			}
		}
		return text
	}
	nights := Maintenance{Windows: []MaintenanceWindow{{"Sat 22:00", 240}, {"Sun 01:00", 120}, {"Sun 03:00", 30}}}
	once := Maintenance{Windows: []MaintenanceWindow{{"2026-12-01 10:00", 60}}}
	berlin := Maintenance{Windows: []MaintenanceWindow{{"Sun 02:30", 60}}, TimeZone: "Europe/Berlin"}
	always := Maintenance{Windows: []MaintenanceWindow{{"hourly", 60}}}
	for _, c := range []struct {
		m          Maintenance
		when, want string
	}{
		{nights, "2026-11-28T21:59:59Z", "closed 11-22T03:30 11-28T22:00"},
		{nights, "2026-11-28T22:00:00Z", "open 11-28T22:00 11-29T03:30"},
		{nights, "2026-11-29T03:29:59Z", "open 11-29T03:00 11-29T03:30"},
		{nights, "2026-11-29T03:30:00Z", "closed 11-29T03:30 12-05T22:00"},
		{once, "2026-11-01T00:00:00Z", "closed - 12-01T10:00"},
		{once, "2026-12-01T11:00:00Z", "closed 12-01T11:00 -"},
		{berlin, "2026-10-25T00:30:00Z", "open 10-25T00:30 10-25T01:30"}, // the clock shows 02:30, then 02:30 again
		{berlin, "2026-10-25T01:30:00Z", "closed 10-25T01:30 11-01T01:30"},
		{berlin, "2026-03-29T01:00:00Z", "open 03-29T01:00 03-29T02:00"},
		{always, "2026-11-29T06:30:00Z", "open 11-29T06:00 12-30T07:00"},
	} {
		if is := at(c.m, c.when); is != c.want {
			t.Errorf("%+v at %s: %s, want %s", c.m, c.when, is, c.want)
		}
	}
	for _, wrong := range []Maintenance{
		{}, {Windows: make([]MaintenanceWindow, maxWindows+1)}, {Windows: []MaintenanceWindow{{"Sat 02:00", 9}}},
		{Windows: []MaintenanceWindow{{"Sat 02:00", MostWindow + 1}}}, {Windows: []MaintenanceWindow{{"never", 60}}},
		{Windows: []MaintenanceWindow{{"Sat 02:00", 60}}, TimeZone: "Mars/Phobos"},
	} {
		if _, err := wrong.Read(); err == nil {
			t.Errorf("%+v is read", wrong)
		}
	}
}

func FuzzCalendar(f *testing.F) {
	f.Add("Sun *-*-1..7 03:00", int64(1774659600))
	f.Add("*-02-29", int64(4107542400))
	f.Fuzz(func(t *testing.T, expression string, unix int64) {
		c, err := ParseCalendar(expression)
		if err != nil || unix < 0 || unix > 1<<33 {
			return
		}
		at, berlin := time.Unix(unix, 0), place(t, "Europe/Berlin")
		next := c.Next(at, berlin)
		if !next.IsZero() && (!next.After(at) || !c.Last(next, berlin).Equal(next)) {
			t.Errorf("%q after %s comes at %s", expression, at, next)
		}
		last := c.Last(at, berlin)
		if last.After(at) || !last.IsZero() && !c.Next(last.Add(-time.Second), berlin).Equal(last) {
			t.Errorf("%q until %s came at %s", expression, at, last)
		}
	})
}
