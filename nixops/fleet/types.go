package fleet

import (
	"errors"
	"fmt"
	"math"
	"time"

	"github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"

	"nixfleet/pki"
)

// Meta is what every signed artifact says of its signing.
type Meta struct {
	SchemaVersion      uint32         `json:"schemaVersion" shape:"R"`
	SignedAt           *pki.Timestamp `json:"signedAt" shape:"N"`
	CICommit           *string        `json:"ciCommit" shape:"N"`
	SignatureAlgorithm *string        `json:"signatureAlgorithm,omitzero" shape:"O"`
}

// Fleet is fleet.resolved.json.
type Fleet struct {
	SchemaVersion     uint32             `json:"schemaVersion" shape:"R"`
	Hosts             map[string]*Host   `json:"hosts" shape:"R"`
	Channels          map[string]Channel `json:"channels" shape:"R"`
	RolloutPolicies   map[string]Policy  `json:"rolloutPolicies" shape:"D"`
	Waves             map[string][]Wave  `json:"waves" shape:"R"`
	Edges             []Edge             `json:"edges" shape:"D"`
	ChannelEdges      []ChannelEdge      `json:"channelEdges" shape:"D"`
	DisruptionBudgets []Budget           `json:"disruptionBudgets" shape:"D"`
	Members           *Members           `json:"members,omitzero" shape:"O"`
	// OperatorScopes narrow what operators may do, by the name in their certificates.
	OperatorScopes map[string]*pki.Scope `json:"operatorScopes,omitzero" shape:"O"`
	Meta           Meta                  `json:"meta" shape:"R"`
}

// Members binds the lists and heads of the same release: canonical hashes, null
// for a list that the release does not have, and the names of the channels that
// have a head, which holds the fleet's own hash. Releases of before name no heads.
type Members struct {
	Revocations     *string  `json:"revocations" shape:"N"`
	BootstrapNonces *string  `json:"bootstrapNonces" shape:"N"`
	Heads           []string `json:"heads,omitzero" shape:"O"`
}

// Host is one declared machine.
type Host struct {
	System       string         `json:"system" shape:"R"`
	Tags         []string       `json:"tags" shape:"R"`
	Channel      string         `json:"channel" shape:"R"`
	ClosureHash  *string        `json:"closureHash" shape:"N"` // full store base name
	Pubkey       *string        `json:"pubkey" shape:"N"`      // OpenSSH ed25519 line
	Pin          *Pin           `json:"pin,omitzero" shape:"O"`
	HealthChecks jsontext.Value `json:"healthChecks,omitzero" shape:"O"`
	RebootPolicy jsontext.Value `json:"rebootPolicy,omitzero" shape:"O"`
}

// Reboots is what a declared reboot policy says, for people: "window", "immediate"
// or "never" and the window's words. The host acts by the copy in its own closure; a
// form that is not known here says nothing.
func (h *Host) Reboots() (mode, window string) {
	var p struct {
		Mode   string `json:"mode" shape:"D"`
		Window string `json:"window" shape:"O"`
	}
	if len(h.RebootPolicy) == 0 || pki.Decode(h.RebootPolicy, &p) != nil {
		return "", ""
	}
	return p.Mode, p.Window
}

// Pin holds a host at another commit.
type Pin struct {
	Commit    string         `json:"commit" shape:"R"`
	Reason    string         `json:"reason" shape:"R"`
	ExpiresAt *pki.Timestamp `json:"expiresAt,omitzero" shape:"O"`
}

// Channel groups hosts that move together. Windows and intervals are minutes.
type Channel struct {
	RolloutPolicy            string     `json:"rolloutPolicy" shape:"R"`
	ReconcileIntervalMinutes uint32     `json:"reconcileIntervalMinutes" shape:"R"`
	FreshnessWindow          uint32     `json:"freshnessWindow" shape:"R"`
	SigningIntervalMinutes   uint32     `json:"signingIntervalMinutes" shape:"R"`
	Compliance               Compliance `json:"compliance" shape:"R"`
	// Maintenance is ours; nil: at any time.
	Maintenance *Maintenance `json:"maintenance,omitzero" shape:"O"`
	// Emergency is ours: why this release waits for neither a maintenance window nor the end of a freeze; "": it does.
	Emergency string `json:"emergency,omitzero" shape:"O"`
}

