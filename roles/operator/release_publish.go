package operator

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"nixfleet/nixops/disk"
	"nixfleet/nixops/fleet"
	"nixfleet/pki"
	"nixfleet/roles/command"
)

const (
	// attempts to put a release on a branch that others push to.
	attempts = 5
	// aheadMax is how far the previous release's time may lie in the future
	// before something is wrong with a clock.
	aheadMax = 30 * time.Second
	// everAged accepts a signature of any age: for what is about to be signed anew.
	everAged = 100 * 365 * day
)

// sealed is a signed release: files by their names in the release directory,
// each artifact before its signature.
type sealed struct {
	names    []string
	files    map[string][]byte
	obsolete []string
}

func (s *sealed) add(name string, body, sig []byte) {
	s.names = append(s.names, name, name+fleet.SignatureSuffix)
	s.files[name], s.files[name+fleet.SignatureSuffix] = body, sig
}

// publish seals the draft and puts it in place. When somebody else's commit
// came between, it reads anew and tries again.
func (r *releaser) publish(ctx context.Context, d *draft) error {
	unlock, err := lockDir(r.dir, r.c.Bool("dry-run"))
	if err != nil {
		return err
	}
	defer unlock()
	r.learn(d)
	for attempt := 1; ; attempt++ {
		err := r.tryPublish(ctx, d)
		if !errors.Is(err, errMoved) {
			return err
		}
		if attempt == attempts {
			return command.Hinted(fmt.Errorf("push to %s: others were faster %d times", r.repo.branch, attempts), "release again")
		}
		r.say("%s moved while this release was made; reading it again", r.repo.branch)
		if err := r.repo.read(ctx, r.c.Bool("resign")); err != nil {
			return err
		}
		if r.c.Bool("resign") {
			if d, err = r.present(ctx); err != nil {
				return err
			}
		}
	}
}

