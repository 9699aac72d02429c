package operator

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/go-json-experiment/json"

	"nixfleet/nixops/fleet"
	"nixfleet/pki"
	"nixfleet/roles/command"
)

// file reads from the release that is the present one: the commit it will be
// put upon, or the directory. Nil when there is none.
func (r *releaser) file(ctx context.Context, name string) ([]byte, error) {
	if name == fleet.FleetName || name == fleet.FleetName+fleet.SignatureSuffix {
		name = r.name + strings.TrimPrefix(name, fleet.FleetName)
	}
	if r.repo != nil {
		return r.repo.file(ctx, name)
	}
	data, err := readFile(filepath.Join(r.dir, name), pki.MaxDocument)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	return data, err
}

// unchanged says whether a release made now would hold the very bytes that are
// published, had it been made at the same moment from the same commit. Closures
// alone prove nothing: a wave, a key or a window may have changed.
func (r *releaser) unchanged(ctx context.Context, d *draft, previous *fleet.Fleet) (bool, error) {
	again, err := r.stamp(d, *previous.Meta.SignedAt, previous.Meta.CICommit)
	if err != nil {
		return false, err
	}
	for name, body := range map[string][]byte{fleet.FleetName: again.fleet, fleet.RevocationsName: again.revocations, fleet.NoncesName: again.nonces} {
		had, err := r.file(ctx, name)
		if err != nil {
			return false, err
		}
		if !bytes.Equal(had, body) {
			return false, nil
		}
		if body == nil {
			continue
		}
		if whole, err := r.whole(ctx, name); err != nil || !whole {
			return false, err
		}
	}
	// A head says more than its fleet: the windows that were asked for.
	hash := pki.HashHex(again.fleet)
	for channel := range previous.Channels {
		if _, ok, err := fleet.Project(previous, hash, channel); err != nil || !ok {
			continue
		}
		h := r.previousHead(ctx, channel)
		if h == nil || h.FleetResolvedHash != hash ||
			time.Duration(h.ConfirmWindowSecs)*time.Second != r.c.Duration("confirm-window").Truncate(time.Second) ||
			time.Duration(h.LeaseSecs)*time.Second != r.c.Duration("lease").Truncate(time.Second) {
			return false, nil
		}
		for _, name := range []string{fleet.ManifestName(h.RolloutID), fleet.HeadName(channel)} {
			if whole, err := r.whole(ctx, name); err != nil || !whole {
				return false, err
			}
		}
	}
	return true, nil
}

// whole: the file is there with a signature that verifies, where the keys are known.
func (r *releaser) whole(ctx context.Context, name string) (bool, error) {
	body, err := r.file(ctx, name)
	if err != nil || body == nil {
		return false, err
	}
	sig, err := r.file(ctx, name+fleet.SignatureSuffix)
	if err != nil {
		return false, err
	}
	return len(sig) == pki.SignatureSize && (r.signer.slot == nil || verifies(r.signer.slot, body, sig)), nil
}

func verifies(slot *pki.KeySlot, body, sig []byte) bool {
	return slices.ContainsFunc(slot.Active(time.Now()), func(k pki.PublicKey) bool { return k.Verify(body, sig) })
}

// previousFleet is the fleet of the present release; nil when there is none.
// Its signature is not asked for: nothing but a lower bound of time is taken
// from it.
func (r *releaser) previousFleet(ctx context.Context) (*fleet.Fleet, error) {
	body, err := r.file(ctx, fleet.FleetName)
	if err != nil || body == nil {
		return nil, err
	}
	canonical, err := pki.Canonicalize(body)
	if err == nil {
		var f *fleet.Fleet
		if f, err = fleet.ParseFleet(canonical); err == nil {
			return f, nil
		}
	}
	return nil, command.Hinted(fmt.Errorf("the present release in %s cannot be read: %w", r.dir, err), "restore it from git; if it is lost, remove it and release anew")
}

