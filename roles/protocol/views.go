package protocol

import (
	"maps"
	"time"

	"github.com/go-json-experiment/json/jsontext"

	"nixfleet/nixops/fleet"
	"nixfleet/pki"
)

// Whoami answers GET /v1/whoami.
type Whoami struct {
	CN       string     `json:"cn" shape:"R"`
	IssuedAt OffsetTime `json:"issuedAt" shape:"R"`
}

// OffsetTime is a time that v1 writes with +00:00 rather than Z.
type OffsetTime struct{ pki.Timestamp }

// MarshalJSON writes the time with +00:00.
func (t OffsetTime) MarshalJSON() ([]byte, error) {
	s := t.Timestamp.String()
	return []byte(`"` + s[:len(s)-1] + `+00:00"`), nil
}

// Offset is t as v1 writes it on read endpoints.
func Offset(t time.Time) OffsetTime { return OffsetTime{pki.At(t)} }

// ChannelResponse answers GET /v1/channels/{name}.
type ChannelResponse struct {
	Name                   string      `json:"name" shape:"R"`
	DeclaredCICommit       *string     `json:"declared_ci_commit" shape:"N"`
	SignedAt               *OffsetTime `json:"signed_at" shape:"N"`
	FreshnessWindowMinutes uint32      `json:"freshness_window_minutes" shape:"R"`
	// Freeze is ours; nil: the channel is not frozen.
	Freeze *ChannelFreeze `json:"freeze,omitzero" shape:"O"`
}

// ChannelsResponse answers GET /v1/channels, sorted by name.
type ChannelsResponse struct {
	Channels []ChannelEntry `json:"channels" shape:"R"`
}

// ChannelEntry is a channel with how its hosts and its newest rollout stand.
type ChannelEntry struct {
	ChannelResponse
	Counts       HostCounts `json:"counts" shape:"R"`
	RolloutID    *string    `json:"rolloutId" shape:"N"`
	RolloutState string     `json:"rolloutState,omitzero" shape:"O"`
}

// HostsResponse answers GET /v1/hosts, sorted by host name.
type HostsResponse struct {
	Hosts []HostEntry `json:"hosts" shape:"R"`

	// Ours, where the query asks for some of the hosts: how many of all that match
	// stand how, and what `after` is on the next page; empty on the last one.
	Counts *HostCounts `json:"counts,omitzero" shape:"O"`
	Next   string      `json:"next,omitzero" shape:"O"`
}

// Standing is how a host stands, in one word.
type Standing string

// How a host stands.
const (
	StandsFailed    Standing = "failed"    // its activation failed, a probe fails, or its closure is quarantined
	StandsSilent    Standing = "silent"    // nothing was heard of it lately, or ever
	StandsMoving    Standing = "moving"    // it was told its target and has not confirmed it
	StandsWaiting   Standing = "waiting"   // something holds it
	StandsConverged Standing = "converged" // it runs what is declared
)

// Standings are all of them, the worst first.
var Standings = []Standing{StandsFailed, StandsSilent, StandsMoving, StandsWaiting, StandsConverged}

// HostCounts is how many hosts stand how.
type HostCounts struct {
	Hosts     int `json:"hosts" shape:"R"`
	Failed    int `json:"failed" shape:"R"`
	Silent    int `json:"silent" shape:"R"`
	Moving    int `json:"moving" shape:"R"`
	Waiting   int `json:"waiting" shape:"R"`
	Converged int `json:"converged" shape:"R"`
}

// Add counts a host.
func (c *HostCounts) Add(s Standing) {
	c.Hosts++
	switch s {
	case StandsFailed:
		c.Failed++
	case StandsSilent:
		c.Silent++
	case StandsMoving:
		c.Moving++
	case StandsWaiting:
		c.Waiting++
	case StandsConverged:
		c.Converged++
	}
}

// Of is how many hosts stand so.
func (c *HostCounts) Of(s Standing) int {
	return map[Standing]int{StandsFailed: c.Failed, StandsSilent: c.Silent, StandsMoving: c.Moving,
		StandsWaiting: c.Waiting, StandsConverged: c.Converged}[s]
}

