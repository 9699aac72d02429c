package verify

import (
	"context"
	"errors"
	"fmt"
	"time"

	"nixfleet/nixops/fleet"
	"nixfleet/pki"
	"nixfleet/roles/agent/journal"
	"nixfleet/roles/protocol"
)

// UpdateHead verifies the head that an answer names, unless it is the one that is known, and
// advances the mark.
func (v *Verifier) UpdateHead(ctx context.Context, s Source, ref *protocol.HeadRef) error {
	if ref == nil || v.head != nil && v.file.Hash == ref.Hash && v.head.Channel == ref.Channel {
		return nil
	}
	if !fleet.ValidChannel(ref.Channel) {
		return refuse(protocol.EventManifestMismatch, "the answer names a head of channel %.70q", ref.Channel)
	}
	body, sig, err := s.Head(ctx, ref.Channel)
	if err != nil {
		return &Refusal{fmt.Errorf("fetch head of %s: %w", ref.Channel, err), protocol.EventManifestMissing,
			protocol.FetchFailed}
	}
	head, file, err := v.verifyHead(ref.Channel, body, sig)
	if err != nil {
		return err
	}
	last, err := v.cfg.Marks.Load()
	if err != nil {
		return err
	}
	mine, closure, err := v.concerns(ctx, s, head, file.SignedAt, last)
	if err != nil {
		return err
	}
	err = v.admits(last, file.SignedAt, fleet.Minutes(head.FreshnessWindow), head.Intent, closure)
	if err != nil && !journal.Breaks("the mark") {
		return refuse(protocol.EventManifestVerifyFailed, "head of %s: %w", ref.Channel, err)
	}
	next := &Mark{
		SignedAt: pki.At(file.SignedAt), Intent: head.Intent, Closure: closure,
		SeenHead: true, Channel: head.Channel, Window: head.FreshnessWindow,
	}
	if closure == "" && last != nil && last.Intent == head.Intent {
		next.Closure = last.Closure
	}
	if mine && (last == nil || *next != *last) {
		if err := v.cfg.Marks.store(next); err != nil {
			return err
		}
	}
	v.head, v.file, v.mine = head, file, mine
	return nil
}

// concerns says whether a head is of this host's channel, and which closure it means for this
// host where that had to be asked. A head of another channel is signed as well, and must
// neither move the mark, nor end a hold, nor look fresh in place of ours: the channel is
// believed when its tree holds this host's entry.
func (v *Verifier) concerns(ctx context.Context, s Source, head *fleet.Head, signedAt time.Time,
	last *Mark) (mine bool, closure string, err error) {
	if last.follows(head.Channel) && !last.sameTime(signedAt, head.Intent) {
		return true, "", nil
	}
	entry, err := v.entryOf(ctx, s, head)
	switch {
	case err == nil:
		return true, entry.TargetClosure, nil
	case errors.Is(err, ErrNoEntry) && (last == nil || !last.SeenHead):
		// A host without a closure has no entry, and nothing to lose.
		return false, "", nil
	}
	return false, "", err
}

func (v *Verifier) verifyHead(channel string, body, sig []byte) (*fleet.Head, fleet.Artifact, error) {
	slot, err := v.releaseKey()
	if err != nil {
		return nil, fleet.Artifact{}, err
	}
	head, file, err := fleet.VerifyHead(slot, body, sig, v.cfg.Now(), fleet.AnyAge)
	if err != nil {
		return nil, fleet.Artifact{}, refuse(protocol.EventManifestVerifyFailed, "head of %s: %w", channel, err)
	}
	if head.Channel != channel {
		return nil, fleet.Artifact{}, refuse(protocol.EventManifestMismatch, "head of %.70q was sent for channel %s",
			head.Channel, channel)
	}
	return head, file, nil
}

func (v *Verifier) byHead(ctx context.Context, s Source, t *protocol.Target, ref *protocol.HeadRef) (*Target, error) {
	head := v.head
	if head == nil || head.RolloutID != t.RolloutID {
		if head != nil && v.file.Hash != ref.Hash {
			return nil, ErrReplaced
		}
		return nil, refuse(protocol.EventManifestMismatch, "the target is of rollout %s, which is not that of the head",
			t.RolloutID)
	}
	if err := v.expired("head of "+head.Channel, v.file.SignedAt, fleet.Minutes(head.FreshnessWindow)); err != nil {
		return nil, err
	}
	entry, err := v.Entry(ctx, s)
	if err != nil {
		if v.replaced(ctx, s) {
			err = ErrReplaced
		}
		return nil, err
	}
	if err := names(entry, t); err != nil {
		return nil, err
	}
	if err := v.cfg.Marks.means(v.file.SignedAt, head.Intent, entry.TargetClosure); err != nil {
		return nil, err
	}
	return &Target{
		closure: entry.TargetClosure, rolloutID: head.RolloutID, channel: head.Channel, intent: head.Intent, byHead: true,
		wave: entry.WaveIndex, signedAt: v.file.SignedAt,
		confirm:    clampWindow(time.Duration(head.ConfirmWindowSecs) * time.Second),
		compliance: stricter(v.cfg.Compliance, head.ComplianceMode), document: v.file.Body, signature: v.file.Sig,
	}, nil
}

// replaced says whether the control plane has a newer head by now.
func (v *Verifier) replaced(ctx context.Context, s Source) bool {
	body, sig, err := s.Head(ctx, v.head.Channel)
	if err != nil {
		return false
	}
	_, file, err := v.verifyHead(v.head.Channel, body, sig)
	return err == nil && file.SignedAt.After(v.file.SignedAt)
}

// Entry is this host's entry under the newest verified head.
func (v *Verifier) Entry(ctx context.Context, s Source) (fleet.HostEntry, error) {
	return v.entryOf(ctx, s, v.head)
}

// entryOf is this host's entry under a head, by a proof that it is in the tree.
func (v *Verifier) entryOf(ctx context.Context, s Source, head *fleet.Head) (fleet.HostEntry, error) {
	proof, err := s.HeadProof(ctx, head.Channel, v.cfg.Hostname)
	if err != nil {
		return fleet.HostEntry{}, &Refusal{fmt.Errorf("fetch proof: %w", err), protocol.EventManifestMissing,
			protocol.FetchFailed}
	}
	name := v.cfg.Hostname
	if journal.Breaks("whose entry it is") {
		name = hostOf(proof.Leaf)
	}
	entry, err := head.Entry(name, proof.Leaf, proof.Index, proof.Path)
	if err != nil {
		return fleet.HostEntry{}, refuse(misnamed(err), "%w", err)
	}
	return entry, nil
}

// hostOf is the host that a leaf names, for the mutant that believes it.
func hostOf(leaf []byte) string {
	var entry fleet.HostEntry
	if err := pki.Decode(leaf, &entry); err != nil {
		return ""
	}
	return entry.Hostname
}