// previousHead carries openedAt over to a new release of the same intent. A
// head that is not signed by the fleet carries nothing.
func (r *releaser) previousHead(ctx context.Context, channel string) *fleet.Head {
	name := fleet.HeadName(channel)
	body, err := r.file(ctx, name)
	if err != nil || body == nil {
		return nil
	}
	sig, err := r.file(ctx, name+fleet.SignatureSuffix)
	if err != nil {
		return nil
	}
	if r.signer.slot == nil {
		canonical, err := pki.Canonicalize(body)
		if err != nil {
			return nil
		}
		h, err := fleet.ParseHead(canonical)
		if err != nil {
			return nil
		}
		return h
	}
	h, _, err := verified(r.signer.slot, body, sig, r.now.Add(aheadMax), everAged, fleet.ParseHead)
	if err != nil {
		r.say("warning: the present head of %s does not verify (%v): its rollout opens anew", channel, err)
		return nil
	}
	return h
}

// changes lists the hosts whose closure differs between two releases.
func changes(old, young *fleet.Fleet) []hostChange {
	list := []hostChange{}
	had := map[string]*string{}
	if old != nil {
		for name, h := range old.Hosts {
			had[name] = h.ClosureHash
		}
	}
	for _, name := range sortedKeys(young.Hosts) {
		from, to := had[name], young.Hosts[name].ClosureHash
		if (from == nil) != (to == nil) || from != nil && *from != *to {
			list = append(list, hostChange{Host: name, From: from, To: to})
		}
		delete(had, name)
	}
	for _, name := range sortedKeys(had) {
		list = append(list, hostChange{Host: name, From: had[name]})
	}
	return list
}

// present is the draft that --resign signs anew: the published release, after
// every signature in it was verified. Nothing unverified is ever signed.
func (r *releaser) present(ctx context.Context) (*draft, error) {
	if r.signer.slot == nil {
		return nil, command.Usage("give --trust-file", "--resign signs only what is signed already, and with a hook nothing says by whom")
	}
	read := func(name string) ([]byte, []byte, error) {
		body, err := r.file(ctx, name)
		if err != nil || body == nil {
			return nil, nil, err
		}
		sig, err := r.file(ctx, name+fleet.SignatureSuffix)
		return body, sig, err
	}
	body, sig, err := read(fleet.FleetName)
	if err != nil {
		return nil, err
	}
	if body == nil {
		return nil, command.Hinted(fmt.Errorf("there is no release in %s", r.dir), "make one first: nixfleet release")
	}
	now := r.now.Add(aheadMax)
	f, _, err := verified(r.signer.slot, body, sig, now, everAged, fleet.ParseFleet)
	if err != nil {
		return nil, command.Coded(3, command.Hinted(fmt.Errorf("the present release does not verify: %w", err), "after a change of keys give --trust-file, which knows the previous key"))
	}
	d := &draft{ciCommit: f.Meta.CICommit, closures: map[string]string{}}
	if d.doc, err = object(body); err != nil {
		return nil, err
	}
	var expect fleet.Members
	if f.Members != nil {
		expect = *f.Members
	}
	if d.revocations, err = presentList(r.signer.slot, now, fleet.RevocationsName, "revocations", expect.Revocations, read, fleet.ParseRevocations); err != nil {
		return nil, err
	}
	d.nonces, err = presentList(r.signer.slot, now, fleet.NoncesName, "bootstrapNonces", expect.BootstrapNonces, read, fleet.ParseNonces)
	return d, err
}

// presentList reads one of the lists that belong to the present release.
func presentList[T interface{ Metadata() pki.Metadata }](slot *pki.KeySlot, now time.Time, name, key string, expect *string, read func(string) ([]byte, []byte, error), parse func([]byte) (T, error)) (*[]any, error) {
	body, sig, err := read(name)
	if err != nil {
		return nil, err
	}
	if body == nil {
		if expect != nil {
			return nil, command.Coded(3, fmt.Errorf("the present release names a list that is not there: %s", name))
		}
		return nil, nil
	}
	_, v, err := verified(slot, body, sig, now, everAged, parse)
	if err != nil {
		return nil, command.Coded(3, fmt.Errorf("%s of the present release does not verify: %w", name, err))
	}
	if expect != nil && *expect != v.Hash {
		return nil, command.Coded(3, fmt.Errorf("%s belongs to another release than the present fleet", name))
	}
	var doc map[string]any
	if err := json.Unmarshal(v.Canonical, &doc); err != nil {
		return nil, fmt.Errorf("read %s: %w", name, err)
	}
	entries, _ := doc[key].([]any)
	if entries == nil {
		entries = []any{}
	}
	return &entries, nil
}
