package release

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"nixfleet/nixops/fleet"
	"nixfleet/pki"
	"nixfleet/roles/command"
)

// A shelf is where a release lies: the commit that the next one will be put upon, or a directory.
type shelf struct {
	dir, fleetName string
	repo           *repository // nil: the directory counts
}

// shelf is where the release lies that this one follows.
func (r *releaser) shelf() shelf {
	return shelf{dir: cmp.Or(r.follows, r.cfg.Dir), fleetName: r.cfg.FleetName, repo: r.repo}
}

// own is where the release lies that this one replaces.
func (r *releaser) own() shelf {
	return shelf{dir: r.cfg.Dir, fleetName: r.cfg.FleetName, repo: r.repo}
}

// inForceDir is the release directory of a fleet that does not name another one.
const inForceDir = "releases"

// findInForce looks for the release in force when the release directory is another, such as one that `plan` is to read:
// without it, everything in a new directory would be new. It is the one that is named, or the usual directory beside
// when that has a release of the same hosts.
func (r *releaser) findInForce(ctx context.Context, d *draft) error {
	follows := r.cfg.Source.InForce
	if follows == "" {
		follows = filepath.Join(filepath.Dir(r.cfg.Dir), inForceDir)
		if r.repo != nil || r.cfg.ReuseUnchanged || follows == r.cfg.Dir {
			return nil
		}
	}
	f, err := shelf{dir: follows, fleetName: r.cfg.FleetName}.fleet(ctx)
	if err != nil {
		return err
	}
	if f == nil && r.cfg.Source.InForce != "" {
		return command.Hinted(fmt.Errorf("there is no release in %s", follows), "--in-force names the release directory "+
			"that this release is compared with")
	}
	if f == nil || r.cfg.Source.InForce == "" && !slices.ContainsFunc(sortedKeys(f.Hosts), d.declaration.HasHost) {
		return nil
	}
	r.say("comparing with the release in %s", follows)
	r.follows = follows
	return nil
}

// file reads a file of the current release; nil when there is none.
func (s shelf) file(ctx context.Context, name string) ([]byte, error) {
	if name == fleet.FleetName || name == fleet.FleetName+fleet.SignatureSuffix {
		name = s.fleetName + strings.TrimPrefix(name, fleet.FleetName)
	}
	if s.repo != nil {
		return s.repo.file(ctx, name)
	}
	data, err := command.ReadFile(filepath.Join(s.dir, name), pki.MaxDocument)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	return data, err
}

// signed reads a file of the current release with its signature; nil when it is not there.
func (s shelf) signed(ctx context.Context, name string) (body, sig []byte, err error) {
	body, err = s.file(ctx, name)
	if err != nil || body == nil {
		return nil, nil, err
	}
	sig, err = s.file(ctx, name+fleet.SignatureSuffix)
	return body, sig, err
}

// names lists the files below a directory of the current release.
func (s shelf) names(ctx context.Context, dir string) ([]string, error) {
	if s.repo != nil {
		return s.repo.names(ctx, dir)
	}
	var names []string
	entries, err := os.ReadDir(filepath.Join(s.dir, dir))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	for _, e := range entries {
		names = append(names, path.Join(dir, e.Name()))
	}
	return names, nil
}

// fleet is the fleet of the current release; nil when there is none.
// Its signature is not asked for: nothing but a lower bound of time is taken
// from it.
func (s shelf) fleet(ctx context.Context) (*fleet.Fleet, error) {
	body, err := s.file(ctx, fleet.FleetName)
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
	return nil, command.Hinted(fmt.Errorf("the current release in %s cannot be read: %w", s.dir, err),
		"restore it from git; if it is lost, remove it and release anew")
}

// unchanged says whether a release made now would hold the very bytes that are published, had it been made at the same
// moment from the same commit. Closures alone prove nothing: a wave, a key or a window may have changed.
func (r *releaser) unchanged(ctx context.Context, b *built, previous *fleet.Fleet) (bool, error) {
	again, err := b.declaration.Stamp(r.stamp(*previous.Meta.SignedAt, previous.Meta.CICommit), b.revocations, b.nonces)
	if err != nil {
		return false, err
	}
	for name, body := range map[string][]byte{
		fleet.FleetName: again.Fleet, fleet.RevocationsName: again.Revocations, fleet.NoncesName: again.Nonces,
	} {
		had, err := r.shelf().file(ctx, name)
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
	hash := pki.HashHex(again.Fleet)
	for channel := range previous.Channels {
		if _, ok, err := fleet.Project(previous, hash, channel); err != nil || !ok {
			continue
		}
		h := r.previousHead(ctx, channel, time.Now())
		if h == nil || h.FleetResolvedHash != hash || !r.cfg.Windows.are(h) {
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

// are says whether a head grants these windows, which it has in whole seconds.
func (w Windows) are(h *fleet.Head) bool {
	return time.Duration(h.ConfirmWindowSecs)*time.Second == w.Confirm.Truncate(time.Second) &&
		time.Duration(h.LeaseSecs)*time.Second == w.Lease.Truncate(time.Second)
}

// whole says whether a file is there with a signature that verifies, where the keys are known.
func (r *releaser) whole(ctx context.Context, name string) (bool, error) {
	body, sig, err := r.shelf().signed(ctx, name)
	if err != nil || body == nil {
		return false, err
	}
	return len(sig) == pki.SignatureSize && (r.signer.slot == nil || verifies(r.signer.slot, body, sig)), nil
}

func verifies(slot *pki.KeySlot, body, sig []byte) bool {
	return slices.ContainsFunc(slot.Active(time.Now()), func(k pki.PublicKey) bool { return k.Verify(body, sig) })
}

// previousHead carries openedAt over to a new release of the same intent. A
// head that is not signed by the fleet carries nothing.
func (r *releaser) previousHead(ctx context.Context, channel string, now time.Time) *fleet.Head {
	name := fleet.HeadName(channel)
	body, sig, err := r.shelf().signed(ctx, name)
	if err != nil || body == nil {
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
	h, _, err := fleet.VerifyHead(r.signer.slot, body, sig, now.Add(aheadMax), fleet.AnyAge)
	if err != nil {
		r.say("warning: the current head of %s does not verify (%v): its rollout begins again", channel, err)
		return nil
	}
	return h
}

// changes lists the hosts whose closure differs between two releases.
func changes(old, young *fleet.Fleet) []HostChange {
	list := []HostChange{}
	had := map[string]*string{}
	if old != nil {
		for name, h := range old.Hosts {
			had[name] = h.ClosureHash
		}
	}
	for _, name := range sortedKeys(young.Hosts) {
		from, to := had[name], young.Hosts[name].ClosureHash
		if (from == nil) != (to == nil) || from != nil && *from != *to {
			list = append(list, HostChange{Host: name, From: from, To: to})
		}
		delete(had, name)
	}
	for _, name := range sortedKeys(had) {
		list = append(list, HostChange{Host: name, From: had[name]})
	}
	return list
}
