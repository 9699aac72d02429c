package nixops

import (
	"strings"
	"time"
)

// ClockFloor is the earliest time it can be, given times that lie in the past
// (the last persisted good time, a certificate's notBefore, the source date of
// the running system). Machines without a clock of their own start before it.
func ClockFloor(past ...time.Time) time.Time {
	var floor time.Time
	for _, t := range past {
		if t.After(floor) {
			floor = t
		}
	}
	return floor
}

// SourceDate is the day in a nixos-version such as 25.11.20260301.4f1c0a9, zero if
// there is none (a system made from a local checkout says "pre-git" or "dirty").
func SourceDate(version string) time.Time {
	for part := range strings.SplitSeq(version, ".") {
		if len(part) != len("20060102") {
			continue
		}
		if day, err := time.Parse("20060102", part); err == nil {
			return day
		}
	}
	return time.Time{}
}
