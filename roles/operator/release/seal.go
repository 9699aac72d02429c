package release

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"nixfleet/nixops/fleet"
	"nixfleet/pki"
	"nixfleet/roles/command"
)

// aheadMax is how far the previous release's time may lie in the future before something is wrong with a clock.
const aheadMax = 30 * time.Second

// sealed is a signed release: files by their names in the release directory, each artifact before its signature.
type sealed struct {
	names    []string
	files    map[string][]byte
	obsolete []string // files of the current release that this one does not have

	signedAt pki.Timestamp
	hash     string // of the fleet
	channels map[string]Channel
	changed  []HostChange
	pruned   []string // hosts whose bootstrap nonces had expired
}

func (s *sealed) add(name string, body, sig []byte) {
	s.names = append(s.names, name, name+fleet.SignatureSuffix)
	s.files[name], s.files[name+fleet.SignatureSuffix] = body, sig
}

// stamp is what a release says of its signing.
func (r *releaser) stamp(at pki.Timestamp, ciCommit *string) fleet.Stamp {
	return fleet.Stamp{SignedAt: at, Algorithm: r.signer.algorithm, CICommit: ciCommit}
}

// timeOf is when a release is signed that follows another: later than it, in whole seconds.
func timeOf(previous *fleet.Fleet, now time.Time) (pki.Timestamp, error) {
	signedAt := now.UTC().Truncate(time.Second)
	if previous == nil || previous.Meta.SignedAt == nil {
		return pki.At(signedAt), nil
	}
	last := previous.Meta.SignedAt.Time
	if last.Sub(now) > aheadMax {
		err := fmt.Errorf("the current release is signed at %s, which is in the future: a release cannot be dated back",
			previous.Meta.SignedAt)
		return pki.Timestamp{}, command.Hinted(err,
			"is this machine's clock right? hosts refuse what is older than what they have seen")
	}
	if !signedAt.After(last) {
		signedAt = last.Truncate(time.Second).Add(time.Second)
	}
	return pki.At(signedAt), nil
}

// seal stamps and signs a release that follows previous, which may be nil.
func (r *releaser) seal(ctx context.Context, b *built, previous *fleet.Fleet, now time.Time) (*sealed, error) {
	at, err := timeOf(previous, now)
	if err != nil {
		return nil, err
	}
	stamped, err := b.declaration.Stamp(r.stamp(at, b.ciCommit), b.revocations, b.nonces)
	if err != nil {
		return nil, err
	}
	f, err := fleet.ParseFleet(stamped.Fleet)
	if err != nil {
		return nil, fmt.Errorf("the stamped fleet: %w", err)
	}
	s := &sealed{
		files: map[string][]byte{}, signedAt: at, hash: pki.HashHex(stamped.Fleet),
		changed: changes(previous, f), pruned: stamped.Pruned,
	}
	for _, change := range fleet.PolicyChanges(previous, f) {
		r.say("warning: %s", change)
	}
	// Signed in the order of v1, which a hook may count on.
	artifacts := []struct {
		name string
		body []byte
	}{{r.cfg.FleetName, stamped.Fleet}, {fleet.RevocationsName, stamped.Revocations}, {fleet.NoncesName, stamped.Nonces}}
	for _, a := range artifacts {
		if a.body == nil {
			if err := r.refuseVanishing(ctx, a.name); err != nil {
				return nil, err
			}
		}
	}
	for _, a := range artifacts {
		if a.body == nil {
			continue
		}
		if err := r.sign(ctx, s, a.name, a.body); err != nil {
			return nil, err
		}
	}
	if err := r.sealChannels(ctx, s, f, now); err != nil {
		return nil, err
	}
	// Written in another order: the fleet, which names the rest, comes last.
	slices.SortStableFunc(s.names, func(a, b string) int {
		return cmp.Compare(rank(r.cfg.FleetName, a), rank(r.cfg.FleetName, b))
	})
	return s, r.findObsolete(ctx, s)
}

// rank is 1 for the fleet and its signature, 0 for everything else.
func rank(fleetName, name string) int {
	if strings.TrimSuffix(name, fleet.SignatureSuffix) == fleetName {
		return 1
	}
	return 0
}

// refuseVanishing refuses to leave out a list that the current release has: that is a forgotten flag, and would
// un-revoke every certificate in silence.
func (r *releaser) refuseVanishing(ctx context.Context, name string) error {
	had, err := r.shelf().file(ctx, name)
	if err == nil && had == nil {
		had, err = r.own().file(ctx, name)
	}
	if err != nil || had == nil {
		return err
	}
	flag := strings.TrimSuffix(name, ".json")
	return command.Hinted(fmt.Errorf("the current release has %s and this one would not", name),
		"give --%s-attr or --%s-file; to give up the list for good, remove the file from the release directory", flag, flag)
}

func (r *releaser) sign(ctx context.Context, s *sealed, name string, body []byte) error {
	if r.cfg.DryRun {
		return nil
	}
	sig, err := r.signer.sign(ctx, body, name)
	if err != nil {
		return err
	}
	s.add(name, body, sig)
	return nil
}

// sealChannels projects and signs the manifest and the head of each channel that has a closure.
func (r *releaser) sealChannels(ctx context.Context, s *sealed, f *fleet.Fleet, now time.Time) error {
	s.channels = map[string]Channel{}
	for _, channel := range sortedKeys(f.Channels) {
		m, ok, err := fleet.Project(f, s.hash, channel)
		if err != nil {
			return fmt.Errorf("project channel %s: %w", channel, err)
		}
		if !ok {
			r.say("channel %s has no host with a closure: no rollout", channel)
			continue
		}
		body, err := pki.Marshal(m)
		if err != nil {
			return fmt.Errorf("encode manifest of %s: %w", channel, err)
		}
		id := pki.HashHex(body)
		before := r.previousHead(ctx, channel, now)
		confirm, lease := r.cfg.Windows.after(before, r.cfg.Resign)
		head, err := fleet.ProjectHead(f, m, id, before, confirm, lease)
		if err != nil {
			return fmt.Errorf("project head of %s: %w", channel, err)
		}
		headBody, err := pki.Marshal(head)
		if err != nil {
			return fmt.Errorf("encode head of %s: %w", channel, err)
		}
		if err := r.sign(ctx, s, fleet.ManifestName(id), body); err != nil {
			return err
		}
		if err := r.sign(ctx, s, fleet.HeadName(channel), headBody); err != nil {
			return err
		}
		s.channels[channel] = Channel{
			RolloutID: id, Intent: head.Intent, OpenedAt: head.OpenedAt.String(),
			Hosts: len(m.HostSet), NewRollout: head.OpenedAt.Equal(s.signedAt.Time),
		}
	}
	return nil
}

// after are the two times that the head after another grants. Signing anew keeps those of the current head unless
// others are asked for.
func (w Windows) after(before *fleet.Head, resign bool) (confirm, lease time.Duration) {
	confirm, lease = w.Confirm, w.Lease
	if before == nil || !resign {
		return confirm, lease
	}
	if !w.SetConfirm {
		confirm = time.Duration(before.ConfirmWindowSecs) * time.Second
	}
	if !w.SetLease {
		lease = time.Duration(before.LeaseSecs) * time.Second
	}
	return confirm, lease
}

// findObsolete lists heads of channels that are no longer released.
func (r *releaser) findObsolete(ctx context.Context, s *sealed) error {
	present, err := r.own().names(ctx, fleet.HeadsDir)
	if err != nil {
		return err
	}
	for _, name := range present {
		if _, ok := s.files[name]; !ok {
			s.obsolete = append(s.obsolete, name)
		}
	}
	return nil
}
