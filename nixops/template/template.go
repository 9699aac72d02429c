// Package template holds the fleet repository that `nixfleet init` writes and
// that `nix flake init -t` copies: one tree for both.
package template

import "embed"

// Fleet is the tree, below fleet/.
//
//go:embed all:fleet
var Fleet embed.FS
