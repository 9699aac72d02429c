package verify

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"time"

	"nixfleet/nixops/fleet"
	"nixfleet/pki"
	"nixfleet/roles/agent/journal"
	"nixfleet/roles/protocol"
)

// Config is what a verifier decides by.
type Config struct {
	Hostname string
	Trust    func() (*pki.Trust, error)
	Marks    Marks
	Now      func() time.Time
	// Past is a time that has passed by what others have signed; nil: none is known.
	Past func() time.Time
	// AllowV1 accepts answers without heads from a control plane that has shown some.
	AllowV1 bool
	// MaxManifestAge bounds the age of a manifest under a v1 control plane.
	MaxManifestAge time.Duration
	// Compliance is the host's own mode.
	Compliance string
	// Manifests keeps the verified manifests.
	Manifests journal.Directory
}

// Verifier decides what the agent believes. It holds what was believed before. It is for one
// goroutine at a time.
type Verifier struct {
	cfg  Config
	head *fleet.Head
	file fleet.Artifact // the head's
	mine bool           // the head is of this host's channel
}

// New makes a verifier that has seen nothing yet but its marks.
func New(cfg Config) *Verifier { return &Verifier{cfg: cfg} }

// Source is where signed documents come from. A proof that does not exist is ErrNoEntry.
type Source interface {
	Head(ctx context.Context, channel string) (body, sig []byte, err error)
	HeadProof(ctx context.Context, channel, hostname string) (*protocol.Proof, error)
	Manifest(ctx context.Context, rolloutID string) (body, sig []byte, err error)
}

// Head is the newest verified head; nil when there is none yet.
func (v *Verifier) Head() *fleet.Head { return v.head }

// HeadHash tells heads apart; it is empty without one.
func (v *Verifier) HeadHash() string { return v.file.Hash }

// Mine reports whether the newest verified head is of this host's channel.
func (v *Verifier) Mine() bool { return v.mine }

// SignedAt is when the newest verified release was signed; 1970 without one.
func (v *Verifier) SignedAt() time.Time {
	if v.head != nil {
		return v.file.SignedAt
	}
	if last, err := v.cfg.Marks.Load(); err == nil && last != nil {
		return last.SignedAt.Time
	}
	return time.Unix(0, 0)
}

// Stale says how long the newest verified head is past its window, and false while it is
// fresh. A control plane that shows no head to an agent that was started anew withholds as
// well: the mark knows of the last one.
func (v *Verifier) Stale() (time.Duration, bool) {
	signed, window := v.file.SignedAt, uint32(0)
	if v.head != nil {
		window = v.head.FreshnessWindow
	} else if last, err := v.cfg.Marks.Load(); err == nil && last != nil && last.SeenHead && last.Window > 0 {
		signed, window = last.SignedAt.Time, last.Window
	} else {
		return 0, false
	}
	over := v.cfg.Now().Sub(signed) - fleet.Minutes(window) - pki.ClockSlack
	return over, over > 0
}

// admits says whether a release may follow the mark. Without one a release is old when it was
// no longer fresh at the time that has passed: its window had ended before. It need not be
// signed after that time, else each newly enrolled host would refuse the release in force.
func (v *Verifier) admits(last *Mark, signedAt time.Time, window time.Duration, intent, closure string) error {
	if last != nil || v.cfg.Past == nil {
		return last.admits(signedAt, intent, closure)
	}
	if past := v.cfg.Past(); signedAt.Add(window + pki.ClockSlack).Before(past) {
		return fmt.Errorf("%w may have been: this host has no mark, the release was signed at %s for %s, "+
			"and it is %s at least", errOlder, pki.At(signedAt), window, pki.At(past))
	}
	return nil
}

func refuse(event, format string, args ...any) error {
	return &Refusal{fmt.Errorf(format, args...), event, protocol.FetchVerifyFailed}
}

// expired is why a document that was signed then is not acted on; nil while it is fresh.
func (v *Verifier) expired(what string, signedAt time.Time, window time.Duration) error {
	age := v.cfg.Now().Sub(signedAt)
	if age <= window+pki.ClockSlack || journal.Breaks("the window") {
		return nil
	}
	return refuse(protocol.EventStaleTarget, "%s: %w", what, &Stale{signedAt, window, age})
}

// releaseKey is the slot of the keys that sign releases.
func (v *Verifier) releaseKey() (*pki.KeySlot, error) {
	trust, err := v.cfg.Trust()
	if err != nil {
		return nil, &Refusal{err, protocol.EventTrustError, protocol.FetchVerifyFailed}
	}
	return &trust.CIReleaseKey, nil
}

// Target verifies what an answer asks of this host. ref is the head that the answer names,
// nil without one, and sent is when the request left.
func (v *Verifier) Target(ctx context.Context, s Source, t *protocol.Target, ref *protocol.HeadRef,
	sent time.Time) (*Target, error) {
	// The reference ends in journal and reports, and nothing signs it.
	if !fleet.ValidRolloutID(t.RolloutID) || !fleet.ValidClosure(t.ClosureHash) ||
		protocol.Clip(t.ChannelRef, MaxReference) != t.ChannelRef {
		return nil, refuse(protocol.EventVerifyMismatch, "target names rollout %.70q, closure %.80q and reference %.70q",
			t.RolloutID, t.ClosureHash, t.ChannelRef)
	}
	var w *Target
	var err error
	if ref != nil {
		w, err = v.byHead(ctx, s, t, ref)
	} else {
		w, err = v.byManifest(ctx, s, t)
	}
	if err != nil {
		return nil, err
	}
	w.channelRef = cmp.Or(t.ChannelRef, t.RolloutID)
	w.startBy, w.dispatch = sent.Add(v.lease(t, w)), DispatchName(t)
	return w, nil
}

// MaxReference bounds the references of a control plane, in bytes.
const MaxReference = 256

// lease is how long after the request this host may begin: what the answer says, within what
// is signed. A v1 control plane gives its target to another host, or again, when the confirm
// window is over.
func (v *Verifier) lease(t *protocol.Target, w *Target) time.Duration {
	limit := w.confirm
	if w.byHead {
		limit = time.Duration(v.head.LeaseSecs) * time.Second
	}
	if t.StartBySecs == nil {
		return limit
	}
	return min(limit, time.Duration(*t.StartBySecs)*time.Second)
}

// names wants this host's signed entry to say what the target says.
func names(entry fleet.HostEntry, t *protocol.Target) error {
	wave := uint32(0)
	if t.WaveIndex != nil {
		wave = *t.WaveIndex
	}
	switch {
	case entry.TargetClosure != t.ClosureHash:
		return refuse(protocol.EventVerifyMismatch, "the target is %s, but the closure signed for this host is %s",
			t.ClosureHash,
			entry.TargetClosure)
	case entry.WaveIndex != wave:
		return refuse(protocol.EventVerifyMismatch, "the target is for wave %d, but the wave signed for this host is %d",
			wave, entry.WaveIndex)
	}
	return nil
}

// misnamed is the event of an entry that could not be taken.
func misnamed(err error) string {
	if errors.Is(err, fleet.ErrNotNamed) {
		return protocol.EventVerifyMismatch
	}
	return protocol.EventManifestVerifyFailed
}
