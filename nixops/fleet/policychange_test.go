package fleet

import (
	"slices"
	"testing"
)

// A word that decides what a failure does and differs from the release before is named, by channel and in both
// directions; a channel that is new has none.
func TestPolicyChanges(t *testing.T) {
	before, _ := vectorFleet(t)
	after, _ := vectorFleet(t)
	if changes := PolicyChanges(before, after); len(changes) != 0 {
		t.Errorf("equal releases: %v", changes)
	}
	if changes := PolicyChanges(nil, after); len(changes) != 0 {
		t.Errorf("the first release: %v", changes)
	}
	fast := after.RolloutPolicies["fast"]
	fast.OnHealthFailure = OnFailureRollback
	after.RolloutPolicies["fast"] = fast
	stable := after.Channels["stable"]
	stable.Compliance.Mode = ModePermissive
	after.Channels["stable"] = stable
	after.Channels["young"] = after.Channels["edge"]
	var got []string
	for _, c := range PolicyChanges(before, after) {
		got = append(got, c.String())
	}
	want := []string{
		"channel edge: rolloutPolicies.fast.onHealthFailure was halt and is rollback-and-halt: when a host fails, " +
			"those that run the new release are sent back as well; write rolloutPolicies.fast.onHealthFailure = \"halt\" to " +
			"have it as before",
		"channel stable: channels.stable.compliance.mode was enforce and is permissive: " +
			"what fails is reported and changes nothing; write channels.stable.compliance.mode = \"enforce\" to have it as " +
			"before",
	}
	if !slices.Equal(got, want) {
		t.Errorf("changes %q\nwant %q", got, want)
	}
}
