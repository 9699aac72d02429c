package fleet

import (
	"fmt"
	"maps"
	"slices"
)

// PolicyChange is a word of a channel that decides what a failure does, where it differs between two releases: the
// words have defaults, so that a newer mkFleet may change them for a fleet.nix that says nothing.
type PolicyChange struct {
	Channel string
	Member  string // as it is written in fleet.nix
	Was, Is string
	Does    string // what the present word does
}

func (c PolicyChange) String() string {
	return fmt.Sprintf("channel %s: %s was %s and is %s: %s; write %s = %q to have it as before",
		c.Channel, c.Member, c.Was, c.Is, c.Does, c.Member, c.Was)
}

// whatItDoes explains the words that PolicyChanges compares.
var whatItDoes = map[string]string{
	OnFailureHalt:     "when a host fails, the others keep what they run",
	OnFailureRollback: "when a host fails, those that run the new release are sent back as well",
	ModeDisabled:      "evidence is not asked for",
	ModePermissive:    "what fails is reported and changes nothing",
	ModeEnforce:       "a host without evidence, or with a control that fails, returns to what it ran",
}

// PolicyChanges compares the channels that both releases have, sorted by name. A release that comes first has none.
func PolicyChanges(old, young *Fleet) []PolicyChange {
	if old == nil {
		return nil
	}
	var changes []PolicyChange
	add := func(channel, member, was, is string) {
		if was != is {
			changes = append(changes, PolicyChange{Channel: channel, Member: member, Was: was, Is: is, Does: whatItDoes[is]})
		}
	}
	for _, name := range slices.Sorted(maps.Keys(young.Channels)) {
		is := young.Channels[name]
		was, ok := old.Channels[name]
		if !ok {
			continue
		}
		before, had := old.RolloutPolicies[was.RolloutPolicy]
		after, has := young.RolloutPolicies[is.RolloutPolicy]
		if had && has {
			member := "rolloutPolicies." + is.RolloutPolicy + ".onHealthFailure"
			add(name, member, string(before.OnHealthFailure), string(after.OnHealthFailure))
		}
		add(name, "channels."+name+".compliance.mode", was.Compliance.Mode, is.Compliance.Mode)
	}
	return changes
}
