package fleet

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"time"

	"nixfleet/pki"
)

// Names of a release's files, below its directory.
const (
	FleetName       = "fleet.resolved.json"
	RevocationsName = "revocations.json"
	NoncesName      = "bootstrap-nonces.json"
	ManifestsDir    = "rollouts"
	HeadsDir        = "heads"
	SignatureSuffix = ".sig"
)

// ManifestName is the file of a manifest, HeadName that of a channel's head.
func ManifestName(rolloutID string) string { return ManifestsDir + "/" + rolloutID + ".json" }

// HeadName is the file of a channel's head.
func HeadName(channel string) string { return HeadsDir + "/" + channel + ".json" }

// maxSignatureFile bounds what is read of a signature, in bytes: more than one
// has, so that a wrong length is a signature that does not verify.
const maxSignatureFile = 4 << 10

// Why a release is refused besides its signatures; test with errors.Is.
var (
	ErrOlder   = errors.New("older than the release accepted before")
	ErrMembers = errors.New("the release's parts do not belong together")
)

// Artifact is a signed document as it was received.
type Artifact struct {
	Body, Sig []byte
	Hash      string // canonical hash
	SignedAt  time.Time
}

// ChannelRelease is what a release says of one channel.
type ChannelRelease struct {
	Channel      string
	RolloutID    string
	Manifest     *Manifest
	ManifestFile Artifact // without Body when the source does not hold it
	Head         *Head    // nil in a v1 release
	HeadFile     Artifact
	Tree         *pki.Tree
	Intent       string
	OpenedAt     time.Time
	Index        map[string]int // host -> place in Manifest.HostSet
}

// Release is one verified snapshot of the fleet. It is never changed.
type Release struct {
	Fleet           *Fleet
	FleetHash       string
	FleetFile       Artifact
	SignedAt        time.Time
	Commit          string                     // empty when built outside a checkout
	Channels        map[string]*ChannelRelease // channels with at least one closure
	Revocations     *Revocations               // nil when the release has no list
	RevocationsFile Artifact
	Nonces          *BootstrapNonces
	NoncesFile      Artifact
}

// LoadOptions say what a release must satisfy.
type LoadOptions struct {
	Trust              *pki.Trust
	Now                time.Time
	Window             time.Duration // oldest signature that is accepted
	FleetName          string        // default FleetName
	RequireRevocations bool
	RequireNonces      bool
	// ManifestsElsewhere: the source delivers manifests one by one, on demand, as
	// the v1 https source does.
	ManifestsElsewhere bool
}

type loader struct {
	LoadOptions
	fsys fs.FS
	rel  *Release
}

// LoadRelease reads and verifies the release in fsys, the root of which is the
// release directory. A signature that does not verify is a *pki.VerifyError,
// parts of different releases are ErrMembers, a missing file is fs.ErrNotExist.
func LoadRelease(fsys fs.FS, o LoadOptions) (*Release, error) {
	if o.FleetName == "" {
		o.FleetName = FleetName
	}
	l := &loader{LoadOptions: o, fsys: fsys, rel: &Release{Channels: map[string]*ChannelRelease{}}}
	for _, step := range []func() error{l.fleet, l.lists, l.channels} {
		if err := step(); err != nil {
			return nil, err
		}
	}
	return l.rel, nil
}

func (l *loader) read(name string) (Artifact, error) {
	body, err := readFile(l.fsys, name, MaxSize(name))
	if err != nil {
		return Artifact{}, err
	}
	sig, err := readFile(l.fsys, name+SignatureSuffix, maxSignatureFile)
	if err != nil {
		return Artifact{}, err
	}
	return Artifact{Body: body, Sig: sig}, nil
}

// readFile reads a file of at most limit bytes.
func readFile(fsys fs.FS, name string, limit int) ([]byte, error) {
	f, err := fsys.Open(name)
	if err != nil {
		return nil, fmt.Errorf("release: %w", err)
	}
	defer f.Close()
	var data bytes.Buffer
	if info, err := f.Stat(); err == nil {
		data.Grow(int(min(info.Size(), int64(limit))) + bytes.MinRead)
	}
	if _, err := data.ReadFrom(io.LimitReader(f, int64(limit)+1)); err != nil {
		return nil, fmt.Errorf("release: read %s: %w", name, err)
	}
	if data.Len() > limit {
		return nil, fmt.Errorf("release: read %s: %w: more than %d bytes", name, pki.ErrSize, limit)
	}
	return data.Bytes(), nil
}

