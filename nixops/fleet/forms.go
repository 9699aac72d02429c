package fleet

import "strings"

// The forms of names in a release. They are read by hand: every host of a release is looked at, and patterns of this
// size were a third of what the executable does before it reads its first argument.

const (
	nixDigits   = "0123456789abcdfghijklmnpqrsvwxyz" // of Nix' base 32
	storeMarks  = "+?=_-."
	maxStore    = 211 // bytes of a name behind the hash
	hashLength  = 32
	hexDigits   = "0123456789abcdef"
	idLength    = 64
	commitWidth = 40
)

// ValidClosure reports whether base is the base name of a store path.
func ValidClosure(base string) bool {
	if len(base) < hashLength+2 || len(base) > hashLength+1+maxStore || base[hashLength] != '-' ||
		!madeOf(base[:hashLength], nixDigits) || base[hashLength+1] == '.' {
		return false
	}
	for i := hashLength + 1; i < len(base); i++ {
		if !alphanumeric(base[i]) && strings.IndexByte(storeMarks, base[i]) < 0 {
			return false
		}
	}
	return true
}

// ValidRolloutID reports whether id is 64 lower-case hexadecimal digits. Ids
// come from the network and become file names: check first.
func ValidRolloutID(id string) bool { return len(id) == idLength && madeOf(id, hexDigits) }

// fullCommit is narrow because a pin becomes part of a flake's URL, where a branch would move and anything else would
// be another URL.
func fullCommit(commit string) bool { return len(commit) == commitWidth && madeOf(commit, hexDigits) }

// madeOf says whether s has no other bytes than those of digits.
func madeOf(s, digits string) bool {
	for i := range len(s) {
		if strings.IndexByte(digits, s[i]) < 0 {
			return false
		}
	}
	return true
}
