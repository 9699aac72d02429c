package fleet

import (
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"
)

// Calendar is an expression of systemd.time(7) as OnCalendar takes it, to the minute and without a time zone: days of
// the week, a date and a time of day with `*`, lists, ranges and steps, or one of daily, weekly, monthly, yearly.
type Calendar struct {
	weekdays     uint64 // bit 0 is Sunday
	years        []int  // sorted; none: every year
	months, days uint64
	minutesOfDay []int // sorted
}

// ErrCalendar means that an expression cannot be read here.
var ErrCalendar = errors.New("not a calendar expression that is known here")

// calendarYears bounds the search for a day that fits: 29 February on a given weekday comes every 28 years, and every
// 40 at most over a year like 2100, which is not a leap year.
const calendarYears = 41

var calendarWords = map[string]string{
	"hourly": "*-*-* *:00", "daily": "*-*-* 00:00", "weekly": "Mon *-*-* 00:00", "monthly": "*-*-01 00:00",
	"quarterly": "*-01,04,07,10-01 00:00", "semiannually": "*-01,07-01 00:00", "yearly": "*-01-01 00:00",
	"annually": "*-01-01 00:00",
}

var weekdayWords = []string{"sunday", "monday", "tuesday", "wednesday", "thursday", "friday", "saturday"}

// ParseCalendar reads an expression.
func ParseCalendar(text string) (*Calendar, error) {
	given := strings.TrimSpace(text)
	if whole := calendarWords[strings.ToLower(given)]; whole != "" {
		given = whole
	}
	weekdays, date, clock := "", "*-*-*", "00:00"
	rest := strings.Fields(given)
	if len(rest) > 0 && !strings.ContainsAny(rest[0][:1], "0123456789*") {
		weekdays, rest = rest[0], rest[1:]
	}
	if len(rest) > 0 && strings.Contains(rest[0], "-") {
		date, rest = rest[0], rest[1:]
	}
	if len(rest) > 0 && strings.Contains(rest[0], ":") {
		clock, rest = rest[0], rest[1:]
	}
	if len(rest) > 0 || given == "" {
		return nil, fmt.Errorf("%.80q is %w", text, ErrCalendar)
	}
	c := &Calendar{}
	if err := errors.Join(c.readWeekdays(weekdays), c.readDate(date), c.readClock(clock)); err != nil {
		return nil, fmt.Errorf("%.80q is %w: %w", text, ErrCalendar, err)
	}
	return c, nil
}

func (c *Calendar) readWeekdays(text string) error {
	if text == "" {
		c.weekdays = 1<<7 - 1
		return nil
	}
	for item := range strings.SplitSeq(strings.TrimSuffix(text, ","), ",") {
		from, to, ranged := strings.Cut(item, "..")
		if !ranged {
			to = from
		}
		first, last := weekday(from), weekday(to)
		if first < 0 || last < 0 {
			return fmt.Errorf("%.20q is not a day of the week", item)
		}
		for day := first; ; day = (day + 1) % 7 {
			c.weekdays |= 1 << day
			if day == last {
				break
			}
		}
	}
	return nil
}

// weekday reads a day's name or its first three letters; -1 when it is neither.
func weekday(text string) int {
	return slices.IndexFunc(weekdayWords, func(word string) bool {
		return strings.EqualFold(text, word) || strings.EqualFold(text, word[:3])
	})
}

func (c *Calendar) readDate(text string) error {
	parts := strings.Split(text, "-")
	if len(parts) == 2 {
		parts = append([]string{"*"}, parts...)
	}
	if len(parts) != 3 {
		return fmt.Errorf("date %.40q is not YEAR-MONTH-DAY", text)
	}
	if parts[0] != "*" {
		years, err := numbers(parts[0], 1970, 2199)
		if err != nil {
			return fmt.Errorf("year: %w", err)
		}
		c.years = years
	}
	months, err := numbers(parts[1], 1, 12)
	if err != nil {
		return fmt.Errorf("month: %w", err)
	}
	days, err := numbers(parts[2], 1, 31)
	if err != nil {
		return fmt.Errorf("day: %w", err)
	}
	for _, m := range months {
		c.months |= 1 << m
	}
	for _, d := range days {
		c.days |= 1 << d
	}
	return nil
}

func (c *Calendar) readClock(text string) error {
	parts := strings.Split(text, ":")
	if len(parts) == 3 && strings.Trim(parts[2], "0") == "" {
		parts = parts[:2]
	}
	if len(parts) != 2 {
		return fmt.Errorf("time %.40q is not HOUR:MINUTE", text)
	}
	hours, err := numbers(parts[0], 0, 23)
	if err != nil {
		return fmt.Errorf("hour: %w", err)
	}
	minutes, err := numbers(parts[1], 0, 59)
	if err != nil {
		return fmt.Errorf("minute: %w", err)
	}
	for _, h := range hours {
		for _, m := range minutes {
			c.minutesOfDay = append(c.minutesOfDay, h*60+m)
		}
	}
	return nil
}

