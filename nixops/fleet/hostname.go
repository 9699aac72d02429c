package fleet

import "strings"

// Bounds of host names, in bytes.
const (
	maxHostName = 253
	maxLabel    = 63
)

// ValidHostName says whether a host can have this name in a fleet: labels of letters, digits and inner hyphens or
// underscores, joined by dots. It is wider than what NixOS takes as networking.hostName, for fleets that tell hosts of
// several sites apart by a domain. An address is not a name.
func ValidHostName(name string) bool {
	address := strings.Contains(name, ".") && strings.Trim(name, "0123456789.") == ""
	if len(name) > maxHostName || address {
		return false
	}
	for label := range strings.SplitSeq(name, ".") {
		if label == "" || len(label) > maxLabel || !alphanumeric(label[0]) || !alphanumeric(label[len(label)-1]) {
			return false
		}
		for i := range len(label) {
			if c := label[i]; !alphanumeric(c) && c != '-' && c != '_' {
				return false
			}
		}
	}
	return true
}

func alphanumeric(c byte) bool {
	return c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9'
}
