package release

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"nixfleet/nixops/disk"
	"nixfleet/nixops/fleet"
	"nixfleet/pki"
	"nixfleet/roles/command"
)

// attempts to put a release on a branch that others push to.
const attempts = 5

// publish seals what was built and puts it in place. When somebody else's commit came between, it reads anew and tries
// again.
func (r *releaser) publish(ctx context.Context, b *built) (*Summary, error) {
	unlock, err := lockDir(r.cfg.Dir, r.cfg.DryRun)
	if err != nil {
		return nil, err
	}
	defer unlock()
	r.learn(b)
	for attempt := 1; ; attempt++ {
		summary, err := r.tryPublish(ctx, b)
		if !errors.Is(err, errMoved) {
			return summary, err
		}
		if attempt == attempts {
			return nil, command.Hinted(fmt.Errorf("push to %s: the branch moved %d times meanwhile", r.repo.branch, attempts),
				"release again")
		}
		r.say("%s moved while this release was made; reading it again", r.repo.branch)
		if err := r.repo.read(ctx, r.cfg.Resign); err != nil {
			return nil, err
		}
		if r.cfg.Resign {
			if b, err = r.present(ctx); err != nil {
				return nil, err
			}
		}
	}
}

func (r *releaser) tryPublish(ctx context.Context, b *built) (*Summary, error) {
	now := time.Now()
	previous, err := r.shelf().fleet(ctx)
	if err != nil {
		return nil, err
	}
	summary := &Summary{ExpiredPins: b.expired}
	if r.cfg.ReuseUnchanged && previous != nil && previous.Meta.SignedAt != nil {
		if _, err := timeOf(previous, now); err != nil {
			return nil, err
		}
		same, err := r.unchanged(ctx, b, previous)
		if err != nil {
			return nil, err
		}
		if same {
			summary.Unchanged, summary.SignedAt = true, previous.Meta.SignedAt
			return summary, nil
		}
	}
	s, err := r.seal(ctx, b, previous, now)
	if err != nil {
		return nil, err
	}
	summary.SignedAt, summary.CICommit, summary.FleetHash = &s.signedAt, b.ciCommit, s.hash
	summary.Channels, summary.Changed = s.channels, s.changed
	summary.PrunedNonce, summary.PrunedHosts = len(s.pruned), s.pruned
	if summary.DryRun = r.cfg.DryRun; r.cfg.DryRun {
		return summary, nil
	}
	staged, err := os.MkdirTemp("", "nixfleet-release-")
	if err != nil {
		return nil, err
	}
	defer os.RemoveAll(staged)
	if err := r.stage(staged, s); err != nil {
		return nil, err
	}
	if err := r.trustOfHosts(b, s.files[r.cfg.FleetName], s.files[r.cfg.FleetName+fleet.SignatureSuffix]); err != nil {
		return nil, err
	}
	summary.Released, summary.Resigned = true, r.cfg.Resign
	if r.repo == nil {
		return summary, r.write(s)
	}
	summary.GitCommit, err = r.commit(ctx, staged, s, b.ciCommit, now)
	return summary, err
}

// commit puts a sealed release onto the branch, and into the checkout where that has not moved.
func (r *releaser) commit(
	ctx context.Context, staged string, s *sealed, ciCommit *string, now time.Time,
) (*string, error) {
	describes := ""
	if ciCommit != nil {
		describes = *ciCommit
	}
	commit, err := r.repo.commit(ctx, staged, s.names, s.obsolete, describes, now)
	if err != nil {
		return nil, err
	}
	if r.repo.remote != "" {
		r.say("pushed %s to %s", command.Short(commit), r.repo.branch)
	}
	moved, err := r.repo.advance(ctx, commit)
	if err != nil {
		return nil, err
	}
	if !moved {
		r.say("this checkout is behind %s now and was left as it is: git pull", r.repo.branch)
		return &commit, nil
	}
	if err := r.write(s); err != nil {
		return nil, err
	}
	return &commit, r.repo.settle(ctx)
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
	if r.signer.slot == nil || r.cfg.NoLoad {
		return nil
	}
	trust := &pki.Trust{SchemaVersion: 1, CIReleaseKey: *r.signer.slot}
	_, err := fleet.LoadRelease(os.DirFS(dir), fleet.LoadOptions{
		Trust: trust, Now: time.Now(), Window: fleet.DefaultWindow, FleetName: r.cfg.FleetName,
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
		file := filepath.Join(r.cfg.Dir, filepath.FromSlash(name))
		if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
			return fmt.Errorf("write release: %w", err)
		}
		if err := disk.Replace(file, s.files[name], 0o644); err != nil {
			return err
		}
	}
	for _, name := range s.obsolete {
		if err := os.Remove(filepath.Join(r.cfg.Dir, filepath.FromSlash(name))); err != nil &&
			!errors.Is(err, fs.ErrNotExist) {
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
	return func() { _ = disk.Unlock(lock) }, nil
}
