package fleet

import (
	"errors"
	"fmt"
	"io/fs"
	"time"

	"nixfleet/pki"
)

// ErrNotNamed means that a signed document does not name this host, or not this closure.
var ErrNotNamed = errors.New("not named by the signed document")

const (
	// DefaultWindow is how old a signature may be where nothing else is said, which is v1's default.
	DefaultWindow = 2592000 * time.Second
	// AnyAge is a window for what may be of any age: its age is judged by something else.
	AnyAge = 200 * 365 * 24 * time.Hour
)

// VerifyManifest believes a manifest that came alone, as an agent under a v1 control plane and the v1 https source get
// it: signed, fresh by window, and hashing to the id under which it was asked for. Members that are not known are
// allowed, since the hash is taken over the bytes that came. A refusal is a *pki.VerifyError.
func VerifyManifest(
	slot *pki.KeySlot, id string, body, sig []byte, now time.Time, window time.Duration,
) (*Manifest, Artifact, error) {
	m, file, err := Verify(slot, body, sig, now, window, ParseManifest)
	if err == nil && file.Hash != id {
		err = &pki.VerifyError{Reason: pki.ReasonMismatch, Err: fmt.Errorf("its hash is %s, it was advertised as %.80q",
			file.Hash, id)}
	}
	if err != nil {
		return nil, Artifact{}, err
	}
	return m, file, nil
}

// VerifyHead believes a head that came alone. A refusal is a *pki.VerifyError.
func VerifyHead(slot *pki.KeySlot, body, sig []byte, now time.Time, window time.Duration) (*Head, Artifact, error) {
	return Verify(slot, body, sig, now, window, ParseHead)
}

// Verify believes one signed document that parse reads: signed by an active key of slot and fresh by window. A
// refusal is a *pki.VerifyError, and the document is then nil.
func Verify[T any, P interface {
	*T
	Metadata() pki.Metadata
}](
	slot *pki.KeySlot, body, sig []byte, now time.Time, window time.Duration, parse func([]byte) (P, error),
) (P, Artifact, error) {
	var doc P
	v, err := pki.VerifyArtifact(slot, body, sig, now, window, func(canonical []byte) (pki.Metadata, error) {
		var err error
		if doc, err = parse(canonical); err != nil {
			return pki.Metadata{}, err
		}
		return doc.Metadata(), nil
	})
	if err != nil {
		return nil, Artifact{}, err
	}
	return doc, Artifact{Body: body, Sig: sig, Hash: v.Hash, SignedAt: v.SignedAt}, nil
}

// ReadManifest reads the manifest of some release, also of a past one, to be
// served as it is stored. Its hash is checked against the id and its signature
// is not. No such file, and an id that is none, is fs.ErrNotExist; a file
// without signature or with other bytes is ErrMembers.
func ReadManifest(fsys fs.FS, id string) (Artifact, error) {
	if !ValidRolloutID(id) {
		return Artifact{}, fmt.Errorf("release: %.80q is not a rollout id: %w", id, fs.ErrNotExist)
	}
	name := ManifestName(id)
	body, err := readFile(fsys, name, pki.MaxDocument)
	if err != nil {
		return Artifact{}, err
	}
	sig, err := readFile(fsys, name+SignatureSuffix, maxSignatureFile)
	if err != nil {
		return Artifact{}, fmt.Errorf("%w: %s has no readable signature: %v", ErrMembers, name, err)
	}
	if len(sig) != pki.SignatureSize {
		return Artifact{}, fmt.Errorf("%w: signature of %s has %d bytes, not %d", ErrMembers, name, len(sig),
			pki.SignatureSize)
	}
	hash, err := pki.CanonicalHash(body)
	if err != nil {
		return Artifact{}, fmt.Errorf("%w: %s: %v", ErrMembers, name, err)
	}
	if hash != id {
		return Artifact{}, fmt.Errorf("%w: %s hashes to %s", ErrMembers, name, hash)
	}
	return Artifact{Body: body, Sig: sig, Hash: hash}, nil
}

// Entry is the one entry of the manifest that names the host. A host that is
// not named, or twice, and a closure that is not a store base name are ErrNotNamed.
func (m *Manifest) Entry(hostname string) (HostEntry, error) {
	found, count := HostEntry{}, 0
	for _, e := range m.HostSet {
		if e.Hostname == hostname {
			found, count = e, count+1
		}
	}
	if count != 1 {
		return HostEntry{}, fmt.Errorf("manifest of %s names host %q %d times: %w", m.Channel, hostname, count, ErrNotNamed)
	}
	if !ValidClosure(found.TargetClosure) {
		return HostEntry{}, fmt.Errorf("manifest of %s: %.80q is not a store base name: %w", m.Channel, found.TargetClosure,
			ErrNotNamed)
	}
	return found, nil
}

// Entry believes leaf, the canonical JSON of an entry, to be under the head at
// index by the inclusion path, and to name the host.
func (h *Head) Entry(hostname string, leaf []byte, index int, path []string) (HostEntry, error) {
	canonical, err := pki.Canonicalize(leaf)
	if err != nil {
		return HostEntry{}, fmt.Errorf("proof under head of %s: leaf: %w", h.Channel, err)
	}
	if err := pki.VerifyInclusion(h.HostSetRoot, int(h.HostCount), index, canonical, path); err != nil {
		return HostEntry{}, fmt.Errorf("proof under head of %s: %w", h.Channel, err)
	}
	e, err := parse[HostEntry]("leaf", canonical)
	if err != nil {
		return HostEntry{}, fmt.Errorf("proof under head of %s: %w", h.Channel, err)
	}
	if e.Hostname != hostname {
		return HostEntry{}, fmt.Errorf("proof under head of %s is of host %q, not %q: %w", h.Channel, e.Hostname, hostname,
			ErrNotNamed)
	}
	if !ValidClosure(e.TargetClosure) {
		return HostEntry{}, fmt.Errorf("proof under head of %s: %.80q is not a store base name: %w", h.Channel,
			e.TargetClosure,
			ErrNotNamed)
	}
	return *e, nil
}
