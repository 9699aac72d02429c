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
		return fmt.Errorf("%w: it was signed at %s, the accepted one at %s",
			ErrOlder, pki.At(r.SignedAt), pki.At(prev.SignedAt))
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
			return fmt.Errorf("%w: %s was signed at %s, the accepted one at %s", ErrOlder, list.name, pki.At(list.next.SignedAt),
				pki.At(list.old.SignedAt))
		case list.next.SignedAt.Equal(list.old.SignedAt) && list.next.Hash != list.old.Hash:
			return fmt.Errorf("%w: another %s with the same signing time %s", ErrOlder, list.name, pki.At(list.next.SignedAt))
		}
	}
	return nil
}

// ErrNoHeads means that a release has no heads where the accepted one had some: a
// forge has dropped them, or a tool of v1 has signed it. Test with errors.Is.
var ErrNoHeads = fmt.Errorf("%w: the release accepted before had heads, this one has none", ErrMembers)

// CheckHeadsAgainst is ErrNoHeads when r has no heads and prev had some: every host
// that has seen a head would wait for one.
func (r *Release) CheckHeadsAgainst(prev *Release) error {
	if prev == nil || !prev.HasHeads() || r.HasHeads() || len(r.Channels) == 0 {
		return nil
	}
	return ErrNoHeads
}

// Completed is for two copies of one release, of which prev was accepted
// before. It returns the release with all manifests and heads that either copy
// has, and whether r has one that prev lacks: a source may have a release
// before all of its files.
func (r *Release) Completed(prev *Release) (*Release, bool) {
	whole, more := *r, false
	whole.Channels = make(map[string]*ChannelRelease, len(r.Channels))
	for name, c := range r.Channels {
		before := prev.Channels[name]
		switch {
		case before == nil:
			more = true
		case before.Head == nil && c.Head != nil, len(before.ManifestFile.Body) == 0 && len(c.ManifestFile.Body) > 0:
			more = true
			if c.Head == nil || len(c.ManifestFile.Body) == 0 {
				c = merged(c, before)
			}
		default:
			c = before
		}
		whole.Channels[name] = c
	}
	return &whole, more
}

// merged is c with the head and the manifest's file of before where c has none.
func merged(c, before *ChannelRelease) *ChannelRelease {
	both := *c
	if both.Head == nil {
		both.Head, both.HeadFile, both.OpenedAt, both.Intent = before.Head, before.HeadFile, before.OpenedAt, before.Intent
	}
	if len(both.ManifestFile.Body) == 0 {
		both.ManifestFile = before.ManifestFile
	}
	return &both
}
