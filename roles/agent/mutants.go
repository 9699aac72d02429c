//go:build mutants

package agent

// Broken names a rule that is broken. Nothing may run while it is set.
var Broken string

func broken(rule string) bool { return Broken == rule }
