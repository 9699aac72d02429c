package verify

import (
	"errors"
	"fmt"
	"regexp"
	"sync"
	"time"

	"nixfleet/nixops/fleet"
	"nixfleet/pki"
	"nixfleet/roles/agent/journal"
	"nixfleet/roles/protocol"
)

// Target is a target that has been verified: this host, this wave and this very closure under
// a trusted signature, fresh by the signed window.
type Target struct {
	closure    string
	rolloutID  string
	channel    string
	channelRef string
	intent     string
	byHead     bool
	wave       uint32
	signedAt   time.Time
	confirm    time.Duration
	startBy    time.Time // monotonic
	dispatch   string
	compliance string
	document   []byte // the signed head or manifest, for the target's own trust
	signature  []byte
}

// Closure is the store base name that this host shall run.
func (t *Target) Closure() string { return t.closure }

// RolloutID is the rollout that brings it.
func (t *Target) RolloutID() string { return t.rolloutID }

// Channel is the channel of that rollout.
func (t *Target) Channel() string { return t.channel }

// ChannelRef is what confirms and reports name.
func (t *Target) ChannelRef() string { return t.channelRef }

// Intent is what the release means, whenever it is signed anew.
func (t *Target) Intent() string { return t.intent }

// ByHead is false under a control plane without heads, where a manifest proves the target.
func (t *Target) ByHead() bool { return t.byHead }

// Dispatch is what the control plane calls the dispatch that the target belongs to; empty when it does not say.
func (t *Target) Dispatch() string { return t.dispatch }

// DispatchName is the name of the dispatch of a target that nothing has verified; empty when its form is not that of
// one.
func DispatchName(t *protocol.Target) string {
	if !dispatchForm().MatchString(t.Dispatch) {
		return ""
	}
	return t.Dispatch
}

var dispatchForm = sync.OnceValue(func() *regexp.Regexp { return regexp.MustCompile(`^[0-9A-Za-z]{1,40}$`) })

// Wave is the wave of this host.
func (t *Target) Wave() uint32 { return t.wave }

// SignedAt is when the release was signed.
func (t *Target) SignedAt() time.Time { return t.signedAt }

// ConfirmWindow is how long the activation has until it is undone.
func (t *Target) ConfirmWindow() time.Duration { return t.confirm }

// Compliance is the mode of the compliance gate, the stricter of the signed and the local one.
func (t *Target) Compliance() string { return t.compliance }

// Late reports whether the lease is over: the control plane may have given the slot away.
func (t *Target) Late() bool { return t.LateIn(0) }

// LateIn reports whether the lease will be over in a while.
func (t *Target) LateIn(d time.Duration) bool {
	return time.Now().Add(d).After(t.startBy) && !journal.Breaks("the lease ends")
}

// TrustAdmits wants the target's own trust file to verify the release that brings it: no
// release may lock the fleet out. It is asked as of the time of signing: a clock that was set
// since the release was verified is not the release's fault.
func (t *Target) TrustAdmits(trustJSON []byte) error {
	trust, _, err := pki.ParseTrust(trustJSON)
	if err != nil {
		return fmt.Errorf("the target's trust file: %w", err)
	}
	if _, _, err = fleet.VerifyHead(&trust.CIReleaseKey, t.document, t.signature, t.signedAt,
		fleet.AnyAge); err != nil && !t.byHead {
		_, _, err = fleet.VerifyManifest(&trust.CIReleaseKey, t.rolloutID, t.document, t.signature, t.signedAt, fleet.AnyAge)
	}
	if err != nil {
		return fmt.Errorf("the target's trust file would refuse the release that brings it: %w", err)
	}
	return nil
}

// Clamps of the agent, whatever it is told.
const (
	minWindow  = 60 * time.Second
	maxWindow  = time.Hour
	baseWindow = 360 * time.Second
)

func clampWindow(d time.Duration) time.Duration {
	if d == 0 {
		d = baseWindow
	}
	return max(minWindow, min(d, maxWindow))
}

var strictness = map[string]int{fleet.ModeDisabled: 1, fleet.ModePermissive: 2, fleet.ModeEnforce: 3}

// stricter is the stricter of a local and a signed compliance mode. Auto, and no mode, leave
// it to the other one. An unknown word counts as permissive.
func stricter(local, signed string) string {
	if signed != "" && signed != "auto" && strictness[signed] == 0 {
		signed = fleet.ModePermissive
	}
	if strictness[local] > strictness[signed] {
		return local
	}
	return signed
}

// Refusal is why something was not believed, with what is reported of it.
type Refusal struct {
	Err   error
	Event string // of the protocol; empty: only the fetch outcome tells
	Fetch string // protocol.FetchVerifyFailed or FetchFailed
}

func (e *Refusal) Error() string { return e.Err.Error() }
func (e *Refusal) Unwrap() error { return e.Err }

// ErrReplaced means that a newer release has come between the answer and what was fetched for
// it. The next answer is of that release.
var ErrReplaced = errors.New("a newer release has come meanwhile")

// ErrNoEntry means that a release has no entry for this host.
var ErrNoEntry = errors.New("the release has no entry for this host")

// Stale means that a release was signed longer ago than its own window.
type Stale struct {
	SignedAt time.Time
	Window   time.Duration
	Age      time.Duration
}

func (e *Stale) Error() string {
	return fmt.Sprintf("its freshness window ended %s ago", (e.Age - e.Window - pki.ClockSlack).Round(time.Second))
}