func (r *releaser) tryPublish(ctx context.Context, d *draft) error {
	r.now = time.Now()
	s, err := r.seal(ctx, d)
	if err != nil || s == nil || r.c.Bool("dry-run") {
		return err
	}
	staged, err := os.MkdirTemp("", "nixfleet-release-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(staged)
	if err := r.stage(staged, s); err != nil {
		return err
	}
	if err := r.trustOfHosts(d, s.files[r.name], s.files[r.name+fleet.SignatureSuffix]); err != nil {
		return err
	}
	r.summary.Released, r.summary.Resigned = true, r.c.Bool("resign")
	if r.repo == nil {
		return r.write(s)
	}
	ci := ""
	if d.ciCommit != nil {
		ci = *d.ciCommit
	}
	commit, err := r.repo.commit(ctx, staged, s.names, s.obsolete, ci, r.now)
	if err != nil {
		r.summary.Released = false
		return err
	}
	r.summary.GitCommit = &commit
	if r.repo.remote != "" {
		r.say("pushed %s to %s", short(commit), r.repo.branch)
	}
	moved, err := r.repo.advance(ctx, commit)
	if err != nil {
		return err
	}
	if !moved {
		r.say("this checkout is behind %s now and was left as it is: git pull", r.repo.branch)
		return nil
	}
	if err := r.write(s); err != nil {
		return err
	}
	return r.repo.settle(ctx)
}

// seal stamps and signs. It returns nil when nothing but the time would change
// and --reuse-unchanged-signature was given.
func (r *releaser) seal(ctx context.Context, d *draft) (*sealed, error) {
	previous, err := r.previousFleet(ctx)
	if err != nil {
		return nil, err
	}
	signedAt := r.now.UTC().Truncate(time.Second)
	if previous != nil && previous.Meta.SignedAt != nil {
		last := previous.Meta.SignedAt.Time
		if last.Sub(r.now) > aheadMax {
			return nil, command.Hinted(fmt.Errorf("the present release is signed at %s, which is in the future: time cannot go backwards", previous.Meta.SignedAt), "is this machine's clock right? the hosts refuse whatever is older than what they have seen")
		}
		if !signedAt.After(last) {
			signedAt = last.Truncate(time.Second).Add(time.Second)
		}
		if r.c.Bool("reuse-unchanged-signature") {
			same, err := r.unchanged(ctx, d, previous)
			if err != nil {
				return nil, err
			}
			if same {
				r.summary.Unchanged, r.summary.SignedAt = true, previous.Meta.SignedAt
				return nil, nil
			}
		}
	}
	stamped, err := r.stamp(d, pki.At(signedAt), d.ciCommit)
	if err != nil {
		return nil, err
	}
	f, err := fleet.ParseFleet(stamped.fleet)
	if err != nil {
		return nil, fmt.Errorf("the stamped fleet: %w", err)
	}
	at := pki.At(signedAt)
	r.summary.SignedAt, r.summary.CICommit = &at, d.ciCommit
	r.summary.FleetHash, r.summary.DryRun = pki.HashHex(stamped.fleet), r.c.Bool("dry-run")
	r.summary.Changed, r.summary.PrunedNonce = changes(previous, f), stamped.pruned
	for _, change := range fleet.PolicyChanges(previous, f) {
		r.say("warning: %s", change)
	}
	// Signed in the order of v1, which a hook may count on.
	artifacts := []struct {
		name string
		body []byte
	}{{r.name, stamped.fleet}, {fleet.RevocationsName, stamped.revocations}, {fleet.NoncesName, stamped.nonces}}
	for _, a := range artifacts {
		if a.body == nil {
			if err := r.refuseVanishing(ctx, a.name); err != nil {
				return nil, err
			}
		}
	}
	s := &sealed{files: map[string][]byte{}}
	for _, a := range artifacts {
		if a.body == nil {
			continue
		}
		if err := r.sign(ctx, s, a.name, a.body); err != nil {
			return nil, err
		}
	}
	if err := r.sealChannels(ctx, s, f); err != nil {
		return nil, err
	}
	// Written in another: the fleet, which names the rest, comes last.
	slices.SortStableFunc(s.names, func(a, b string) int { return cmp.Compare(r.rank(a), r.rank(b)) })
	return s, r.findObsolete(ctx, s)
}

// rank is 1 for the fleet and its signature, 0 for everything else.
func (r *releaser) rank(name string) int {
	if strings.TrimSuffix(name, fleet.SignatureSuffix) == r.name {
		return 1
	}
	return 0
}

// refuseVanishing: a list that the present release has and this one would not
// is a forgotten flag, and would un-revoke every certificate in silence.
func (r *releaser) refuseVanishing(ctx context.Context, name string) error {
	had, err := r.file(ctx, name)
	if err != nil || had == nil {
		return err
	}
	flag := strings.TrimSuffix(name, ".json")
	return command.Hinted(fmt.Errorf("the present release has %s and this one would not", name),
		"give --%s-attr or --%s-file; to give up the list for good, remove the file from the release directory", flag, flag)
}

func (r *releaser) sign(ctx context.Context, s *sealed, name string, body []byte) error {
	if r.c.Bool("dry-run") {
		return nil
	}
	sig, err := r.signer.sign(ctx, body, name)
	if err != nil {
		return err
	}
	s.add(name, body, sig)
	return nil
}

// sealChannels projects and signs the manifest and the head of each channel
// that has a closure.
func (r *releaser) sealChannels(ctx context.Context, s *sealed, f *fleet.Fleet) error {
	r.summary.Channels = map[string]channelSummary{}
	for _, channel := range sortedKeys(f.Channels) {
		m, ok, err := fleet.Project(f, r.summary.FleetHash, channel)
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
		before := r.previousHead(ctx, channel)
		confirm, lease := r.windows(before)
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
		r.summary.Channels[channel] = channelSummary{
			RolloutID: id, Intent: head.Intent, OpenedAt: head.OpenedAt.String(),
			Hosts: len(m.HostSet), NewRollout: head.OpenedAt.Equal(r.summary.SignedAt.Time),
		}
	}
	return nil
}

// windows are the two times a head grants. Signing anew keeps those of the
// present head unless others are asked for.
func (r *releaser) windows(before *fleet.Head) (confirm, lease time.Duration) {
	confirm, lease = r.c.Duration("confirm-window"), r.c.Duration("lease")
	if before == nil || !r.c.Bool("resign") {
		return confirm, lease
	}
	if !r.c.IsSet("confirm-window") {
		confirm = time.Duration(before.ConfirmWindowSecs) * time.Second
	}
	if !r.c.IsSet("lease") {
		lease = time.Duration(before.LeaseSecs) * time.Second
	}
	return confirm, lease
}

// stampedFiles are the canonical bytes to sign; nil for a list the fleet does
// not keep.
type stampedFiles struct {
	fleet, revocations, nonces []byte
	pruned                     int
}

// stamp fills in who, when and what was built. The lists come first, since the
// fleet names their hashes.
func (r *releaser) stamp(d *draft, signedAt pki.Timestamp, ciCommit *string) (*stampedFiles, error) {
	meta := func(had any) map[string]any {
		m, _ := had.(map[string]any)
		m = maps.Clone(m)
		if m == nil {
			m = map[string]any{}
		}
		m["schemaVersion"], m["signedAt"], m["signatureAlgorithm"], m["ciCommit"] = 1, signedAt.String(), r.signer.algorithm, nil
		if ciCommit != nil {
			m["ciCommit"] = *ciCommit
		}
		return m
	}
	out := &stampedFiles{}
	members := map[string]any{"revocations": nil, "bootstrapNonces": nil}
	if d.revocations != nil {
		body, err := written(map[string]any{"schemaVersion": 1, "revocations": *d.revocations, "meta": meta(nil)}, fleet.ParseRevocations)
		if err != nil {
			return nil, fmt.Errorf("list of revocations: %w", err)
		}
		out.revocations, members["revocations"] = body, pki.HashHex(body)
	}
	if d.nonces != nil {
		kept := slices.DeleteFunc(slices.Clone(*d.nonces), func(entry any) bool {
			e, _ := entry.(map[string]any)
			text, _ := e["expiresAt"].(string)
			at, err := pki.ParseTimestamp(text)
			return err == nil && at.Before(signedAt.Time)
		})
		out.pruned = len(*d.nonces) - len(kept)
		if kept == nil {
			kept = []any{}
		}
		body, err := written(map[string]any{"schemaVersion": 1, "bootstrapNonces": kept, "meta": meta(nil)}, fleet.ParseNonces)
		if err != nil {
			return nil, fmt.Errorf("list of bootstrap nonces: %w", err)
		}
		out.nonces, members["bootstrapNonces"] = body, pki.HashHex(body)
	}
	doc := maps.Clone(d.doc)
	doc["meta"], doc["members"] = meta(d.doc["meta"]), members
	var err error
	if out.fleet, err = written(doc, fleet.ParseFleet); err != nil {
		return nil, fmt.Errorf("the stamped fleet: %w", err)
	}
	return out, nil
}

// findObsolete lists heads of channels that are no longer released.
func (r *releaser) findObsolete(ctx context.Context, s *sealed) error {
	var present []string
	if r.repo != nil {
		var err error
		if present, err = r.repo.names(ctx, fleet.HeadsDir); err != nil {
			return err
		}
	} else if entries, err := os.ReadDir(filepath.Join(r.dir, fleet.HeadsDir)); err == nil {
		for _, e := range entries {
			present = append(present, path.Join(fleet.HeadsDir, e.Name()))
		}
	}
	for _, name := range present {
		if _, ok := s.files[name]; !ok {
			s.obsolete = append(s.obsolete, name)
		}
	}
	return nil
}

// stage writes the release into an empty directory and loads it there the way
// a control plane will.
func (r *releaser) stage(dir string, s *sealed) error {
	for _, name := range s.names {
		file := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(file), 0o700); err != nil {
			return fmt.Errorf("stage release: %w", err)
		}
		if err := os.WriteFile(file, s.files[name], 0o600); err != nil {
			return fmt.Errorf("stage release: %w", err)
		}
	}
	if r.signer.slot == nil || r.c.String("smoke-verify") == "false" {
		return nil
	}
	trust := &pki.Trust{SchemaVersion: 1, CIReleaseKey: *r.signer.slot}
	_, err := fleet.LoadRelease(os.DirFS(dir), fleet.LoadOptions{
		Trust: trust, Now: time.Now(), Window: defaultWindow, FleetName: r.name,
		RequireRevocations: s.files[fleet.RevocationsName] != nil, RequireNonces: s.files[fleet.NoncesName] != nil,
	})
	if err != nil {
		return command.Coded(3, fmt.Errorf("the signed release does not verify: %w", err))
	}
	return nil
}

// write puts the files into the release directory, each by rename and every
// artifact before its signature; the fleet, which names the rest, comes last.
func (r *releaser) write(s *sealed) error {
	for _, name := range s.names {
		file := filepath.Join(r.dir, filepath.FromSlash(name))
		if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
			return fmt.Errorf("write release: %w", err)
		}
		if err := disk.Replace(file, s.files[name], 0o644); err != nil {
			return err
		}
	}
	for _, name := range s.obsolete {
		if err := os.Remove(filepath.Join(r.dir, filepath.FromSlash(name))); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("remove what is no longer released: %w", err)
		}
	}
	return nil
}

// lockDir keeps two releases from writing one directory at the same time.
func lockDir(dir string, dry bool) (func(), error) {
	if dry {
		return func() {}, nil
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return nil, fmt.Errorf("make %s: %w", dir, err)
	}
	lock, err := disk.TryLockDir(dir)
	if errors.Is(err, disk.ErrLocked) {
		return nil, command.Hinted(fmt.Errorf("another release is being written to %s", dir), "wait for it to end")
	}
	if err != nil {
		return nil, err
	}
	return func() { lock.Close() }, nil
}
