package nixops

import (
	"bytes"
	"slices"

	"github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"
)

// Inhibitors names what keeps a running system from being switched to c live, sorted, as
// the pre-switch check of NixOS finds it (nixpkgs, switch-to-configuration-ng at
// 0145c6da2896513d94440e7fb41c11487aa3de16): switch-inhibitors is a JSON object, and a
// member holds the switch only where both systems have it and its values differ. A system
// without the file, or with one that is not an object, inhibits nothing.
func (c Closure) Inhibitors(running Closure) []string {
	is, will := inhibitors(running.SwitchInhibitor), inhibitors(c.SwitchInhibitor)
	var names []string
	for name, value := range will {
		if old, both := is[name]; both && !bytes.Equal(old, value) {
			names = append(names, name)
		}
	}
	slices.Sort(names)
	return names
}

// inhibitors reads the members of switch-inhibitors, their values in canonical form.
func inhibitors(text string) map[string]jsontext.Value {
	var members map[string]jsontext.Value
	if err := json.Unmarshal([]byte(text), &members, jsontext.AllowDuplicateNames(true)); err != nil {
		return nil
	}
	for name, value := range members {
		if err := value.Canonicalize(); err != nil {
			return nil
		}
		members[name] = value
	}
	return members
}
