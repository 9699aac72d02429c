package loader

import "strings"

// matches says whether an entry's id matches a pattern, as systemd-boot sees it: `*`, `?`, sets in brackets, and a
// backslash before what stands for itself. Neither capital letters nor a missing suffix matter differently from
// what the loader does: it folds the letters of both, and a suffix belongs to the id.
func matches(pattern, id string) bool {
	return match(strings.ToLower(pattern), strings.ToLower(id))
}

// match goes back to the last star only, so that its time is bounded by the product of the two lengths.
func match(pattern, id string) bool {
	star, mark := "", ""
	starred := false
	for id != "" || pattern != "" {
		if pattern != "" && pattern[0] == '*' {
			star, mark, starred = pattern[1:], id, true
			pattern = star
			continue
		}
		if rest, ok := matchOne(pattern, id); ok {
			pattern, id = rest, id[1:]
			continue
		}
		if !starred || mark == "" {
			return false
		}
		mark = mark[1:]
		pattern, id = star, mark
	}
	return true
}

// matchOne matches one character and returns the rest of the pattern.
func matchOne(pattern, id string) (rest string, ok bool) {
	if pattern == "" || id == "" {
		return "", false
	}
	switch pattern[0] {
	case '?':
		return pattern[1:], true
	case '\\':
		return pattern[min(2, len(pattern)):], len(pattern) > 1 && pattern[1] == id[0]
	case '[':
		return matchSet(pattern[1:], id[0])
	}
	return pattern[1:], pattern[0] == id[0]
}

// matchSet matches a set such as a-z or +. behind its opening bracket.
func matchSet(pattern string, c byte) (rest string, ok bool) {
	for first := true; pattern != ""; first = false {
		if pattern[0] == ']' && !first {
			return pattern[1:], ok
		}
		low, high := pattern[0], pattern[0]
		pattern = pattern[1:]
		if len(pattern) > 1 && pattern[0] == '-' && pattern[1] != ']' {
			high, pattern = pattern[1], pattern[2:]
		}
		ok = ok || low <= c && c <= high
	}
	return "", false
}
