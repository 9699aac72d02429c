package cp

import (
	"io/fs"
	"sync"
	"sync/atomic"
	"time"

	"nixfleet/nixops/fleet"
)

// current is the snapshot in force, nil before there is one.
type current struct{ atomic.Pointer[snapshot] }

// snapshot is one accepted release with what requests look up in it. It is
// swapped as a whole and never changed.
type snapshot struct {
	rel      *fleet.Release
	revision string
	files    fs.FS // the release directory, for manifests of older releases
	revoked  map[string]time.Time
	nonces   map[string]fleet.BootstrapNonce

	keys sync.Map // host name -> ed25519.PublicKey, parsed when first asked for
}

func newSnapshot(rel *fleet.Release, revision string, files fs.FS) *snapshot {
	s := &snapshot{rel: rel, revision: revision, files: files, revoked: map[string]time.Time{}}
	if rel.Revocations != nil {
		for _, r := range rel.Revocations.Revocations {
			s.revoked[r.Hostname] = r.NotBefore.Time // a later entry wins
		}
	}
	if rel.Nonces != nil {
		s.nonces = map[string]fleet.BootstrapNonce{}
		for _, n := range rel.Nonces.BootstrapNonces {
			s.nonces[n.Nonce] = n
		}
	}
	return s
}
