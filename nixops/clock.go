package nixops

import (
	"strings"
	"time"
)

// ClockFloor returns the latest of several times that are known to be in the past (the last good time that was
// stored, a certificate's notBefore, the source date of the running system). It cannot be earlier than that now. The
// clock of a machine without a battery for it starts earlier.
func ClockFloor(past ...time.Time) time.Time {
	var floor time.Time
	for _, t := range past {
		if t.After(floor) {
			floor = t
		}
	}
	return floor
}

// SourceDate returns the day in a nixos-version such as 25.11.20260301.4f1c0a9. It returns the zero time if the
// version has no day, as that of a system from a local checkout, which says "pre-git" or "dirty".
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
