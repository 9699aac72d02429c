package fleet_test

import (
	"math/rand/v2"
	"regexp"
	"strings"
	"testing"

	"nixfleet/nixops/fleet"
)

// TestFormsAreThePatternsOfTheContract compares what is read by hand with the patterns, on names that are nearly right.
func TestFormsAreThePatternsOfTheContract(t *testing.T) {
	closure := regexp.MustCompile(`^[0-9abcdfghijklmnpqrsvwxyz]{32}-[A-Za-z0-9+?=_-][A-Za-z0-9+?=_.-]{0,210}$`)
	id := regexp.MustCompile(`^[0-9a-f]{64}$`)
	const good = "0a1b2c3d4f5g6h7i8j9k0l1m2n3p4q5r-nixos-system-web-01-25.11"
	names := []string{"", good, good[:32], good[:33], good[:34], good[:33] + ".a", good[:33] + strings.Repeat("a", 211),
		good[:33] + strings.Repeat("a", 212), good + "\n", strings.Repeat("0", 64), strings.Repeat("0", 63),
		strings.Repeat("0", 65), strings.Repeat("F", 64), strings.Repeat("0", 63) + "\n"}
	random := rand.New(rand.NewPCG(1, 2))
	const odd = "eotu.+?=_-/ \n\x00\xffAZ09:"
	for range 5000 {
		name := []byte(names[random.IntN(len(names))])
		if len(name) > 0 {
			name[random.IntN(len(name))] = odd[random.IntN(len(odd))]
		}
		names = append(names, string(name))
	}
	for _, name := range names {
		if got, want := fleet.ValidClosure(name), closure.MatchString(name); got != want {
			t.Errorf("closure %q: %v, want %v", name, got, want)
		}
		if got, want := fleet.ValidRolloutID(name), id.MatchString(name); got != want {
			t.Errorf("rollout id %q: %v, want %v", name, got, want)
		}
	}
}
