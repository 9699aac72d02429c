package verify

import (
	"context"
	"errors"
	"fmt"
	"time"

	"nixfleet/nixops/disk"
	"nixfleet/nixops/fleet"
	"nixfleet/pki"
	"nixfleet/roles/protocol"
)

// MaxManifests bounds how many verified manifests are kept: a v1 fleet has a new one with
// every signing.
const MaxManifests = 8

// looseManifest is up to which size, in bytes, a manifest may come in another form than its
// canonical one. To bring a text into that form takes several times its size of memory, and
// nobody has vouched for it then. Control planes store and serve canonical bytes, whose hash
// is the manifest's id.
const looseManifest = 1 << 20

// byManifest verifies under a control plane that knows no heads.
func (v *Verifier) byManifest(ctx context.Context, s Source, t *protocol.Target) (*Target, error) {
	last, err := v.cfg.Marks.Load()
	if err != nil {
		return nil, err
	}
	if last != nil && last.SeenHead && !v.cfg.AllowV1 {
		return nil, refuse(protocol.EventManifestMissing, "the control plane sent heads before and sends none now")
	}
	m, file, err := v.manifest(ctx, s, t.RolloutID)
	if err != nil {
		return nil, err
	}
	window := min(time.Duration(t.FreshnessWindowSecs)*time.Second, v.cfg.MaxManifestAge)
	if err := v.expired("manifest", file.SignedAt, window); err != nil {
		return nil, err
	}
	entry, err := m.Entry(v.cfg.Hostname)
	if err != nil {
		return nil, refuse(protocol.EventVerifyMismatch, "%w", err)
	}
	if err := names(entry, t); err != nil {
		return nil, err
	}
	if err := v.admits(last, file.SignedAt, window, t.RolloutID, entry.TargetClosure); err != nil {
		return nil, refuse(protocol.EventManifestVerifyFailed, "manifest: %w", err)
	}
	next := &Mark{SignedAt: pki.At(file.SignedAt), Intent: t.RolloutID, Closure: entry.TargetClosure}
	if last != nil {
		next.SeenHead, next.Channel, next.Window = last.SeenHead, last.Channel, last.Window
	}
	if err := v.cfg.Marks.store(next); err != nil {
		return nil, err
	}
	relayed := ""
	if t.ComplianceMode != nil {
		relayed = *t.ComplianceMode
	}
	confirm := time.Duration(0)
	if t.Activate != nil {
		confirm = time.Duration(t.Activate.ConfirmWindowSecs) * time.Second
	}
	return &Target{
		closure: entry.TargetClosure, rolloutID: t.RolloutID, channel: m.Channel, intent: t.RolloutID,
		wave: entry.WaveIndex, signedAt: file.SignedAt, confirm: clampWindow(confirm),
		compliance: stricter(v.cfg.Compliance, relayed), document: file.Body, signature: file.Sig,
	}, nil
}

// manifest takes the kept pair, verified anew, or fetches it. A kept pair that does not verify
// any more is fetched once before anything is said of it.
func (v *Verifier) manifest(ctx context.Context, s Source, id string) (*fleet.Manifest, fleet.Artifact, error) {
	slot, err := v.releaseKey()
	if err != nil {
		return nil, fleet.Artifact{}, err
	}
	verify := func(body, sig []byte) (*fleet.Manifest, fleet.Artifact, error) {
		return fleet.VerifyManifest(slot, id, body, sig, v.cfg.Now(), fleet.AnyAge)
	}
	if m, file, err := verify(v.keptManifest(id)); err == nil {
		return m, file, nil
	}
	body, sig, err := s.Manifest(ctx, id)
	if err != nil {
		return nil, fleet.Artifact{}, &Refusal{fmt.Errorf("fetch manifest: %w", err), protocol.EventManifestMissing,
			protocol.FetchFailed}
	}
	if len(body) > looseManifest && pki.HashHex(body) != id {
		return nil, fleet.Artifact{}, refuse(protocol.EventManifestMismatch,
			"the hash of the manifest's %d bytes is not the %.80q under which it was advertised", len(body), id)
	}
	m, file, err := verify(body, sig)
	if err != nil {
		event := protocol.EventManifestVerifyFailed
		if refused := (*pki.VerifyError)(nil); errors.As(err, &refused) && refused.Reason == pki.ReasonMismatch {
			event = protocol.EventManifestMismatch
		}
		return nil, fleet.Artifact{}, refuse(event, "%w", err)
	}
	return m, file, v.keep(id, body, sig)
}

func (v *Verifier) keep(id string, body, sig []byte) error {
	err := disk.Replace(v.cfg.Manifests.Path(id+".json"), body, 0o600)
	if err == nil {
		err = disk.Replace(v.cfg.Manifests.Path(id+".json.sig"), sig, 0o600)
	}
	if err == nil {
		err = v.cfg.Manifests.KeepNewest(2 * MaxManifests)
	}
	return err
}

// keptManifest is the kept pair, empty where it cannot be read.
func (v *Verifier) keptManifest(id string) (body, sig []byte) {
	body, err := disk.Read(v.cfg.Manifests.Path(id+".json"), pki.MaxDocument)
	if err != nil {
		return nil, nil
	}
	if sig, err = disk.Read(v.cfg.Manifests.Path(id+".json.sig"), pki.MaxDocument); err != nil {
		return nil, nil
	}
	return body, sig
}
