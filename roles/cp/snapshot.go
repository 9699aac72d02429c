package cp

import (
	"context"
	"crypto/ed25519"
	"io/fs"
	"path/filepath"
	"sync"
	"time"

	"nixfleet/nixops/fleet"
	"nixfleet/pki"
	"nixfleet/roles/cp/source"
	"nixfleet/roles/rollout"
)

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

// key is the declared key of a host, nil when there is none.
func (s *snapshot) key(hostname string) ed25519.PublicKey {
	if key, ok := s.keys.Load(hostname); ok {
		return key.(ed25519.PublicKey)
	}
	h := s.rel.Fleet.Hosts[hostname]
	if h == nil || h.Pubkey == nil {
		return nil
	}
	key, err := pki.ParseHostKey(*h.Pubkey)
	if err != nil {
		return nil
	}
	s.keys.Store(hostname, key)
	return key
}

func (s *server) acceptedDir() string { return filepath.Join(s.cfg.StateDir, "accepted") }

// loadOptions say what a release must satisfy now. Only a source of ours
// promises its manifests; the v1 sources deliver them one by one or not at all.
func (s *server) loadOptions(window time.Duration) (fleet.LoadOptions, error) {
	trust, _, err := s.trust.get()
	if trust == nil {
		return fleet.LoadOptions{}, err
	}
	return fleet.LoadOptions{
		Trust: trust, Now: time.Now(), Window: window,
		RequireRevocations: s.cfg.Strict || s.cfg.RevocationsSource.Given(), RequireNonces: s.cfg.Strict || s.cfg.NoncesSource.Given(),
		ManifestsElsewhere: s.cfg.Source == "",
	}, nil
}

// anyAge accepts a signature however old: what was accepted once stays the
// floor below which nothing is accepted again.
const anyAge = 200 * 365 * 24 * time.Hour

// restore takes the last accepted release from disk, verified anew. One that
// has become too old to serve, or lacks a list that is wanted now, still is the
// floor.
func (s *server) restore() {
	for _, dir := range source.Kept(s.acceptedDir()) {
		o, err := s.loadOptions(anyAge)
		if err != nil {
			s.log.Error().Err(err).Msg("trust file not loaded")
			return
		}
		wanted := o
		o.RequireRevocations, o.RequireNonces = false, false
		rel, err := fleet.LoadRelease(dir, o)
		if err != nil {
			s.log.Error().Err(err).Msg("last accepted release not restored")
			continue
		}
		s.floor = rel
		if age := time.Since(rel.SignedAt); age > s.cfg.FreshnessWindow+pki.ClockSlack {
			s.log.Warn().Time("signed_at", rel.SignedAt).Msg("last accepted release is too old to serve")
			return
		}
		if wanted.RequireRevocations && rel.Revocations == nil || wanted.RequireNonces && rel.Nonces == nil {
			s.log.Warn().Time("signed_at", rel.SignedAt).Msg("last accepted release lacks the revocations or the bootstrap nonces, which are required")
			return
		}
		s.install(newSnapshot(rel, "", dir))
		return
	}
}

// consider verifies what a source gave and, when it is newer, puts it in force.
func (s *server) consider(got source.Fetched, fleetName string) error {
	o, err := s.loadOptions(s.cfg.FreshnessWindow)
	if err != nil {
		return err
	}
	o.FleetName = fleetName
	rel, err := fleet.LoadRelease(got.FS, o)
	if err != nil {
		return err
	}
	if err := rel.Supersedes(s.floor); err != nil {
		return err
	}
	if current := s.snapshot.Load(); current != nil && sameRelease(current.rel, rel) {
		// Heads that came later are taken in, and heads that were taken away stay.
		whole, more := rel.Completed(current.rel)
		if !more {
			if current.revision == "" {
				// What was restored from disk is what the source has.
				s.snapshot.Store(newSnapshot(whole, got.Revision, got.FS))
			}
			return nil
		}
		rel = whole
	}
	s.keep(rel)
	s.install(newSnapshot(rel, got.Revision, got.FS))
	return nil
}

