package agent

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net/http"
	"strings"
	"time"
	"unicode"

	"nixfleet/nixops/disk"
	"nixfleet/nixops/fleet"
	"nixfleet/pki"
	"nixfleet/roles/agent/journal"
	"nixfleet/roles/protocol"
	"nixfleet/roles/protocol/client"
)

// anyAge leaves the age to the window that the document itself is signed with.
const anyAge = 200 * 365 * 24 * time.Hour

// wanted is a target that has been verified: this host, this wave and this very
// closure under a trusted signature, fresh by the signed window.
type wanted struct {
	closure    string
	rolloutID  string
	channel    string
	channelRef string // what confirms and reports name
	intent     string
	byHead     bool // false: by a manifest, as a v1 control plane has it
	wave       uint32
	signedAt   time.Time
	window     time.Duration // how long the signature is believed
	confirm    time.Duration
	startBy    time.Time // monotonic
	compliance string
	failure    fleet.FailurePolicy
	document   []byte // the signed head or manifest, for the target's own trust
	signature  []byte
}

// late: the lease is over, and the control plane may have given the slot away.
func (w *wanted) late() bool { return time.Now().After(w.startBy) && !journal.Breaks("the lease ends") }

// verdictError is a refusal with what is reported of it.
type verdictError struct {
	err   error
	event string // protocol event; empty: only the fetch outcome tells
	fetch string // protocol.FetchVerifyFailed or FetchFailed
}

func (e *verdictError) Error() string { return clip(e.err.Error(), maxReason) }
func (e *verdictError) Unwrap() error { return e.err }

func refuse(event, format string, args ...any) error {
	return &verdictError{fmt.Errorf(format, args...), event, protocol.FetchVerifyFailed}
}

// errStale: signed longer ago than its own window.
var errStale = errors.New("signed longer ago than its window")

// staleError is errStale with what is reported of it.
type staleError struct {
	signedAt time.Time
	window   time.Duration
	age      time.Duration
}

func (e *staleError) Error() string {
	return fmt.Sprintf("%v by %s", errStale, (e.age - e.window - pki.ClockSlack).Round(time.Second))
}
func (e *staleError) Unwrap() error { return errStale }

// expired is why a document that was signed then is not acted on; nil while it is fresh.
func (v *verifier) expired(what string, signedAt time.Time, window time.Duration) error {
	age := v.now().Sub(signedAt)
	if age <= window+pki.ClockSlack || journal.Breaks("the window") {
		return nil
	}
	return &verdictError{fmt.Errorf("%s: %w", what, &staleError{signedAt, window, age}), protocol.EventStaleTarget, protocol.FetchVerifyFailed}
}

// verifier decides what the agent believes. It holds what was believed before.
type verifier struct {
	hostname   string
	trust      func() (*pki.Trust, error)
	marks      marks
	now        func() time.Time
	allowV1    bool
	maxAge     time.Duration // of a manifest under a v1 control plane
	onlyLocal  func(string) string
	manifests  journal.Directory // verified manifests, one file pair a rollout
	head       *fleet.Head
	headHash   string
	headFile   fleet.Artifact
	headSigned time.Time
	mine       bool // the head is of this host's channel
}

// fetcher is the part of the client that verification needs.
type fetcher interface {
	Head(ctx context.Context, channel string) (body, sig []byte, err error)
	HeadProof(ctx context.Context, channel, hostname string) (*protocol.Proof, error)
	Manifest(ctx context.Context, rolloutID string) (body, sig []byte, err error)
}

