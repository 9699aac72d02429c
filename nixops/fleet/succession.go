package fleet

import (
	"fmt"

	"nixfleet/pki"
)

// Supersedes is nil when r may take the place of prev, which was accepted
// before: it is newer, or it is the same release, and its lists pass
// CheckListsAgainst. A nil prev is superseded by all. What may not is ErrOlder
// or ErrMembers.
func (r *Release) Supersedes(prev *Release) error {
	if prev == nil {
		return nil
	}
	if r.SignedAt.Before(prev.SignedAt) {
		return fmt.Errorf("%w: signed at %s, accepted was %s", ErrOlder, pki.At(r.SignedAt), pki.At(prev.SignedAt))
	}
	if r.SignedAt.Equal(prev.SignedAt) && r.FleetHash != prev.FleetHash {
		return fmt.Errorf("%w: another release with the same signing time %s", ErrOlder, pki.At(r.SignedAt))
	}
	return r.CheckListsAgainst(prev)
}

// CheckListsAgainst is nil when the lists of r may take the place of those of
// prev. A fleet document with members binds its lists itself; for any other, a
// list that was accepted may neither vanish nor get older, since that would
// un-revoke a certificate or revive a nonce. A list without an entry is how
// entries are taken back.
func (r *Release) CheckListsAgainst(prev *Release) error {
	if prev == nil || r.Fleet.Members != nil {
		return nil
	}
	for _, list := range []struct {
		name      string
		had, has  bool
		old, next Artifact
	}{
		{RevocationsName, prev.Revocations != nil, r.Revocations != nil, prev.RevocationsFile, r.RevocationsFile},
		{NoncesName, prev.Nonces != nil, r.Nonces != nil, prev.NoncesFile, r.NoncesFile},
	} {
		switch {
		case !list.had:
		case !list.has:
			return fmt.Errorf("%w: %s was accepted before and has vanished", ErrMembers, list.name)
		case list.next.SignedAt.Before(list.old.SignedAt):
			return fmt.Errorf("%w: %s was signed at %s, accepted was %s", ErrOlder, list.name, pki.At(list.next.SignedAt), pki.At(list.old.SignedAt))
		case list.next.SignedAt.Equal(list.old.SignedAt) && list.next.Hash != list.old.Hash:
			return fmt.Errorf("%w: another %s with the same signing time %s", ErrOlder, list.name, pki.At(list.next.SignedAt))
		}
	}
	return nil
}
