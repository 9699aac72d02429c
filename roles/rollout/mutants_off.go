//go:build !mutants

package rollout

// broken is always false: with the tag `mutants` the simulator breaks rules, to
// prove that it would find it.
func broken(string) bool { return false }