// verify believes the artifact or says why not, and completes it.
func (l *loader) verify(name string, a *Artifact, decode func([]byte) (pki.Metadata, error)) error {
	v, err := pki.VerifyArtifact(&l.Trust.CIReleaseKey, a.Body, a.Sig, l.Now, l.Window, decode)
	if err != nil {
		return fmt.Errorf("verify %s: %w", name, err)
	}
	a.Hash, a.SignedAt = v.Hash, v.SignedAt
	return nil
}

func (l *loader) fleet() error {
	file, err := l.read(l.FleetName)
	if err != nil {
		return err
	}
	r := l.rel
	err = l.verify(l.FleetName, &file, func(doc []byte) (meta pki.Metadata, err error) {
		if r.Fleet, err = ParseFleet(doc); err == nil {
			meta = r.Fleet.Metadata()
		}
		return meta, err
	})
	if err != nil {
		return err
	}
	for name, h := range r.Fleet.Hosts {
		if h.ClosureHash == nil {
			continue
		}
		if !ValidClosure(*h.ClosureHash) {
			return fmt.Errorf("%w: host %q: %.80q is not a store base name", ErrMembers, name, *h.ClosureHash)
		}
		if _, declared := r.Fleet.Channels[h.Channel]; !declared {
			return fmt.Errorf("%w: host %q is on channel %.80q, which is not declared", ErrMembers, name, h.Channel)
		}
	}
	r.FleetFile, r.FleetHash, r.SignedAt = file, file.Hash, file.SignedAt
	if r.Fleet.Meta.CICommit != nil {
		r.Commit = *r.Fleet.Meta.CICommit
	}
	return nil
}

// lists loads what is there; the fleet document may bind each list by its hash.
func (l *loader) lists() error {
	var revocations, nonces *string
	if m := l.rel.Fleet.Members; m != nil {
		revocations, nonces = m.Revocations, m.BootstrapNonces
	}
	file, ok, err := l.list(RevocationsName, revocations, l.RequireRevocations,
		func(doc []byte) (meta pki.Metadata, err error) {
			if l.rel.Revocations, err = ParseRevocations(doc); err == nil {
				meta = l.rel.Revocations.Metadata()
			}
			return meta, err
		})
	if err != nil {
		return err
	}
	if ok {
		l.rel.RevocationsFile = file
	}
	file, ok, err = l.list(NoncesName, nonces, l.RequireNonces, func(doc []byte) (meta pki.Metadata, err error) {
		if l.rel.Nonces, err = ParseNonces(doc); err == nil {
			meta = l.rel.Nonces.Metadata()
		}
		return meta, err
	})
	if ok {
		l.rel.NoncesFile = file
	}
	return err
}

func (l *loader) list(name string, bound *string, required bool,
	decode func([]byte) (pki.Metadata, error)) (Artifact, bool, error) {
	members := l.rel.Fleet.Members
	if members != nil && bound == nil {
		// The fleet says that it has no such list; one that lies about is not its.
		if required {
			return Artifact{}, false, fmt.Errorf("%w: %s is required and the release has none", ErrMembers, name)
		}
		return Artifact{}, false, nil
	}
	file, err := l.read(name)
	if errors.Is(err, fs.ErrNotExist) && !required && bound == nil {
		return Artifact{}, false, nil
	}
	if err != nil {
		return Artifact{}, false, err
	}
	if err := l.verify(name, &file, decode); err != nil {
		return Artifact{}, false, err
	}
	if bound != nil && *bound != file.Hash {
		return Artifact{}, false, fmt.Errorf("%w: %s has hash %s, the fleet document names %s", ErrMembers, name, file.Hash,
			*bound)
	}
	return file, true, nil
}

func (l *loader) channels() error {
	r, heads := l.rel, 0
	for _, channel := range sortedKeys(r.Fleet.Channels) {
		c, err := l.channel(channel)
		if err != nil {
			return err
		}
		if c == nil {
			continue
		}
		if c.Head != nil {
			heads++
		}
		r.Channels[channel] = c
	}
	if heads > 0 && heads < len(r.Channels) {
		return fmt.Errorf("%w: only %d of %d channels have a head", ErrMembers, heads, len(r.Channels))
	}
	return l.promisedHeads()
}

// promisedHeads refuses a release without a head that its fleet document names:
// hosts that have seen a head wait for one, so that its loss stops a channel. A
// source that delivers documents one by one has no heads at all.
func (l *loader) promisedHeads() error {
	members := l.rel.Fleet.Members
	if members == nil || l.ManifestsElsewhere {
		return nil
	}
	for _, channel := range members.Heads {
		if c := l.rel.Channels[channel]; c == nil || c.Head == nil {
			return fmt.Errorf("%w: the fleet document names a head of channel %.80q, and %s is not there", ErrMembers, channel,
				HeadName(channel))
		}
	}
	return nil
}