// Compliance modes.
const (
	ModeDisabled   = "disabled"
	ModePermissive = "permissive"
	ModeEnforce    = "enforce"
)

// Compliance names frameworks and how strictly they bind. An unknown mode acts
// as permissive.
type Compliance struct {
	Frameworks []string `json:"frameworks" shape:"R"`
	Mode       string   `json:"mode" shape:"R"`
}

// What a policy does when hosts fail.
const (
	OnFailureHalt     = "halt"
	OnFailureRollback = "rollback-and-halt"
)

// Policy is how a channel moves to a new release.
type Policy struct {
	Strategy        string        `json:"strategy" shape:"R"`
	Waves           []PolicyWave  `json:"waves" shape:"R"`
	HealthGate      HealthGate    `json:"healthGate" shape:"D"`
	OnHealthFailure FailurePolicy `json:"onHealthFailure" shape:"R"`
	// FailureThreshold is ours; nil: OnHealthFailure acts on the first failure.
	FailureThreshold *FailureThreshold `json:"failureThreshold,omitzero" shape:"O"`
}

// FailureThreshold is from how many failed hosts on a policy acts. Below it a failure halts.
type FailureThreshold struct {
	MinHosts   *uint32 `json:"minHosts,omitzero" shape:"O"`
	MinPercent *uint32 `json:"minPercent,omitzero" shape:"O"` // of the hosts of the channel's rollout
}

// Hosts is how many of so many hosts must have failed; 1 without a threshold.
func (t *FailureThreshold) Hosts(of int) int {
	least := 1
	if t == nil {
		return least
	}
	if t.MinHosts != nil {
		least = max(least, int(*t.MinHosts))
	}
	if t.MinPercent != nil {
		least = max(least, int((uint64(of)*uint64(*t.MinPercent)+99)/100))
	}
	return least
}

// FailurePolicy is OnFailureHalt or OnFailureRollback; other words do not parse.
type FailurePolicy string

// UnmarshalText refuses unknown words.
func (p *FailurePolicy) UnmarshalText(text []byte) error {
	switch s := string(text); s {
	case OnFailureHalt, OnFailureRollback:
		*p = FailurePolicy(s)
		return nil
	}
	return errors.New("onHealthFailure is neither halt nor rollback-and-halt")
}

// MarshalText writes the word.
func (p FailurePolicy) MarshalText() ([]byte, error) { return []byte(p), nil }

// PolicyWave is a wave before it was resolved to hosts.
type PolicyWave struct {
	Selector    Selector `json:"selector" shape:"R"`
	SoakMinutes uint32   `json:"soakMinutes" shape:"R"`
	SoakSeconds *uint32  `json:"soakSeconds,omitzero" shape:"O"`
	MayBeEmpty  bool     `json:"mayBeEmpty,omitzero" shape:"O"`
}

// HealthGate is what must hold before a wave counts as healthy.
type HealthGate struct {
	SystemdFailedUnits *FailedUnits      `json:"systemdFailedUnits,omitzero" shape:"O"`
	ComplianceProbes   *ComplianceProbes `json:"complianceProbes,omitzero" shape:"O"`
}

// FailedUnits bounds how many units may newly fail.
type FailedUnits struct {
	Max uint32 `json:"max" shape:"R"`
}

// ComplianceProbes says whether compliance evidence must exist.
type ComplianceProbes struct {
	Required bool `json:"required" shape:"R"`
}

// Wave is the hosts that go together and how long they soak.
type Wave struct {
	Hosts       []string `json:"hosts" shape:"R"`
	SoakMinutes uint32   `json:"soakMinutes" shape:"R"`
	SoakSeconds *uint32  `json:"soakSeconds,omitzero" shape:"O"`
	// MayBeEmpty is ours: the next wave opens although no host of this one was heard.
	MayBeEmpty bool `json:"mayBeEmpty,omitzero" shape:"O"`
}

// Soak is how long the wave must stay healthy; seconds win over minutes.
func (w Wave) Soak() time.Duration {
	if w.SoakSeconds != nil {
		return time.Duration(*w.SoakSeconds) * time.Second
	}
	return Minutes(w.SoakMinutes)
}