// HostEntry is one host as operators see it.
type HostEntry struct {
	Hostname                      string         `json:"hostname" shape:"R"`
	Channel                       string         `json:"channel" shape:"R"`
	DeclaredClosureHash           *string        `json:"declaredClosureHash" shape:"N"`
	CurrentClosureHash            *string        `json:"currentClosureHash" shape:"N"`
	PendingClosureHash            *string        `json:"pendingClosureHash" shape:"N"`
	LastCheckinAt                 *pki.Timestamp `json:"lastCheckinAt" shape:"N"`
	LastRolloutID                 *string        `json:"lastRolloutId" shape:"N"`
	Converged                     bool           `json:"converged" shape:"R"`
	OutstandingComplianceFailures uint32         `json:"outstandingComplianceFailures" shape:"R"`
	OutstandingRuntimeGateErrors  uint32         `json:"outstandingRuntimeGateErrors" shape:"R"`
	VerifiedEventCount            uint32         `json:"verifiedEventCount" shape:"R"`
	LastUptimeSecs                *uint64        `json:"lastUptimeSecs" shape:"N"`
	RolloutState                  *string        `json:"rolloutState" shape:"N"`
	PendingReboot                 bool           `json:"pendingReboot" shape:"D"`
	QuarantinedClosure            *string        `json:"quarantinedClosure" shape:"N"`
	Pin                           *HostPin       `json:"pin" shape:"N"`
	OutstandingHealthFailures     uint32         `json:"outstandingHealthFailures" shape:"D"`

	// Ours: its state where v1 has no word for it, why it is not further, and
	// whether it has been heard of lately.
	State  *string `json:"state,omitzero" shape:"O"`
	Reason *Reason `json:"reason,omitzero" shape:"O"`
	Online *bool   `json:"online,omitzero" shape:"O"`
	Held   *string `json:"held,omitzero" shape:"O"`
	// Clone says that two machines answer under its name.
	Clone *HostClone `json:"clone,omitzero" shape:"O"`
	// Standing is how it stands, in one word that all views share.
	Standing Standing `json:"standing,omitzero" shape:"O"`
	// Wave is that of its rollout, from 0.
	Wave *uint32 `json:"wave,omitzero" shape:"O"`
	// Canary says that its wave is the first of several. Since is when its state began.
	// Running is of which release it runs, and since when; it is left out of lists of
	// more than 1000 hosts.
	Canary  bool           `json:"canary,omitzero" shape:"O"`
	Since   *pki.Timestamp `json:"since,omitzero" shape:"O"`
	Running *HostRelease   `json:"running,omitzero" shape:"O"`
	// Trouble is AgentWord.Trouble.
	Trouble *string `json:"trouble,omitzero" shape:"O"`
}

// Word is the host's state, empty when it is in no rollout.
func (e *HostEntry) Word() string {
	switch {
	case e.State != nil:
		return *e.State
	case e.RolloutState != nil:
		return *e.RolloutState
	}
	return ""
}

// HostPin is a host's active pin.
type HostPin struct {
	Commit    string         `json:"commit" shape:"R"`
	Reason    string         `json:"reason" shape:"R"`
	ExpiresAt *pki.Timestamp `json:"expiresAt,omitzero" shape:"O"`
}

// Reason is why a host waits: a stable code, the gate, a sentence, and what to do.
type Reason struct {
	Code string `json:"code" shape:"R"`
	Gate string `json:"gate" shape:"R"`
	Text string `json:"text" shape:"R"`
	Next string `json:"next" shape:"R"`
	// Opens is when it ends by itself, where that is known.
	Opens *pki.Timestamp `json:"opens,omitzero" shape:"O"`
}

// DeferralsResponse answers GET /v1/deferrals.
type DeferralsResponse struct {
	Deferrals []Deferral `json:"deferrals" shape:"R"`
}

// Deferral is a channel that waits for another.
type Deferral struct {
	Channel   string `json:"channel" shape:"R"`
	TargetRef string `json:"targetRef" shape:"R"`
	BlockedBy string `json:"blockedBy" shape:"R"`
	Reason    string `json:"reason" shape:"R"`
}

// HostReportsResponse answers GET /v1/host-reports, newest first.
type HostReportsResponse struct {
	Reports []HostReport `json:"reports" shape:"R"`
}

