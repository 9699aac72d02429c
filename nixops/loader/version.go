package loader

import (
	"strings"
	"unicode"
)

// compareVersions compares two versions as systemd-boot does, by the version format of the UAPI group
// (https://uapi-group.org/specifications/specs/version_format_specification). The result is negative if a is older.
func compareVersions(a, b string) int {
	for {
		a, b = strings.TrimLeftFunc(a, meaningless), strings.TrimLeftFunc(b, meaningless)
		if r, both := separator(a, b, '~'); r != 0 {
			return r
		} else if both {
			a, b = a[1:], b[1:]
			continue
		}
		if a == "" || b == "" {
			return order(a != "", b != "")
		}
		sep, r := false, 0
		for _, c := range []byte{'-', '^', '.'} {
			if r, sep = separator(a, b, c); r != 0 {
				return r
			} else if sep {
				break
			}
		}
		if sep {
			a, b = a[1:], b[1:]
			continue
		}
		if r, a, b = segment(a, b); r != 0 {
			return r
		}
	}
}

// segment compares the leading numbers, or else the leading letters, and returns what follows them.
func segment(a, b string) (r int, restA, restB string) {
	if isDigit(a[0]) || isDigit(b[0]) {
		numA, numB := leading(a, isDigit), leading(b, isDigit)
		restA, restB = a[len(numA):], b[len(numB):]
		if r := order(numA != "", numB != ""); r != 0 {
			return r, "", ""
		}
		numA, numB = strings.TrimLeft(numA, "0"), strings.TrimLeft(numB, "0")
		if r := len(numA) - len(numB); r != 0 {
			return r, "", ""
		}
		return strings.Compare(numA, numB), restA, restB
	}
	wordA, wordB := leading(a, isLetter), leading(b, isLetter)
	return strings.Compare(wordA, wordB), a[len(wordA):], b[len(wordB):]
}

// separator compares two texts of which at least one may begin with the separator; the one that does is older. both
// says that both do.
func separator(a, b string, c byte) (r int, both bool) {
	startsA, startsB := a != "" && a[0] == c, b != "" && b[0] == c
	return order(!startsA, !startsB), startsA && startsB
}

// order compares two booleans: false comes first.
func order(a, b bool) int {
	switch {
	case a == b:
		return 0
	case b:
		return -1
	}
	return 1
}

func leading(s string, is func(byte) bool) string {
	n := 0
	for n < len(s) && is(s[n]) {
		n++
	}
	return s[:n]
}

func isDigit(c byte) bool  { return '0' <= c && c <= '9' }
func isLetter(c byte) bool { return 'a' <= c|0x20 && c|0x20 <= 'z' }

func meaningless(r rune) bool {
	return r > unicode.MaxASCII || !isDigit(byte(r)) && !isLetter(byte(r)) && !strings.ContainsRune("-.~^", r)
}
