package protocol

import (
	"fmt"
	"slices"
	"strings"

	"nixfleet/nixops/fleet"
	"nixfleet/pki"
)

// Paths, headers and bounds of protocol version 1.
const (
	Version        = 1
	HeaderProtocol = "X-Nixfleet-Protocol"
	// MaxBody is the largest request body, in bytes.
	MaxBody = 2 << 20
	// ConfirmPath is constant: an agent confirms nowhere else.
	ConfirmPath = "/v1/agent/confirm"
)

// Generation is what a host runs. ClosureHash is a full store base name.
type Generation struct {
	ClosureHash string  `json:"closureHash" shape:"R"`
	ChannelRef  *string `json:"channelRef,omitzero" shape:"O"`
	BootID      string  `json:"bootId" shape:"R"`
}

// PendingGeneration is what a host will run after its next boot.
type PendingGeneration struct {
	ClosureHash string `json:"closureHash" shape:"R"`
}

// Results of fetching the signed documents of a target.
const (
	FetchOK           = "ok"
	FetchVerifyFailed = "verify-failed"
	FetchFailed       = "fetch-failed"
	FetchNone         = "none"
)

// FetchOutcome is how the last fetch of a target's documents ended.
type FetchOutcome struct {
	Result    string  `json:"result" shape:"R"`
	Error     *string `json:"error,omitzero" shape:"O"`
	RolloutID *string `json:"rolloutId,omitzero" shape:"O"`
	Dispatch  string  `json:"dispatch,omitzero" shape:"O"` // ours
}

// Kinds and states of health probes.
const (
	ProbeHTTP = "http"
	ProbeTCP  = "tcp"
	ProbeExec = "exec"

	ProbeUnknown = "unknown"
	ProbePass    = "pass"
	ProbeFail    = "fail"
)

// ProbeResult is one probe's state at the time of a check-in.
type ProbeResult struct {
	Name          string         `json:"name" shape:"R"`
	Kind          string         `json:"kind" shape:"R"`
	Status        string         `json:"status" shape:"R"`
	LastRunAt     *pki.Timestamp `json:"lastRunAt,omitzero" shape:"O"`
	LastPassAt    *pki.Timestamp `json:"lastPassAt,omitzero" shape:"O"`
	FailureReason *string        `json:"failureReason,omitzero" shape:"O"`
}

// Names of an agent's phases.
const (
	PhaseIdle       = "idle"
	PhaseFetching   = "fetching"
	PhaseStaged     = "staged"
	PhaseActivating = "activating"
	PhaseChecking   = "checking"
	PhaseCommitting = "committing"
	PhaseUndoing    = "undoing"
)

// Phase is where in an activation the agent is.
type Phase struct {
	Name        string         `json:"name" shape:"R"`
	Intent      string         `json:"intent,omitzero" shape:"O"`
	ClosureHash string         `json:"closureHash,omitzero" shape:"O"`
	Since       *pki.Timestamp `json:"since,omitzero" shape:"O"`
	Attempt     uint32         `json:"attempt,omitzero" shape:"O"`
	Dispatch    string         `json:"dispatch,omitzero" shape:"O"`
}

// CheckinRequest is what an agent says of its host.
type CheckinRequest struct {
	Hostname             string             `json:"hostname" shape:"R"`
	AgentVersion         string             `json:"agentVersion" shape:"R"`
	CurrentGeneration    Generation         `json:"currentGeneration" shape:"R"`
	PendingGeneration    *PendingGeneration `json:"pendingGeneration,omitzero" shape:"O"`
	LastEvaluatedTarget  *Target            `json:"lastEvaluatedTarget,omitzero" shape:"O"`
	LastFetchOutcome     *FetchOutcome      `json:"lastFetchOutcome,omitzero" shape:"O"`
	UptimeSecs           *uint64            `json:"uptimeSecs,omitzero" shape:"O"`
	LastConfirmedAt      *pki.Timestamp     `json:"lastConfirmedAt,omitzero" shape:"O"`
	AttestationSignature *string            `json:"attestationSignature,omitzero" shape:"O"`
	HealthProbes         []ProbeResult      `json:"healthProbes" shape:"D"`
	HealthCheckMode      *string            `json:"healthCheckMode,omitzero" shape:"O"`

	// Ours; a v1 control plane ignores them.
	Phase          *Phase  `json:"phase,omitzero" shape:"O"`
	RebootPending  *string `json:"rebootPending,omitzero" shape:"O"`  // the component that waits for a boot
	Specialisation *string `json:"specialisation,omitzero" shape:"O"` // its name, when the host runs one
	Held           *string `json:"held,omitzero" shape:"O"`           // why root holds the host, in words

	Boot        *BootWord `json:"boot,omitzero" shape:"O"`
	CannotBegin *string   `json:"cannotBegin,omitzero" shape:"O"` // why it could not begin the newest target, in words
}

// BootWord is what an agent knows of the next boot.
type BootWord struct {
	Loader   string  `json:"loader" shape:"D"`
	Next     *string `json:"next" shape:"N"`              // closure; nil: not known
	Unknown  string  `json:"unknown,omitzero" shape:"O"`  // why, in words
	Once     string  `json:"once,omitzero" shape:"O"`     // closure that starts once instead
	Counter  string  `json:"counter,omitzero" shape:"O"`  // of the entry: "protects" or "in vain"
	Expected string  `json:"expected,omitzero" shape:"O"` // closure that should be Next, and is not
}

// Trouble says what is wrong with the next boot, "" if nothing is known to be.
func (b *BootWord) Trouble() string {
	if b == nil || b.Expected == "" || b.Next == nil {
		return ""
	}
	return fmt.Sprintf("a reboot starts %s, and not %s, which was confirmed", *b.Next, b.Expected)
}