// Minutes is n minutes, at most as many seconds as a uint32 holds (136 years):
// what the wire can say, and short enough to be added to a time or a slack. A
// Duration by itself would wrap around and make the longest soak none at all.
func Minutes(n uint32) time.Duration {
	return time.Duration(min(uint64(n)*60, math.MaxUint32)) * time.Second
}

// Edge holds host Gated until host Gates is Soaked or Converged.
type Edge struct {
	Gated  string  `json:"gated" shape:"R"`
	Gates  string  `json:"gates" shape:"R"`
	Reason *string `json:"reason" shape:"N"`
}

// ChannelEdge holds channel Gated until channel Gates has converged.
type ChannelEdge struct {
	Gates  string  `json:"gates" shape:"R"`
	Gated  string  `json:"gated" shape:"R"`
	Reason *string `json:"reason" shape:"N"`
	// Holds is ours: HoldsActive, HoldsOpening, or "" for the former.
	Holds string `json:"holds,omitzero" shape:"O"`
}

// What a channel edge holds.
const (
	// HoldsActive holds each host of the gated channel while the channel before it has an active rollout.
	HoldsActive = "active"
	// HoldsOpening holds a rollout of the gated channel until it has begun.
	HoldsOpening = "opening"
)

// oldNames are those that a document of the contract does not have any more.
func (ChannelEdge) oldNames() []string { return []string{"before", "after"} }

// UnmarshalJSON also reads the old names before (gates) and after (gated); both
// spellings of one end are refused.
func (e *ChannelEdge) UnmarshalJSON(doc []byte) error {
	var raw struct {
		Gates  jsontext.Value `json:"gates"`
		Before jsontext.Value `json:"before"`
		Gated  jsontext.Value `json:"gated"`
		After  jsontext.Value `json:"after"`
		Reason *string        `json:"reason"`
		Holds  string         `json:"holds"`
	}
	if err := json.Unmarshal(doc, &raw); err != nil {
		return err
	}
	gates, err := oneSpelling("gates", raw.Gates, "before", raw.Before)
	if err != nil {
		return err
	}
	gated, err := oneSpelling("gated", raw.Gated, "after", raw.After)
	if err != nil {
		return err
	}
	*e = ChannelEdge{Gates: gates, Gated: gated, Reason: raw.Reason, Holds: raw.Holds}
	return nil
}

// oneSpelling reads the end of a channel edge under the one of its two names
// that is there; null counts as there, and is not the name of a channel.
func oneSpelling(name string, value jsontext.Value, oldName string, old jsontext.Value) (string, error) {
	switch {
	case value != nil && old != nil:
		return "", fmt.Errorf("channel edge has both %s and %s", name, oldName)
	case value == nil:
		value = old
	}
	if value.Kind() != '"' {
		return "", fmt.Errorf("channel edge: %s is not the name of a channel", name)
	}
	var end string
	err := json.Unmarshal(value, &end)
	return end, err
}

// Budget bounds how many of the hosts it selects may be in flight at once.
type Budget struct {
	Selector       Selector `json:"selector" shape:"R"`
	MaxInFlight    *uint32  `json:"maxInFlight" shape:"N"`
	MaxInFlightPct *uint32  `json:"maxInFlightPct" shape:"N"`
	// SlotUntil is ours: SlotSoaked, SlotConfirmed, or "" for the former.
	SlotUntil string `json:"slotUntil,omitzero" shape:"O"`
}

// Until when a host holds its slot of a budget.
const (
	SlotSoaked    = "soaked"
	SlotConfirmed = "confirmed"
)

// Manifest is one channel of a release, rollouts/<id>.json.
type Manifest struct {
	SchemaVersion        uint32           `json:"schemaVersion" shape:"R"`
	DisplayName          string           `json:"displayName" shape:"R"`
	Channel              string           `json:"channel" shape:"R"`
	ChannelRef           string           `json:"channelRef" shape:"R"`
	FleetResolvedHash    string           `json:"fleetResolvedHash" shape:"R"`
	HostSet              []HostEntry      `json:"hostSet" shape:"R"`
	HealthGate           HealthGate       `json:"healthGate" shape:"R"`
	ComplianceFrameworks []string         `json:"complianceFrameworks" shape:"R"`
	DisruptionBudgets    []ManifestBudget `json:"disruptionBudgets" shape:"D"`
	Meta                 Meta             `json:"meta" shape:"R"`
}