// updateHead verifies the head an answer names, unless it is the one that is
// known, and advances the mark.
func (v *verifier) updateHead(ctx context.Context, c fetcher, ref *protocol.HeadRef) error {
	if ref == nil {
		return nil
	}
	if v.head != nil && v.headHash == ref.Hash && v.head.Channel == ref.Channel {
		return nil
	}
	if !fleet.ValidChannel(ref.Channel) {
		return refuse(protocol.EventManifestMismatch, "the answer names a head of channel %.70q", ref.Channel)
	}
	body, sig, err := c.Head(ctx, ref.Channel)
	if err != nil {
		return &verdictError{fmt.Errorf("fetch head of %s: %w", ref.Channel, err), protocol.EventManifestMissing, protocol.FetchFailed}
	}
	head, file, err := v.verifyHead(ref.Channel, body, sig)
	if err != nil {
		return err
	}
	last, err := v.marks.load()
	if err != nil {
		return err
	}
	mine, closure, err := v.concerns(ctx, c, head, file.SignedAt, last)
	if err != nil {
		return err
	}
	if err := last.admits(file.SignedAt, head.Intent, closure); err != nil && !journal.Breaks("the mark") {
		return refuse(protocol.EventManifestVerifyFailed, "head of %s: %w", ref.Channel, err)
	}
	next := &mark{SignedAt: pki.At(file.SignedAt), Intent: head.Intent, Closure: closure, SeenHead: true, Channel: head.Channel, Window: head.FreshnessWindow}
	if closure == "" && last != nil && last.Intent == head.Intent {
		next.Closure = last.Closure
	}
	if mine && (last == nil || *next != *last) {
		if err := v.marks.store(next); err != nil {
			return err
		}
	}
	v.head, v.headHash, v.headFile, v.headSigned, v.mine = head, file.Hash, file, file.SignedAt, mine
	return nil
}

// concerns says whether a head is of this host's channel, and which closure it means
// for this host where that had to be asked. A head of another channel is as well signed,
// and must neither move the mark, nor end a hold, nor look fresh in place of ours: the
// channel is believed when its tree holds this host's entry.
func (v *verifier) concerns(ctx context.Context, c fetcher, head *fleet.Head, signedAt time.Time, last *mark) (mine bool, closure string, err error) {
	if last.follows(head.Channel) && !last.sameTime(signedAt, head.Intent) {
		return true, "", nil
	}
	entry, err := v.entryOf(ctx, c, head)
	var refused *client.Error
	switch {
	case err == nil:
		return true, entry.TargetClosure, nil
	case errors.As(err, &refused) && refused.Status == http.StatusNotFound && (last == nil || !last.SeenHead):
		// A host without a closure has no entry, and nothing to lose.
		return false, "", nil
	}
	return false, "", err
}

func (v *verifier) verifyHead(channel string, body, sig []byte) (*fleet.Head, fleet.Artifact, error) {
	trust, err := v.trust()
	if err != nil {
		return nil, fleet.Artifact{}, &verdictError{err, protocol.EventTrustError, protocol.FetchVerifyFailed}
	}
	var head *fleet.Head
	verified, err := pki.VerifyArtifact(&trust.CIReleaseKey, body, sig, v.now(), anyAge, func(doc []byte) (meta pki.Metadata, err error) {
		if head, err = fleet.ParseHead(doc); err == nil {
			meta = head.Metadata()
		}
		return meta, err
	})
	if err != nil {
		return nil, fleet.Artifact{}, refuse(protocol.EventManifestVerifyFailed, "head of %s: %w", channel, err)
	}
	if head.Channel != channel {
		return nil, fleet.Artifact{}, refuse(protocol.EventManifestMismatch, "head of %s was sent for channel %s", head.Channel, channel)
	}
	return head, fleet.Artifact{Body: body, Sig: sig, Hash: verified.Hash, SignedAt: verified.SignedAt}, nil
}

// stale says how long the newest verified head is past its window; zero while
// it is fresh.
//
// A control plane that shows no head to an agent that was started anew withholds as
// well: the mark knows of the last one.
func (v *verifier) stale() (time.Duration, bool) {
	signed, window := v.headSigned, uint32(0)
	if v.head != nil {
		window = v.head.FreshnessWindow
	} else if last, err := v.marks.load(); err == nil && last != nil && last.SeenHead && last.Window > 0 {
		signed, window = last.SignedAt.Time, last.Window
	} else {
		return 0, false
	}
	over := v.now().Sub(signed) - fleet.Minutes(window) - pki.ClockSlack
	return over, over > 0
}