// numbers reads a list of numbers, ranges and steps: `*`, `1,3`, `1..7`, `0/15`, `1..20/5`. They come sorted.
func numbers(text string, least, most int) ([]int, error) {
	fits := make([]bool, most-least+1)
	for item := range strings.SplitSeq(text, ",") {
		span, by, stepped := strings.Cut(item, "/")
		step := 1
		if stepped {
			n, err := strconv.Atoi(by)
			if err != nil || n < 1 {
				return nil, fmt.Errorf("%.20q is not a step", by)
			}
			step = n
		}
		first, last := least, most
		if span != "*" {
			from, to, ranged := strings.Cut(span, "..")
			var wrong error
			first, wrong = strconv.Atoi(from)
			switch {
			case ranged && wrong == nil:
				last, wrong = strconv.Atoi(to)
			case !stepped:
				last = first
			}
			if wrong != nil || first < least || last > most || first > last {
				return nil, fmt.Errorf("%.20q is not within %d to %d", span, least, most)
			}
		}
		for n := first; n <= last; n += step {
			fits[n-least] = true
		}
	}
	var found []int
	for i, is := range fits {
		if is {
			found = append(found, least+i)
		}
	}
	return found, nil
}

// Next is the first moment after the given one that fits, on the clocks of a place; zero when none comes. A time that
// the clock is set forward over comes when it is; one that the clock shows twice comes the first time.
func (c *Calendar) Next(after time.Time, place *time.Location) time.Time {
	day := dateOf(after.In(place))
	for last := day.year + calendarYears; day.year <= last; {
		if !c.onMonth(day) {
			day = date{day.year, day.month + 1, 1}.normal()
			continue
		}
		if c.onDay(day) {
			for _, minutes := range c.minutesOfDay {
				if t := day.at(minutes, place); t.After(after) {
					return t
				}
			}
		}
		day = date{day.year, day.month, day.day + 1}.normal()
	}
	return time.Time{}
}

// Last is the newest moment that fits and is not after the given one; zero when there is none.
func (c *Calendar) Last(until time.Time, place *time.Location) time.Time {
	day := dateOf(until.In(place))
	for last := day.year - calendarYears; day.year >= last; {
		if !c.onMonth(day) {
			day = date{day.year, day.month, 0}.normal()
			continue
		}
		if c.onDay(day) {
			for _, minutes := range slices.Backward(c.minutesOfDay) {
				if t := day.at(minutes, place); !t.After(until) {
					return t
				}
			}
		}
		day = date{day.year, day.month, day.day - 1}.normal()
	}
	return time.Time{}
}

func (c *Calendar) onMonth(d date) bool {
	return c.months&(1<<d.month) != 0 && (c.years == nil || slices.Contains(c.years, d.year))
}

func (c *Calendar) onDay(d date) bool {
	return c.days&(1<<d.day) != 0 && c.weekdays&(1<<d.weekday()) != 0
}

// date is a day of the Gregorian calendar.
type date struct{ year, month, day int }

func dateOf(t time.Time) date { return date{t.Year(), int(t.Month()), t.Day()} }

func (d date) midnight() time.Time {
	return time.Date(d.year, time.Month(d.month), d.day, 0, 0, 0, 0, time.UTC)
}

// normal carries days over into months, and months into years.
func (d date) normal() date { return dateOf(d.midnight()) }

func (d date) weekday() int { return int(d.midnight().Weekday()) }

// at is when the clocks of a place show so many minutes after midnight of the day.
func (d date) at(minutes int, place *time.Location) time.Time {
	shown := d.midnight().Add(time.Duration(minutes) * time.Minute) // what the clock shows, as if it were in UTC
	t := time.Date(d.year, time.Month(d.month), d.day, minutes/60, minutes%60, 0, 0, place)
	from, to := t.ZoneBounds()
	if !clockOf(t).Equal(shown) { // the clock was set forward over it
		if clockOf(t).After(shown) {
			return from
		}
		return to
	}
	if !from.IsZero() {
		_, now := t.Zone()
		_, before := from.Add(-time.Second).Zone()
		if first := t.Add(-time.Duration(before-now) * time.Second); before > now && first.Before(from) {
			return first
		}
	}
	return t
}

// clockOf is what a clock shows at a time, as if it were in UTC.
func clockOf(t time.Time) time.Time {
	return time.Date(t.Year(), t.Month(), t.Day(), t.Hour(), t.Minute(), t.Second(), 0, time.UTC)
}