// HostReport is one stored report with the verdict on its signature.
type HostReport struct {
	Hostname        string         `json:"hostname" shape:"R"`
	EventID         string         `json:"eventId" shape:"R"`
	ReceivedAt      OffsetTime     `json:"receivedAt" shape:"R"`
	EventKind       string         `json:"eventKind" shape:"R"`
	Rollout         *string        `json:"rollout" shape:"N"`
	SignatureStatus *string        `json:"signatureStatus" shape:"N"`
	Event           string         `json:"event" shape:"R"`
	Details         jsontext.Value `json:"details" shape:"R"`
}

// RolloutsResponse answers GET /v1/rollouts: the open ones, newest first.
type RolloutsResponse struct {
	Rollouts []RolloutSummary `json:"rollouts" shape:"R"`
}

// RolloutSummary is one rollout with its hosts' states.
type RolloutSummary struct {
	RolloutID   string            `json:"rolloutId" shape:"R"`
	Channel     string            `json:"channel" shape:"R"`
	CurrentWave uint32            `json:"currentWave" shape:"R"`
	CreatedAt   OffsetTime        `json:"createdAt" shape:"R"`
	HostStates  map[string]string `json:"hostStates" shape:"R"`

	// Ours. States are those for which v1 has no word, by host.
	States     map[string]string `json:"states,omitzero" shape:"O"`
	State      string            `json:"state,omitzero" shape:"O"`
	Intent     string            `json:"intent,omitzero" shape:"O"`
	HaltReason string            `json:"haltReason,omitzero" shape:"O"`
	Hold       *string           `json:"hold,omitzero" shape:"O"` // "paused by NAME: REASON"
	Ref        string            `json:"ref,omitzero" shape:"O"`  // the commit of its release
}

// Words are the states of the rollout's hosts, by host.
func (r *RolloutSummary) Words() map[string]string {
	words := make(map[string]string, len(r.HostStates))
	maps.Copy(words, r.HostStates)
	maps.Copy(words, r.States)
	return words
}

// Why is why a rollout stands still, empty when it does not: the hold comes before the halt.
func (r *RolloutSummary) Why() string {
	if r.Hold != nil {
		return *r.Hold
	}
	return r.HaltReason
}

// RolloutWaves answers GET /v1/rollouts/{id}/waves. It has no waves when only the
// header of the rollout is remembered.
type RolloutWaves struct {
	RolloutID string        `json:"rolloutId" shape:"R"`
	Waves     []RolloutWave `json:"waves" shape:"R"`
}

// RolloutWave is one wave, from 0, with how many of its hosts are in which state.
// SoakingUntil is when the last of those that soak now has soaked.
type RolloutWave struct {
	Wave         uint32         `json:"wave" shape:"R"`
	Open         bool           `json:"open" shape:"R"`
	OpenedAt     *pki.Timestamp `json:"openedAt" shape:"N"` // of the newest open one
	SoakSecs     uint32         `json:"soakSecs" shape:"R"`
	SoakingUntil *pki.Timestamp `json:"soakingUntil" shape:"N"`
	Hosts        uint32         `json:"hosts" shape:"R"`
	States       map[string]int `json:"states" shape:"R"`
}

// Lifecycle answers GET /v1/rollouts/{id}/lifecycle.
type Lifecycle struct {
	RolloutID    string      `json:"rolloutId" shape:"R"`
	SupersededAt *OffsetTime `json:"supersededAt" shape:"N"`
	SupersededBy *string     `json:"supersededBy" shape:"N"`
	TerminalAt   *OffsetTime `json:"terminalAt" shape:"N"`

	// Ours, as in RolloutSummary.
	Channel    string `json:"channel,omitzero" shape:"O"`
	State      string `json:"state,omitzero" shape:"O"`
	HaltReason string `json:"haltReason,omitzero" shape:"O"`
}

// Trace answers GET /v1/rollouts/{id}/trace, by wave, then time.
type Trace struct {
	RolloutID string       `json:"rollout_id" shape:"R"`
	Events    []TraceEvent `json:"events" shape:"R"`
}

// TraceEvent is one dispatch. TerminalState is converged,
// converged-at-dispatch, rolled-back or cancelled. DispatchedAt is read in both
// forms that exist in the field.
type TraceEvent struct {
	Host              string      `json:"host" shape:"R"`
	Channel           string      `json:"channel" shape:"R"`
	Wave              uint32      `json:"wave" shape:"R"`
	TargetClosureHash string      `json:"targetClosureHash" shape:"R"`
	TargetChannelRef  string      `json:"targetChannelRef" shape:"R"`
	DispatchedAt      TraceTime   `json:"dispatchedAt" shape:"R"`
	TerminalState     *string     `json:"terminalState" shape:"N"`
	TerminalAt        *OffsetTime `json:"terminalAt" shape:"N"`
}