// HasHeads reports whether a channel of the release has a head.
func (r *Release) HasHeads() bool {
	for _, c := range r.Channels {
		if c.Head != nil {
			return true
		}
	}
	return false
}

func (l *loader) channel(channel string) (*ChannelRelease, error) {
	r := l.rel
	m, any, err := Project(r.Fleet, r.FleetHash, channel)
	if err != nil || !any {
		return nil, err
	}
	id, canonical, err := RolloutID(m)
	if err != nil {
		return nil, err
	}
	intent, err := Intent(r.Fleet, m)
	if err != nil {
		return nil, err
	}
	c := &ChannelRelease{
		Channel: channel, RolloutID: id, Manifest: m, Intent: intent, OpenedAt: r.SignedAt,
		Tree: HostTree(m), Index: make(map[string]int, len(m.HostSet)),
	}
	for i, e := range m.HostSet {
		c.Index[e.Hostname] = i
	}
	if err := l.manifest(c, canonical); err != nil {
		return nil, err
	}
	return c, l.head(c)
}

// manifest wants the signed file to be the projection of the fleet document.
func (l *loader) manifest(c *ChannelRelease, canonical []byte) error {
	name := ManifestName(c.RolloutID)
	file, err := l.read(name)
	if errors.Is(err, fs.ErrNotExist) && l.ManifestsElsewhere {
		return nil
	}
	if err != nil {
		return fmt.Errorf("channel %s: its manifest, as the fleet document gives it: %w", c.Channel, err)
	}
	var same bool
	err = l.verify(name, &file, func(doc []byte) (pki.Metadata, error) {
		same = bytes.Equal(doc, canonical)
		return c.Manifest.Metadata(), nil
	})
	if err != nil {
		return err
	}
	if !same {
		return fmt.Errorf("verify %s: %w", name, &pki.VerifyError{
			Reason: pki.ReasonMismatch,
			Err:    fmt.Errorf("%w: it is not the projection of the fleet document", ErrMembers),
		})
	}
	c.ManifestFile = file
	return nil
}

func (l *loader) head(c *ChannelRelease) error {
	name := HeadName(c.Channel)
	file, err := l.read(name)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	var h *Head
	err = l.verify(name, &file, func(doc []byte) (meta pki.Metadata, err error) {
		if h, err = ParseHead(doc); err == nil {
			meta = h.Metadata()
		}
		return meta, err
	})
	if err != nil {
		return err
	}
	if !file.SignedAt.Equal(l.rel.SignedAt) {
		return fmt.Errorf(
			"%w: %s: its meta.signedAt is %s, that of the fleet document %s; sign both with nixfleet release, or remove %s/ "+
				"where another tool signs",
			ErrMembers, name, pki.At(file.SignedAt), pki.At(l.rel.SignedAt), HeadsDir)
	}
	channel := l.rel.Fleet.Channels[c.Channel]
	policy := l.rel.Fleet.RolloutPolicies[channel.RolloutPolicy]
	for _, part := range []struct {
		name string
		same bool
	}{
		{"channel", h.Channel == c.Channel},
		{"rolloutId", h.RolloutID == c.RolloutID},
		{"channelRef", h.ChannelRef == c.Manifest.ChannelRef},
		{"displayName", h.DisplayName == c.Manifest.DisplayName},
		{"fleetResolvedHash", h.FleetResolvedHash == l.rel.FleetHash},
		{"intent", h.Intent == c.Intent},
		{"hostSetRoot", h.HostSetRoot == c.Tree.Root()},
		{"hostCount", int(h.HostCount) == c.Tree.Size()},
		{"freshnessWindow", h.FreshnessWindow == channel.FreshnessWindow},
		{"onHealthFailure", h.OnHealthFailure == policy.OnHealthFailure},
		{"complianceMode", h.ComplianceMode == channel.Compliance.Mode},
		{"confirmWindowSecs", h.ConfirmWindowSecs > 0},
		{"leaseSecs", h.LeaseSecs > 0},
		{"openedAt", !h.OpenedAt.After(file.SignedAt)},
	} {
		if !part.same {
			return fmt.Errorf("%w: %s: %s is not that of the fleet document", ErrMembers, name, part.name)
		}
	}
	c.Head, c.HeadFile, c.OpenedAt = h, file, h.OpenedAt.Time
	return nil
}