// Activate says how to confirm. ConfirmWindowSecs is seconds.
type Activate struct {
	ConfirmWindowSecs uint32 `json:"confirmWindowSecs" shape:"R"`
	ConfirmEndpoint   string `json:"confirmEndpoint" shape:"R"`
}

// Target is the closure a host is told to run. All of it but the closure's
// name is an unsigned hint: the agent decides by the signed head or manifest.
type Target struct {
	ClosureHash         string        `json:"closureHash" shape:"R"`
	ChannelRef          string        `json:"channelRef" shape:"R"`
	EvaluatedAt         pki.Timestamp `json:"evaluatedAt" shape:"R"`
	RolloutID           string        `json:"rolloutId" shape:"R"`
	WaveIndex           *uint32       `json:"waveIndex,omitzero" shape:"O"`
	Activate            *Activate     `json:"activate,omitzero" shape:"O"`
	SignedAt            pki.Timestamp `json:"signedAt" shape:"R"`
	FreshnessWindowSecs uint32        `json:"freshnessWindowSecs" shape:"R"`
	ComplianceMode      *string       `json:"complianceMode,omitzero" shape:"O"`
	// StartBySecs says that the agent must not begin to activate later than this many
	// seconds after it sent the request. Ours.
	StartBySecs *uint32 `json:"startBySecs,omitzero" shape:"O"`
	// Dispatch names the dispatch; events repeat it. Ours.
	Dispatch string `json:"dispatch,omitzero" shape:"O"`
}

// Rollback asks a host to return to its recorded previous closure.
type Rollback struct {
	Rollout   string `json:"rollout" shape:"R"`
	TargetRef string `json:"targetRef" shape:"R"`
	Reason    string `json:"reason" shape:"R"`
}

// HeadRef names the current head of the host's channel. Hash is the canonical
// hash of the head.
type HeadRef struct {
	Channel string `json:"channel" shape:"R"`
	Hash    string `json:"hash" shape:"R"`
}

// CheckinResponse is the control plane's answer. NextCheckinSecs is seconds.
type CheckinResponse struct {
	Rollback        *Rollback `json:"rollback,omitzero" shape:"O"`
	Target          *Target   `json:"target,omitzero" shape:"O"`
	NextCheckinSecs uint32    `json:"nextCheckinSecs" shape:"R"`
	Head            *HeadRef  `json:"head,omitzero" shape:"O"` // ours
	// Held reports whether the control plane held the request open, as its
	// Preference-Applied header says.
	Held bool `json:"-"`
}

// check refuses words that the contract does not have where it names them all.
func (r *CheckinRequest) check() error {
	if f := r.LastFetchOutcome; f != nil && !oneOf(f.Result, FetchOK, FetchVerifyFailed, FetchFailed, FetchNone) {
		return fmt.Errorf("%w: /lastFetchOutcome/result: %.40q", pki.ErrShape, f.Result)
	}
	for i, p := range r.HealthProbes {
		if !oneOf(p.Kind, ProbeHTTP, ProbeTCP, ProbeExec) {
			return fmt.Errorf("%w: /healthProbes/%d/kind: %.40q", pki.ErrShape, i, p.Kind)
		}
		if !oneOf(p.Status, ProbeUnknown, ProbePass, ProbeFail) {
			return fmt.Errorf("%w: /healthProbes/%d/status: %.40q", pki.ErrShape, i, p.Status)
		}
	}
	if m := r.HealthCheckMode; m != nil && !oneOf(*m, fleet.ModeDisabled, fleet.ModePermissive, fleet.ModeEnforce) {
		return fmt.Errorf("%w: /healthCheckMode: %.40q", pki.ErrShape, *m)
	}
	return nil
}

func oneOf(word string, words ...string) bool { return slices.Contains(words, word) }

// ConfirmRequest says that a host proved its new generation.
type ConfirmRequest struct {
	Hostname   string     `json:"hostname" shape:"R"`
	Rollout    string     `json:"rollout" shape:"R"`
	Wave       uint32     `json:"wave" shape:"R"`
	Generation Generation `json:"generation" shape:"R"`
}

const heldQuarantined = "quarantined"

// HeldQuarantined is the word of a check-in's `held` for a closure that the host quarantined.
func HeldQuarantined(closure string) string { return heldQuarantined + " " + closure }

// QuarantinedIn reads HeldQuarantined: the closure, and whether the text is of a quarantine at all.
func QuarantinedIn(held string) (closure string, ok bool) {
	rest, ok := strings.CutPrefix(held, heldQuarantined)
	if !ok {
		return "", false
	}
	return strings.TrimSpace(rest), true
}

// AgentWord is what an agent said at its last check-in.
type AgentWord struct {
	Version       string        `json:"version" shape:"R"`
	BootID        string        `json:"bootId" shape:"R"`
	Phase         *Phase        `json:"phase,omitzero" shape:"O"`
	FetchError    string        `json:"fetchError,omitzero" shape:"O"`
	RebootPending *string       `json:"rebootPending,omitzero" shape:"O"`
	ProbeMode     string        `json:"probeMode,omitzero" shape:"O"`
	Probes        []ProbeResult `json:"probes" shape:"R"`
	Boot          *BootWord     `json:"boot,omitzero" shape:"O"`
	CannotBegin   string        `json:"cannotBegin,omitzero" shape:"O"`
}

// Trouble says in a sentence what is wrong on the host itself, "" if nothing is known to be.
func (w AgentWord) Trouble() string {
	if w.CannotBegin != "" {
		return "the host cannot begin an activation: " + w.CannotBegin
	}
	return w.Boot.Trouble()
}