// TraceTime is a time that may come as `YYYY-MM-DD hh:mm:ss` in UTC without a
// zone. It is written with +00:00.
type TraceTime struct{ OffsetTime }

// UnmarshalJSON reads both forms.
func (t *TraceTime) UnmarshalJSON(doc []byte) error {
	if bare, err := time.Parse(`"`+time.DateTime+`"`, string(doc)); err == nil {
		t.OffsetTime = Offset(bare)
		return nil
	}
	return t.Timestamp.UnmarshalJSON(doc)
}

// Proof answers GET /v1/heads/{channel}/proof/{hostname}: the host's entry as
// canonical JSON, its place, and the RFC 9162 path in lower-case hex.
type Proof struct {
	Leaf  jsontext.Value `json:"leaf" shape:"R"`
	Index int            `json:"index" shape:"R"`
	Path  []string       `json:"path" shape:"R"`
}

// Entry is the host's entry, once the proof that it is under the head holds. The
// caller has verified the head; errors are those of fleet.Head.Entry.
func (p *Proof) Entry(head *fleet.Head, hostname string) (fleet.HostEntry, error) {
	return head.Entry(hostname, p.Leaf, p.Index, p.Path)
}

// Explanation answers GET /v1/hosts/{name}/explain.
type Explanation struct {
	Hostname  string  `json:"hostname" shape:"R"`
	Channel   string  `json:"channel" shape:"R"`
	Current   *string `json:"current" shape:"N"`
	Declared  *string `json:"declared" shape:"N"`
	State     *string `json:"state" shape:"N"`
	RolloutID *string `json:"rolloutId" shape:"N"`
	Wave      *uint32 `json:"wave" shape:"N"`
	Reason    Reason  `json:"reason" shape:"R"`

	// Failure is why a host failed that is Failed or Reverted. Ours.
	Failure *HostFailure `json:"failure,omitzero" shape:"O"`
}

// Event is one line of the append-only event log.
type Event struct {
	Seq       int64         `json:"seq" shape:"R"`
	At        pki.Timestamp `json:"at" shape:"R"`
	Kind      string        `json:"kind" shape:"R"`
	RolloutID string        `json:"rolloutId,omitzero" shape:"O"`
	Intent    string        `json:"intent,omitzero" shape:"O"`
	Channel   string        `json:"channel,omitzero" shape:"O"`
	Host      string        `json:"host,omitzero" shape:"O"`
	Actor     string        `json:"actor,omitzero" shape:"O"`
	Reason    string        `json:"reason,omitzero" shape:"O"`
	Detail    string        `json:"detail,omitzero" shape:"O"`
}

// History answers GET /v1/history, the newest first. Before is what `before` is on the
// next page, 0 on the last one.
type History struct {
	Events []Event `json:"events" shape:"R"`
	Before int64   `json:"before,omitzero" shape:"O"`
}

// HistoryQuery says which events are asked for. Empty words match all.
type HistoryQuery struct {
	Rollout, Host, Channel, Kind, Actor string
	Before                              int64 // 0 for the newest
	Limit                               int
}

// Audit answers GET /v1/audit: what operators did, the newest first.
type Audit struct {
	Entries []AuditEntry `json:"entries" shape:"R"`
	Before  int64        `json:"before,omitzero" shape:"O"`
}

// AuditEntry is one act of an operator.
type AuditEntry struct {
	Seq     int64         `json:"seq" shape:"R"`
	At      pki.Timestamp `json:"at" shape:"R"`
	Actor   string        `json:"actor" shape:"R"`
	Action  string        `json:"action" shape:"R"`
	Subject string        `json:"subject" shape:"R"`
	Reason  string        `json:"reason" shape:"R"`
}

// HoldRequest is the body of POST /v1/rollouts/{id}/pause, resume and cancel,
// of POST /v1/hosts/{name}/retry and of POST /v1/channels/{name}/thaw.
type HoldRequest struct {
	Reason string `json:"reason" shape:"D"`
}