// HostEntry is one host of a manifest.
type HostEntry struct {
	Hostname      string `json:"hostname" shape:"R"`
	WaveIndex     uint32 `json:"waveIndex" shape:"R"`
	TargetClosure string `json:"targetClosure" shape:"R"`
}

// ManifestBudget is a budget with its selector resolved over all hosts.
type ManifestBudget struct {
	Selector       Selector `json:"selector" shape:"R"`
	Hosts          []string `json:"hosts" shape:"R"`
	MaxInFlight    *uint32  `json:"maxInFlight" shape:"N"`
	MaxInFlightPct *uint32  `json:"maxInFlightPct" shape:"N"`
}

// The kinds of signed documents. A head says its own as `kind`; the documents of v1 do not, and one that says another
// than its own is refused.
const (
	KindFleet       = "fleet"
	KindManifest    = "manifest"
	KindHead        = "head"
	KindRevocations = "revocations"
	KindNonces      = "bootstrap-nonces"
)

// Head is heads/<channel>.json: the small signed truth about a channel.
// FreshnessWindow is minutes; ConfirmWindowSecs and LeaseSecs are seconds.
type Head struct {
	SchemaVersion     uint32        `json:"schemaVersion" shape:"R"`
	Kind              string        `json:"kind" shape:"R"`
	Channel           string        `json:"channel" shape:"R"`
	RolloutID         string        `json:"rolloutId" shape:"R"`
	ChannelRef        string        `json:"channelRef" shape:"R"`
	DisplayName       string        `json:"displayName" shape:"R"`
	FleetResolvedHash string        `json:"fleetResolvedHash" shape:"R"`
	Intent            string        `json:"intent" shape:"R"`
	OpenedAt          pki.Timestamp `json:"openedAt" shape:"R"`
	FreshnessWindow   uint32        `json:"freshnessWindow" shape:"R"`
	ConfirmWindowSecs uint32        `json:"confirmWindowSecs" shape:"R"`
	LeaseSecs         uint32        `json:"leaseSecs" shape:"R"`
	OnHealthFailure   FailurePolicy `json:"onHealthFailure" shape:"R"`
	ComplianceMode    string        `json:"complianceMode" shape:"R"`
	HostSetRoot       string        `json:"hostSetRoot" shape:"R"`
	HostCount         uint32        `json:"hostCount" shape:"R"`
	Meta              Meta          `json:"meta" shape:"R"`
}

// Revocations is revocations.json.
type Revocations struct {
	SchemaVersion uint32       `json:"schemaVersion" shape:"R"`
	Revocations   []Revocation `json:"revocations" shape:"R"`
	Meta          Meta         `json:"meta" shape:"R"`
}

// Revocation refuses certificates of Hostname (a host, or an operator's bare
// common name) whose notBefore is strictly earlier than NotBefore.
type Revocation struct {
	Hostname  string        `json:"hostname" shape:"R"`
	NotBefore pki.Timestamp `json:"notBefore" shape:"R"`
	Reason    *string       `json:"reason" shape:"N"`
	RevokedBy *string       `json:"revokedBy" shape:"N"`
}

// BootstrapNonces is bootstrap-nonces.json, the allowlist of tokens.
type BootstrapNonces struct {
	SchemaVersion   uint32           `json:"schemaVersion" shape:"R"`
	BootstrapNonces []BootstrapNonce `json:"bootstrapNonces" shape:"R"`
	Meta            Meta             `json:"meta" shape:"R"`
}

// BootstrapNonce allows one token until ExpiresAt, that instant included.
type BootstrapNonce struct {
	Nonce     string         `json:"nonce" shape:"R"`
	Hostname  string         `json:"hostname" shape:"R"`
	ExpiresAt pki.Timestamp  `json:"expiresAt" shape:"R"`
	MintedAt  *pki.Timestamp `json:"mintedAt" shape:"N"`
	MintedBy  *string        `json:"mintedBy" shape:"N"`
}
