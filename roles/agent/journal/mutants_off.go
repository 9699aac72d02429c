//go:build !mutants

package journal

// Breaks is always false: with the tag `mutants` the simulator breaks rules of the agent, to
// prove that it would find it.
func Breaks(string) bool { return false }
