// Package pki decides which bytes to believe.
//
// It holds the canonical form of JSON (RFC 8785), keys and signatures, the trust
// roots of a machine, signed artifacts, Merkle proofs (RFC 9162), bootstrap
// tokens, and the certificates of the fleet. It verifies bytes and leaves their
// meaning to its callers: what an artifact says is decoded by a callback that
// returns the few members pki must check.
//
// It refuses whatever two readers could understand in two ways: duplicate keys,
// lone surrogates, integers that a double cannot hold, signatures and keys that
// are not in their one encoding. Secrets never appear in its errors.
package pki
