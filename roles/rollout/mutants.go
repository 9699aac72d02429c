//go:build mutants

package rollout

import "slices"

// Broken names a rule that is broken. Nothing may run while it is set.
var Broken string

func broken(rule string) bool { return Broken == rule }

// Without takes a gate away until restore is called.
func Without(name string) (restore func()) {
	all := gates
	gates = slices.DeleteFunc(slices.Clone(gates), func(g gate) bool { return g.name == name })
	if len(gates) == len(all) {
		panic("no gate " + name)
	}
	return func() { gates = all }
}

// Mute has all gates hold without a word until restore is called.
func Mute() (restore func()) {
	all := sentences
	sentences = map[string]sentence{}
	return func() { sentences = all }
}
