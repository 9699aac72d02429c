package cp

import (
	"context"
	"path/filepath"
	"sync/atomic"
	"time"

	"github.com/rs/zerolog"

	"nixfleet/nixops/fleet"
	"nixfleet/pki"
	"nixfleet/roles/cp/source"
	"nixfleet/roles/rollout"
)

// inForce holds the release in force: it takes newer ones from the source, keeps
// the accepted one on disk, and hands it to the decisions.
type inForce struct {
	cfg      *Config
	log      zerolog.Logger
	source   source.Source
	files    *files
	snapshot *current
	world    *world
	waiters  *waiters
	metrics  *metrics
	history  *history
	poked    chan struct{} // look at the source
	answered atomic.Int64  // when the source last did, Unix seconds; 0 when it has not
	failing  atomic.Int64  // since when no look at the source succeeds, Unix seconds; 0 when the last one did

	floor   *fleet.Release // nothing older is accepted; the poller's own
	unkept  *fleet.Release // accepted and not on disk yet; the poller's own
	trusted uint64         // generation of the trust file that it was verified by; the poller's own
}

// lookNow makes the poller look at its source.
func (f *inForce) lookNow() {
	select {
	case f.poked <- struct{}{}:
	default:
	}
}

func (f *inForce) acceptedDir() string { return filepath.Join(f.cfg.StateDir, "accepted") }

// loadOptions say what a release must satisfy now. Only a source of ours
// promises its manifests; the v1 sources deliver them one by one or not at all.
func (f *inForce) loadOptions(window time.Duration) (fleet.LoadOptions, error) {
	trust, _, err := f.files.trust.get()
	if trust == nil {
		return fleet.LoadOptions{}, err
	}
	return fleet.LoadOptions{
		Trust: trust, Now: time.Now(), Window: window,
		RequireRevocations: f.cfg.Strict || f.cfg.RevocationsSource.Given(),
		RequireNonces:      f.cfg.Strict || f.cfg.NoncesSource.Given(),
		ManifestsElsewhere: f.cfg.Source == "",
	}, nil
}

// restore takes the last accepted release from disk, verified anew. One that
// has become too old to serve, or lacks a list that is wanted now, still is the
// floor below which nothing is accepted again.
func (f *inForce) restore() {
	for _, dir := range source.Kept(f.acceptedDir()) {
		o, err := f.loadOptions(fleet.AnyAge)
		if err != nil {
			f.log.Error().Err(err).Msg("trust file not loaded")
			return
		}
		wanted := o
		o.RequireRevocations, o.RequireNonces = false, false
		rel, err := fleet.LoadRelease(dir, o)
		if err != nil {
			f.log.Error().Err(err).Msg("last accepted release not restored")
			continue
		}
		f.floor = rel
		if age := time.Since(rel.SignedAt); age > f.cfg.FreshnessWindow+pki.ClockSlack {
			f.log.Warn().Time("signed_at", rel.SignedAt).Msg("last accepted release is too old to serve")
			return
		}
		if wanted.RequireRevocations && rel.Revocations == nil || wanted.RequireNonces && rel.Nonces == nil {
			f.log.Warn().Time("signed_at", rel.SignedAt).
				Msg("last accepted release lacks the revocations or the bootstrap nonces, which are required")
			return
		}
		f.install(newSnapshot(rel, "", dir))
		return
	}
}

// consider verifies what a source gave and, when it is newer, puts it in force.
func (f *inForce) consider(got source.Fetched, fleetName string) error {
	o, err := f.loadOptions(f.cfg.FreshnessWindow)
	if err != nil {
		return err
	}
	o.FleetName = fleetName
	rel, err := fleet.LoadRelease(got.FS, o)
	if err != nil {
		return err
	}
	if err := rel.Supersedes(f.floor); err != nil {
		return err
	}
	current := f.snapshot.Load()
	same := current != nil && sameRelease(current.rel, rel)
	// The v1 sources deliver no heads at all.
	if err := rel.CheckHeadsAgainst(f.floor); err != nil && !same && !o.ManifestsElsewhere {
		if err := f.goWithoutHeads(rel, err); err != nil {
			return err
		}
	}
	if same {
		// Heads that came later are taken in, and heads that were taken away stay.
		whole, more := rel.Completed(current.rel)
		if !more {
			if current.revision == "" {
				// What was restored from disk is what the source has.
				f.snapshot.Store(newSnapshot(whole, got.Revision, got.FS))
			}
			return nil
		}
		rel = whole
	}
	f.keep(rel)
	f.install(newSnapshot(rel, got.Revision, got.FS))
	return nil
}