// target verifies what an answer asks of this host.
func (v *verifier) target(ctx context.Context, c fetcher, t *protocol.Target, ref *protocol.HeadRef, sent time.Time) (*wanted, error) {
	// The reference ends in journal and reports, and nothing signs it.
	if !fleet.ValidRolloutID(t.RolloutID) || !fleet.ValidClosure(t.ClosureHash) || clip(t.ChannelRef, maxReference) != t.ChannelRef {
		return nil, refuse(protocol.EventVerifyMismatch, "target names rollout %.70q, closure %.80q and reference %.70q", t.RolloutID, t.ClosureHash, t.ChannelRef)
	}
	var w *wanted
	var err error
	if ref != nil {
		w, err = v.byHead(ctx, c, t, ref)
	} else {
		w, err = v.byManifest(ctx, c, t)
	}
	if err != nil {
		return nil, err
	}
	w.channelRef = cmp.Or(t.ChannelRef, t.RolloutID)
	w.startBy = sent.Add(v.lease(t, w))
	return w, nil
}

// lease is how long after the request this host may begin: what the answer says,
// within what is signed. A v1 control plane gives its target to somebody else, or
// again, when the confirm window is over.
func (v *verifier) lease(t *protocol.Target, w *wanted) time.Duration {
	limit := w.confirm
	if w.byHead {
		limit = time.Duration(v.head.LeaseSecs) * time.Second
	}
	if t.StartBySecs == nil {
		return limit
	}
	return min(limit, time.Duration(*t.StartBySecs)*time.Second)
}

// errReplaced: a newer release has come between the answer and what was fetched for
// it. The next answer is of that.
var errReplaced = errors.New("a newer release has come meanwhile")

func (v *verifier) byHead(ctx context.Context, c fetcher, t *protocol.Target, ref *protocol.HeadRef) (*wanted, error) {
	head := v.head
	if head == nil || head.RolloutID != t.RolloutID {
		if head != nil && v.headHash != ref.Hash {
			return nil, errReplaced
		}
		return nil, refuse(protocol.EventManifestMismatch, "target is of rollout %s, which is not the head's", t.RolloutID)
	}
	if err := v.expired("head of "+head.Channel, v.headSigned, fleet.Minutes(head.FreshnessWindow)); err != nil {
		return nil, err
	}
	entry, err := v.entry(ctx, c)
	if err != nil {
		if v.replaced(ctx, c) {
			err = errReplaced
		}
		return nil, err
	}
	if err := v.names(entry, t); err != nil {
		return nil, err
	}
	if err := v.marks.means(v.headSigned, head.Intent, entry.TargetClosure); err != nil {
		return nil, err
	}
	return &wanted{
		closure: entry.TargetClosure, rolloutID: head.RolloutID, channel: head.Channel, intent: head.Intent, byHead: true, wave: entry.WaveIndex,
		signedAt: v.headSigned, window: fleet.Minutes(head.FreshnessWindow),
		confirm:    clampWindow(time.Duration(head.ConfirmWindowSecs) * time.Second),
		compliance: stricter(v.onlyLocal(head.ComplianceMode), head.ComplianceMode), failure: head.OnHealthFailure,
		document: v.headFile.Body, signature: v.headFile.Sig,
	}, nil
}

// replaced says whether the control plane has a newer head by now.
func (v *verifier) replaced(ctx context.Context, c fetcher) bool {
	body, sig, err := c.Head(ctx, v.head.Channel)
	if err != nil {
		return false
	}
	_, file, err := v.verifyHead(v.head.Channel, body, sig)
	return err == nil && file.SignedAt.After(v.headSigned)
}

// entry is this host's entry under the head.
func (v *verifier) entry(ctx context.Context, c fetcher) (fleet.HostEntry, error) {
	return v.entryOf(ctx, c, v.head)
}