// keep puts the accepted release on disk. It is in force also when that fails,
// as on a full disk; then every look at the source tries again, for without it
// a restart would go back to the one before.
func (s *server) keep(rel *fleet.Release) {
	if err := source.Keep(s.acceptedDir(), s.filesToKeep(rel)); err != nil {
		s.unkept = rel
		s.log.Error().Err(err).Msg("accepted release not kept on disk")
		return
	}
	s.unkept = nil
}

// verifyAgain holds the release in force against a trust file that has changed.
// One that would not be accepted now stays, since hosts judge by themselves and
// without any nobody could be answered; but a restart would not serve it.
func (s *server) verifyAgain() {
	o, err := s.loadOptions(anyAge)
	snap := s.snapshot.Load()
	_, generation, _ := s.trust.get()
	if err != nil || snap == nil || generation == s.trusted {
		return
	}
	s.trusted = generation
	file := snap.rel.FleetFile
	_, err = pki.VerifyArtifact(&o.Trust.CIReleaseKey, file.Body, file.Sig, o.Now, anyAge, func([]byte) (pki.Metadata, error) {
		return snap.rel.Fleet.Metadata(), nil
	})
	if err != nil {
		s.log.Error().Err(err).Str("hint", "sign and publish a release with a key that is trusted").Msg("release in force does not verify any more")
	}
}

func sameRelease(a, b *fleet.Release) bool {
	return a.FleetHash == b.FleetHash && a.RevocationsFile.Hash == b.RevocationsFile.Hash && a.NoncesFile.Hash == b.NoncesFile.Hash &&
		string(a.FleetFile.Sig) == string(b.FleetFile.Sig)
}

// filesToKeep are the files of a release under their names, and the manifests
// before it that agents may still ask for.
func (s *server) filesToKeep(rel *fleet.Release) map[string][]byte {
	files := map[string][]byte{}
	add := func(name string, a fleet.Artifact) {
		if len(a.Body) > 0 {
			files[name], files[name+fleet.SignatureSuffix] = a.Body, a.Sig
		}
	}
	for id, m := range s.history.all() {
		add(fleet.ManifestName(id), m.file)
	}
	add(fleet.FleetName, rel.FleetFile)
	add(fleet.RevocationsName, rel.RevocationsFile)
	add(fleet.NoncesName, rel.NoncesFile)
	for _, c := range rel.Channels {
		add(fleet.ManifestName(c.RolloutID), c.ManifestFile)
		add(fleet.HeadName(c.Channel), c.HeadFile)
	}
	return files
}

// install swaps the snapshot and hands the release to the decision procedure,
// both under one lock: no answer mixes two releases.
func (s *server) install(next *snapshot) {
	before := s.snapshot.Load()
	s.floor = next.rel
	s.history.add(next.rel, time.Now())
	err := s.change(context.Background(), func(w *rollout.World, now time.Time) rollout.Change {
		s.snapshot.Store(next)
		return w.Accept(next.rel, now)
	})
	if err != nil {
		// It is in force all the same; the decisions about it are made again when
		// they can be stored.
		s.snapshot.Store(next)
		s.log.Error().Err(err).Msg("accepted release not stored")
	}
	s.metrics.signedAt.Set(float64(next.rel.SignedAt.Unix()))
	s.log.Info().Str("commit", next.rel.Commit).Time("signed_at", next.rel.SignedAt).Int("hosts", len(next.rel.Fleet.Hosts)).
		Int("channels", len(next.rel.Channels)).Str("revision", next.revision).Msg("snapshot refreshed")
	if before != nil {
		s.waiters.wakeIf(func(host string) bool {
			return !s.revokedIn(next.revoked, host).Equal(s.revokedIn(before.revoked, host)) || !pki.SameKey(next.key(host), before.key(host))
		})
	}
}