// keep puts the accepted release on disk. It is in force also when that fails,
// as on a full disk; then every look at the source tries again, for without it
// a restart would go back to the one before.
func (f *inForce) keep(rel *fleet.Release) {
	if err := source.Keep(f.acceptedDir(), f.filesToKeep(rel)); err != nil {
		f.unkept = rel
		f.log.Error().Err(err).Msg("accepted release not kept on disk")
		return
	}
	f.unkept = nil
}

// verifyAgain holds the release in force against a trust file that has changed.
// One that would not be accepted now stays, since hosts judge by themselves and
// without any release no host could be answered; but a restart would not serve it.
func (f *inForce) verifyAgain() {
	o, err := f.loadOptions(fleet.AnyAge)
	snap := f.snapshot.Load()
	_, generation, _ := f.files.trust.get()
	if err != nil || snap == nil || generation == f.trusted {
		return
	}
	f.trusted = generation
	file := snap.rel.FleetFile
	_, err = pki.VerifyArtifact(&o.Trust.CIReleaseKey, file.Body, file.Sig, o.Now, fleet.AnyAge,
		func([]byte) (pki.Metadata, error) {
			return snap.rel.Fleet.Metadata(), nil
		})
	if err != nil {
		f.log.Error().Err(err).Str("hint", "sign and publish a release with a key of the trust file").
			Msg("release in force no longer verifies")
	}
}

func sameRelease(a, b *fleet.Release) bool {
	return a.FleetHash == b.FleetHash && a.RevocationsFile.Hash == b.RevocationsFile.Hash &&
		a.NoncesFile.Hash == b.NoncesFile.Hash &&
		string(a.FleetFile.Sig) == string(b.FleetFile.Sig)
}

// filesToKeep are the files of a release under their names, and the manifests
// before it that agents may still ask for.
func (f *inForce) filesToKeep(rel *fleet.Release) map[string][]byte {
	files := map[string][]byte{}
	add := func(name string, a fleet.Artifact) {
		if len(a.Body) > 0 {
			files[name], files[name+fleet.SignatureSuffix] = a.Body, a.Sig
		}
	}
	for id, m := range f.history.all() {
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
func (f *inForce) install(next *snapshot) {
	before := f.snapshot.Load()
	f.floor = next.rel
	f.history.add(next.rel, time.Now())
	err := f.world.change(context.Background(), func(w *rollout.World, now time.Time) rollout.Change {
		f.snapshot.Store(next)
		return w.Accept(next.rel, now)
	})
	if err != nil {
		// It is in force all the same; the decisions about it are made again when
		// they can be stored.
		f.snapshot.Store(next)
		f.log.Error().Err(err).Msg("accepted release not stored")
	}
	f.metrics.signedAt.Set(float64(next.rel.SignedAt.Unix()))
	f.log.Info().Str("commit", next.rel.Commit).Time("signed_at", next.rel.SignedAt).
		Int("hosts", len(next.rel.Fleet.Hosts)).
		Int("channels", len(next.rel.Channels)).Str("revision", next.revision).Msg("snapshot refreshed")
	if before != nil {
		f.waiters.wakeIf(func(host string) bool {
			names := namesOf(host, f.cfg.AgentSuffix)
			return !revokedIn(next.revoked, names).Equal(revokedIn(before.revoked, names)) ||
				!pki.SameKey(next.key(host), before.key(host))
		})
	}
}
