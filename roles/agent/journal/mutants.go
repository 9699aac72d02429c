//go:build mutants

package journal

// Broken names a rule of the agent that is broken. Nothing may run while it is set.
var Broken string

// Breaks reports whether a rule is broken.
func Breaks(rule string) bool { return Broken == rule }
