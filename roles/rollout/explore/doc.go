// Package explore holds the model checker of the decision procedure. It has tests only: they drive the real
// rollout.World of small fleets through every order of what may happen to them, breadth first, and check in every
// state what must always hold. docs/proof.md says what is explored and how to repeat it.
package explore
