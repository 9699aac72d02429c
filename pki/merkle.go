package pki

import (
	"encoding/hex"
	"errors"
	"fmt"

	"github.com/transparency-dev/merkle/proof"
	"github.com/transparency-dev/merkle/rfc6962"
)

// Tree is the Merkle tree of RFC 9162 §2.1 with SHA-256 over a list of leaves.
// All levels are kept, so that a proof costs O(log n).
type Tree struct {
	levels [][][]byte // levels[0] are the leaf hashes; a last odd node moves up as it is
}

// NewTree hashes the leaves.
func NewTree(leaves [][]byte) *Tree {
	level := make([][]byte, len(leaves))
	for i, leaf := range leaves {
		level[i] = rfc6962.DefaultHasher.HashLeaf(leaf)
	}
	t := &Tree{levels: [][][]byte{level}}
	for len(level) > 1 {
		up := make([][]byte, 0, (len(level)+1)/2)
		for i := 0; i+1 < len(level); i += 2 {
			up = append(up, rfc6962.DefaultHasher.HashChildren(level[i], level[i+1]))
		}
		if len(level)%2 == 1 {
			up = append(up, level[len(level)-1])
		}
		t.levels = append(t.levels, up)
		level = up
	}
	return t
}

// Root is the tree head, lower-case hex. An empty tree has the hash of nothing.
func (t *Tree) Root() string {
	top := t.levels[len(t.levels)-1]
	if len(top) == 0 {
		return hex.EncodeToString(rfc6962.DefaultHasher.EmptyRoot())
	}
	return hex.EncodeToString(top[0])
}

// Size is the number of leaves.
func (t *Tree) Size() int { return len(t.levels[0]) }

// Proof is the inclusion path of the leaf at index, from the leaf upwards, in
// lower-case hex.
func (t *Tree) Proof(index int) ([]string, error) {
	if index < 0 || index >= t.Size() {
		return nil, fmt.Errorf("proof of leaf %d: the tree has %d leaves", index, t.Size())
	}
	path := []string{}
	for _, level := range t.levels[:len(t.levels)-1] {
		if sibling := index ^ 1; sibling < len(level) {
			path = append(path, hex.EncodeToString(level[sibling]))
		}
		index /= 2
	}
	return path, nil
}

// VerifyInclusion checks that leaf stands at index of a tree of size leaves
// with the root rootHex.
func VerifyInclusion(rootHex string, size, index int, leaf []byte, path []string) error {
	root, err := hex.DecodeString(rootHex)
	if err != nil || index < 0 || size <= index {
		return fmt.Errorf("inclusion proof: leaf %d of %d under %.80q is not possible", index, size, rootHex)
	}
	hashes := make([][]byte, len(path))
	for i, p := range path {
		if hashes[i], err = hex.DecodeString(p); err != nil || len(hashes[i]) != rfc6962.DefaultHasher.Size() {
			return fmt.Errorf("inclusion proof: path entry %d is not a hash", i)
		}
	}
	hash := rfc6962.DefaultHasher.HashLeaf(leaf)
	err = proof.VerifyInclusion(rfc6962.DefaultHasher, uint64(index), uint64(size), hash, hashes, root)
	if _, mismatch := errors.AsType[proof.RootMismatchError](err); mismatch {
		// The library's words are two lists of bytes over several lines.
		return fmt.Errorf("inclusion proof: leaf %d of %d is not under root %s", index, size, rootHex)
	}
	if err != nil {
		return fmt.Errorf("inclusion proof: %w", err)
	}
	return nil
}
