package pki

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"slices"
	"strings"
	"testing"
)

func leaves(n int) [][]byte {
	out := make([][]byte, n)
	for i := range out {
		out[i] = fmt.Appendf(nil, `{"hostname":"host-%d"}`, i)
	}
	return out
}

// The tree of the Certificate Transparency test suite, known from RFC 6962's
// implementations: eight leaves and the roots of their prefixes.
func TestTreeKnownRoots(t *testing.T) {
	inputs := []string{"", "00", "10", "2021", "3031", "40414243", "5051525354555657", "606162636465666768696a6b6c6d6e6f"}
	roots := []string{
		"e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855",
		"6e340b9cffb37a989ca544e6bb780a2c78901d3fb33738768511a30617afa01d",
		"fac54203e7cc696cf0dfcb42c92a1d9dbaf70ad9e621f4bd8d98662f00e3c125",
		"aeb6bcfe274b70a14fb067a5e5578264db0fa9b51af5e0ba159158f329e06e77",
		"d37ee418976dd95753c1c73862b9398fa2a2cf9b4ff0fdfe8b30cd95209614b7",
		"4e3bbb1f7b478dcfe71fb631631519a3bca12c9aefca1612bfce4c13a86264d4",
		"76e67dadbcdf1e10e1b74ddc608abd2f98dfb16fbce75277b5232a127f2087ef",
		"ddb89be403809e325750d3d263cd78929c2942b7942a34b77e122c9594a74c8c",
		"5dc9da79a70659a9ad559cb701ded9a2ab9d823aad2f4960cfe370eff4604328",
	}
	var leaves [][]byte
	for i, want := range roots {
		if got := NewTree(leaves).Root(); got != want {
			t.Errorf("%d leaves: got %s, want %s", i, got, want)
		}
		if i < len(inputs) {
			leaf, err := hex.DecodeString(inputs[i])
			if err != nil {
				t.Fatal(err)
			}
			leaves = append(leaves, leaf)
		}
	}
}

func TestEveryProofVerifies(t *testing.T) {
	for n := 1; n <= 70; n++ {
		data := leaves(n)
		tree := NewTree(data)
		for i := range n {
			path, err := tree.Proof(i)
			if err != nil {
				t.Fatal(err)
			}
			if err := VerifyInclusion(tree.Root(), n, i, data[i], path); err != nil {
				t.Fatalf("leaf %d of %d: %v", i, n, err)
			}
			if n > 1 && VerifyInclusion(tree.Root(), n, (i+1)%n, data[i], path) == nil {
				t.Fatalf("leaf %d of %d passes for its neighbour", i, n)
			}
		}
	}
	for _, i := range []int{-1, 3, 1 << 40} {
		if _, err := NewTree(leaves(3)).Proof(i); err == nil {
			t.Errorf("proof of leaf %d of 3", i)
		}
	}
	if tree := NewTree(nil); tree.Size() != 0 || VerifyInclusion(tree.Root(), 0, 0, nil, nil) == nil {
		t.Error("something is in the empty tree")
	}
}

func TestVerifyInclusionRefuses(t *testing.T) {
	data := leaves(10)
	tree := NewTree(data)
	path, err := tree.Proof(4)
	if err != nil {
		t.Fatal(err)
	}
	inner := sha256.Sum256([]byte("x"))
	for _, c := range []struct {
		name        string
		root        string
		size, index int
		leaf        string
		path        []string
	}{
		{"other leaf", tree.Root(), 10, 4, "x", path},
		{"other root", hex.EncodeToString(inner[:]), 10, 4, string(data[4]), path},
		{"short root", tree.Root()[:62], 10, 4, string(data[4]), path},
		{"no root", "", 10, 4, string(data[4]), path},
		{"root is not hex", strings.Repeat("z", 64), 10, 4, string(data[4]), path},
		{"index beyond", tree.Root(), 10, 10, string(data[4]), path},
		{"negative index", tree.Root(), 10, -1, string(data[4]), path},
		{"negative size", tree.Root(), -10, 4, string(data[4]), path},
		{"short path", tree.Root(), 10, 4, string(data[4]), path[:len(path)-1]},
		{"long path", tree.Root(), 10, 4, string(data[4]), append(path[:len(path):len(path)], path[0])},
		{"endless path", tree.Root(), 10, 4, string(data[4]), make([]string, 1<<16)},
		{"no path", tree.Root(), 10, 4, string(data[4]), nil},
		{"short hash", tree.Root(), 10, 4, string(data[4]), append([]string{path[0][:62]}, path[1:]...)},
		{"no hex", tree.Root(), 10, 4, string(data[4]), append([]string{strings.Repeat("z", 64)}, path[1:]...)},
	} {
		if err := VerifyInclusion(c.root, c.size, c.index, []byte(c.leaf), c.path); err == nil {
			t.Errorf("%s: verified", c.name)
		}
	}
	// An inner node cannot stand as a leaf: the two are hashed apart.
	two := NewTree(leaves(2))
	node := append(two.levels[0][0], two.levels[0][1]...)
	if VerifyInclusion(two.Root(), 1, 0, node, nil) == nil {
		t.Error("an inner node passes for a leaf")
	}
}

// Nothing but the tree's own path leads from a leaf to the root.
func FuzzVerifyInclusion(f *testing.F) {
	f.Add(7, 3, []byte(`{"hostname":"host-3"}`), []byte{})
	f.Add(1, 0, []byte(`{"hostname":"host-0"}`), []byte{})
	f.Add(100, 99, []byte(`{"hostname":"host-99"}`), []byte("xyz"))
	f.Fuzz(func(t *testing.T, n, index int, leaf, noise []byte) {
		if n < 1 || n > 200 {
			return
		}
		data := leaves(n)
		tree := NewTree(data)
		path, err := tree.Proof(index)
		if err != nil {
			path = []string{hex.EncodeToString(noise)}
		}
		for i, b := range noise {
			if len(path) > 0 && b%8 == 0 {
				sum := sha256.Sum256(noise[i:])
				path[int(b/8)%len(path)] = hex.EncodeToString(sum[:])
			}
		}
		if VerifyInclusion(tree.Root(), n, index, leaf, path) != nil {
			return
		}
		if want, err := tree.Proof(index); err != nil || !slices.Equal(path, want) || !bytes.Equal(leaf, data[index]) {
			t.Fatalf("leaf %q at %d of %d by %q", leaf, index, n, path)
		}
	})
}
