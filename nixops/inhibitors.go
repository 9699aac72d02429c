package nixops

import (
	"bytes"
	"slices"

	"github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"
)

// Inhibitors returns the sorted names of what forbids a live switch from the running system to c. It follows the
// pre-switch check of NixOS (nixpkgs, switch-to-configuration-ng at 0145c6da2896513d94440e7fb41c11487aa3de16):
// switch-inhibitors is a JSON object, and a member forbids the switch only if both systems have it with different
// values. A system without the file, or with a file that is not an object, forbids nothing.
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

// inhibitors reads the members of switch-inhibitors and returns their values in canonical form.
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