// entryOf is this host's entry under a head, by a proof that it is in the tree.
func (v *verifier) entryOf(ctx context.Context, c fetcher, head *fleet.Head) (entry fleet.HostEntry, err error) {
	proof, err := c.HeadProof(ctx, head.Channel, v.hostname)
	if err != nil {
		return entry, &verdictError{fmt.Errorf("fetch proof: %w", err), protocol.EventManifestMissing, protocol.FetchFailed}
	}
	leaf, err := pki.Canonicalize(proof.Leaf)
	if err != nil {
		return entry, refuse(protocol.EventManifestVerifyFailed, "proof: %w", err)
	}
	if err := pki.Decode(leaf, &entry); err != nil {
		return entry, refuse(protocol.EventManifestVerifyFailed, "proof: %w", err)
	}
	if err := pki.VerifyInclusion(head.HostSetRoot, int(head.HostCount), proof.Index, leaf, proof.Path); err != nil {
		return entry, refuse(protocol.EventManifestVerifyFailed, "%w", err)
	}
	if entry.Hostname != v.hostname && !journal.Breaks("whose entry it is") || !fleet.ValidClosure(entry.TargetClosure) {
		return entry, refuse(protocol.EventVerifyMismatch, "the signed entry is of host %q, closure %.80q", entry.Hostname, entry.TargetClosure)
	}
	return entry, nil
}

// names wants this host's signed entry to say what the target says.
func (v *verifier) names(entry fleet.HostEntry, t *protocol.Target) error {
	wave := uint32(0)
	if t.WaveIndex != nil {
		wave = *t.WaveIndex
	}
	switch {
	case entry.TargetClosure != t.ClosureHash:
		return refuse(protocol.EventVerifyMismatch, "the target is %s, signed for this host is %s", t.ClosureHash, entry.TargetClosure)
	case entry.WaveIndex != wave:
		return refuse(protocol.EventVerifyMismatch, "the target is for wave %d, signed is wave %d", wave, entry.WaveIndex)
	}
	return nil
}

