// Package source is where releases come from: a git repository, a directory,
// pairs of URLs; and the directory in which the last accepted one is kept.
//
// It promises that what it gives does not change any more, that a release is
// read from one commit or read again when it changed meanwhile, and that all
// reads are bounded. It verifies nothing.
package source

import (
	"context"
	"io/fs"
)

// Source yields releases.
type Source interface {
	// Fetch reads the current release. known is the Revision of the last
	// snapshot that was accepted, empty when there is none; an equal one gives
	// Unchanged and no FS. One Fetch at a time.
	Fetch(ctx context.Context, known string) (Fetched, error)
	String() string
}

// Fetched is a release directory as it was at one moment: its documents do
// not change any more. Only manifests of older releases, the names of which are
// hashes of their content, may be read when they are asked for.
type Fetched struct {
	FS        fs.FS  // rooted at the release directory
	Revision  string // commit, or a hash of what was read
	Unchanged bool
}
