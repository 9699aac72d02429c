package release

import (
	"context"
	"fmt"
	"time"

	"nixfleet/nixops/fleet"
	"nixfleet/pki"
	"nixfleet/roles/command"
)

// present is what is signed anew: the published release, after every signature in it was verified. Nothing unverified
// is ever signed.
func (r *releaser) present(ctx context.Context) (*built, error) {
	if r.signer.slot == nil {
		return nil, command.Usage("give --trust-file",
			"--resign renews only signatures that verify, and no key to verify them with is given")
	}
	body, sig, err := r.shelf().signed(ctx, fleet.FleetName)
	if err != nil {
		return nil, err
	}
	if body == nil {
		return nil, command.Hinted(fmt.Errorf("there is no release in %s", r.cfg.Dir), "make one first: nixfleet release")
	}
	now := time.Now().Add(aheadMax)
	f, _, err := fleet.Verify(r.signer.slot, body, sig, now, fleet.AnyAge, fleet.ParseFleet)
	if err != nil {
		return nil, command.Coded(3, command.Hinted(fmt.Errorf("the current release does not verify: %w", err),
			"after a change of keys give --trust-file, which knows the previous key"))
	}
	b := &built{draft: draft{ciCommit: f.Meta.CICommit}, closures: map[string]string{}}
	if b.declaration, err = fleet.ParseDeclaration(body); err != nil {
		return nil, err
	}
	var expect fleet.Members
	if f.Members != nil {
		expect = *f.Members
	}
	if b.revocations, err = presentList(ctx, r, "revocations", expect.Revocations, now,
		fleet.ParseRevocations); err != nil {
		return nil, err
	}
	if b.nonces, err = presentList(ctx, r, "bootstrapNonces", expect.BootstrapNonces, now,
		fleet.ParseNonces); err != nil {
		return nil, err
	}
	if warning := b.dropUnknown(); warning != "" {
		r.say("%s", warning)
	}
	return b, nil
}

// listFiles are the files of the lists, by the member that holds the entries.
var listFiles = map[string]string{"revocations": fleet.RevocationsName, "bootstrapNonces": fleet.NoncesName}

// presentList reads one of the lists that belong to the current release: the member of that name, in the file whose
// hash the fleet expects.
func presentList[T any, P interface {
	*T
	Metadata() pki.Metadata
}](
	ctx context.Context, r *releaser, member string, expect *string, now time.Time, parse func([]byte) (P, error),
) (fleet.List, error) {
	name := listFiles[member]
	body, sig, err := r.shelf().signed(ctx, name)
	if err != nil {
		return nil, err
	}
	if body == nil {
		if expect != nil {
			return nil, command.Coded(3, fmt.Errorf("the current release names a list that is not there: %s", name))
		}
		return nil, nil
	}
	_, file, err := fleet.Verify(r.signer.slot, body, sig, now, fleet.AnyAge, parse)
	if err != nil {
		return nil, command.Coded(3, fmt.Errorf("%s of the current release does not verify: %w", name, err))
	}
	if expect != nil && *expect != file.Hash {
		return nil, command.Coded(3, fmt.Errorf("%s belongs to another release than the current fleet", name))
	}
	list, err := fleet.ListIn(body, member)
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", name, err)
	}
	return list, nil
}