// byManifest verifies under a control plane that knows no heads.
func (v *verifier) byManifest(ctx context.Context, c fetcher, t *protocol.Target) (*wanted, error) {
	last, err := v.marks.load()
	if err != nil {
		return nil, err
	}
	if last != nil && last.SeenHead && !v.allowV1 {
		return nil, refuse(protocol.EventManifestMissing, "the control plane showed heads before and shows none now")
	}
	m, file, err := v.manifest(ctx, c, t.RolloutID)
	if err != nil {
		return nil, err
	}
	window := min(time.Duration(t.FreshnessWindowSecs)*time.Second, v.maxAge)
	if err := v.expired("manifest", file.SignedAt, window); err != nil {
		return nil, err
	}
	for _, entry := range m.HostSet {
		if entry.Hostname != v.hostname {
			continue
		}
		if err := v.names(entry, t); err != nil {
			return nil, err
		}
		if err := last.admits(file.SignedAt, t.RolloutID, entry.TargetClosure); err != nil {
			return nil, refuse(protocol.EventManifestVerifyFailed, "manifest: %w", err)
		}
		next := &mark{SignedAt: pki.At(file.SignedAt), Intent: t.RolloutID, Closure: entry.TargetClosure}
		if last != nil {
			next.SeenHead, next.Channel, next.Window = last.SeenHead, last.Channel, last.Window
		}
		if err := v.marks.store(next); err != nil {
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
		return &wanted{
			closure: entry.TargetClosure, rolloutID: t.RolloutID, channel: m.Channel, intent: t.RolloutID, wave: entry.WaveIndex,
			signedAt: file.SignedAt, window: window, confirm: clampWindow(confirm),
			compliance: stricter(v.onlyLocal(relayed), relayed), failure: fleet.OnFailureHalt, document: file.Body, signature: file.Sig,
		}, nil
	}
	return nil, refuse(protocol.EventVerifyMismatch, "the manifest does not name this host")
}

// manifest takes the kept pair, verified anew, or fetches it. A kept pair that
// does not verify any more is fetched once before anything is said of it.
func (v *verifier) manifest(ctx context.Context, c fetcher, id string) (*fleet.Manifest, fleet.Artifact, error) {
	if m, file, err := v.verifyManifest(v.keptManifest(id)); err == nil && file.Hash == id {
		return m, file, nil
	}
	body, sig, err := c.Manifest(ctx, id)
	if err != nil {
		return nil, fleet.Artifact{}, &verdictError{fmt.Errorf("fetch manifest: %w", err), protocol.EventManifestMissing, protocol.FetchFailed}
	}
	m, file, err := v.verifyManifest(body, sig)
	if err != nil {
		return nil, fleet.Artifact{}, refuse(protocol.EventManifestVerifyFailed, "manifest: %w", err)
	}
	if file.Hash != id {
		return nil, fleet.Artifact{}, refuse(protocol.EventManifestMismatch, "manifest has hash %s, its id is %s", file.Hash, id)
	}
	err = disk.Replace(v.manifests.Path(id+".json"), body, 0o600)
	if err == nil {
		err = disk.Replace(v.manifests.Path(id+".json.sig"), sig, 0o600)
	}
	if err == nil {
		err = v.manifests.KeepNewest(2 * maxManifests)
	}
	return m, file, err
}

// maxManifests bounds how many verified manifests are kept: a v1 fleet has a new one
// with every signing.
const maxManifests = 8

func (v *verifier) keptManifest(id string) (body, sig []byte) {
	body, err := disk.ReadLinked(v.manifests.Path(id+".json"), pki.MaxDocument)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	sig, _ = disk.ReadLinked(v.manifests.Path(id+".json.sig"), pki.MaxDocument)
	return body, sig
}

func (v *verifier) verifyManifest(body, sig []byte) (*fleet.Manifest, fleet.Artifact, error) {
	trust, err := v.trust()
	if err != nil {
		return nil, fleet.Artifact{}, err
	}
	var m *fleet.Manifest
	verified, err := pki.VerifyArtifact(&trust.CIReleaseKey, body, sig, v.now(), anyAge, func(doc []byte) (meta pki.Metadata, err error) {
		if m, err = fleet.ParseManifest(doc); err == nil {
			meta = m.Metadata()
		}
		return meta, err
	})
	return m, fleet.Artifact{Body: body, Sig: sig, Hash: verified.Hash, SignedAt: verified.SignedAt}, err
}

// trustAdmits wants the target's own trust file to verify the release that
// brings it: no release may lock the fleet out. It is asked as of the time of signing:
// a clock that was set since the release was verified is not the release's fault.
func (w *wanted) trustAdmits(trustJSON []byte) error {
	trust, _, err := pki.ParseTrust(trustJSON)
	if err != nil {
		return fmt.Errorf("the target's trust file: %w", err)
	}
	if _, err := pki.VerifyArtifact(&trust.CIReleaseKey, w.document, w.signature, w.signedAt, anyAge, func(doc []byte) (pki.Metadata, error) {
		if head, err := fleet.ParseHead(doc); err == nil {
			return head.Metadata(), nil
		}
		m, err := fleet.ParseManifest(doc)
		if err != nil {
			return pki.Metadata{}, err
		}
		return m.Metadata(), nil
	}); err != nil {
		return fmt.Errorf("the target's trust file would refuse the release that brings it: %w", err)
	}
	return nil
}

// Clamps of the agent, whatever it is told.
const (
	minWindow  = 60 * time.Second
	maxWindow  = time.Hour
	baseWindow = 360 * time.Second
	maxContact = 15 * time.Minute
	// maxReference and maxReason bound texts of the control plane, in bytes.
	maxReference = 256
	maxReason    = 500
)

// clip is a text of the other side as it may be kept: one line of printable characters, at
// most limit bytes.
func clip(s string, limit int) string {
	cut := len(s) > limit
	s = strings.Map(func(r rune) rune {
		if unicode.IsSpace(r) {
			return ' '
		}
		if !unicode.IsPrint(r) {
			return -1
		}
		return r
	}, strings.ToValidUTF8(s[:min(len(s), limit)], ""))
	if cut && limit > len(ellipsis) {
		return strings.ToValidUTF8(s[:min(len(s), limit-len(ellipsis))], "") + ellipsis
	}
	return s
}

const ellipsis = " …"

func clampWindow(d time.Duration) time.Duration {
	if d == 0 {
		d = baseWindow
	}
	return max(minWindow, min(d, maxWindow))
}

var strictness = map[string]int{"disabled": 1, "permissive": 2, "enforce": 3}

// stricter of a local and a signed compliance mode; auto and nothing leave it
// to the other, an unknown word is permissive.
func stricter(local, signed string) string {
	if signed != "" && signed != "auto" && strictness[signed] == 0 {
		signed = "permissive"
	}
	if strictness[local] > strictness[signed] {
		return local
	}
	return signed
}
