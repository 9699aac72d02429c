package rollout

import (
	"strconv"
	"time"

	"nixfleet/roles/protocol"
)

// HostState and RolloutState are the wire's; their short names are this package's.
type (
	HostState    = protocol.HostState
	RolloutState = protocol.RolloutState
)

// The states of a host. Queued is the default and is not stored by itself.
const (
	Queued        = protocol.HostQueued
	Dispatched    = protocol.HostDispatched
	Activating    = protocol.HostActivating
	ConfirmWindow = protocol.HostConfirmWindow
	Healthy       = protocol.HostHealthy
	Soaked        = protocol.HostSoaked
	Converged     = protocol.HostConverged
	Failed        = protocol.HostFailed
	Reverted      = protocol.HostReverted
	Deferred      = protocol.HostDeferred
	Skipped       = protocol.HostSkipped
)

// The states of a rollout.
const (
	Planning          = protocol.RolloutPlanning
	Executing         = protocol.RolloutExecuting // wave Rollout.Wave is open
	RolloutConverged  = protocol.RolloutConverged
	Halted            = protocol.RolloutHalted
	Reverting         = protocol.RolloutReverting
	RolloutReverted   = protocol.RolloutReverted
	Cancelled         = protocol.RolloutCancelled
	RolloutSuperseded = protocol.RolloutSuperseded
)

// Dispatch states, as operators read them in pending_confirms.
const (
	DispatchPending    = "pending"
	DispatchConfirmed  = "confirmed"
	DispatchRolledBack = "rolled-back"
	DispatchCancelled  = "cancelled"
	DispatchDeferred   = "deferred-pending-reboot"
)

// Rollout is the movement of one channel to one intent. Keyed by (Channel, Intent).
type Rollout struct {
	Intent, RolloutID, Channel, ChannelRef string
	// IDs are all rollout ids under which this intent was signed, oldest first, RolloutID last.
	IDs   []string
	State RolloutState
	// Wave is the highest open wave; WaveSince is when it opened.
	Wave      int
	WaveSince time.Time
	// OpenedAt is signedAt of the first release with this intent: no soak clock starts earlier.
	OpenedAt, CreatedAt      time.Time
	TerminalAt, SupersededAt *time.Time
	SupersededBy             string // rollout id that took over, as it was then
	HaltReason               string
	Hold                     *Hold
}

// Hold is an operator's pause; it ends with resume or with a new intent.
type Hold struct {
	Action, By, Reason string
	At                 time.Time
}

// HostRecord is one host's row within one rollout. Keyed by (Host, Intent). A missing row means Queued.
type HostRecord struct {
	Host, Intent, Channel string
	State                 HostState
	Wave                  int
	Closure               string // what the rollout wants here
	Previous              string // closure that ran before the first dispatch of this rollout; "" when never dispatched
	Since                 time.Time
	HealthySince          *time.Time // start of the soak clock
	FailingSince          *time.Time // first of an unbroken run of failing probes
	Reason                string     // stable code saying why it is in State
	Attempt               int        // dispatches so far
	// Failures are the distinct outstanding compliance failures, sorted: "compliance:<control id>" or
	// "runtime-gate:<reason>".
	Failures []string
}

// Dispatch is one target handed to one host: a lease. Keyed by (Host, Intent, DispatchedAt); ID is the
// stored row's and 0 in a Change that concerns a dispatch which this process made: insert when the key is
// absent, update otherwise.
type Dispatch struct {
	ID                                                int64
	Host, RolloutID, Intent, Channel                  string
	Wave                                              int
	Closure, ChannelRef                               string
	State                                             string
	DispatchedAt, ConfirmDeadline, StartBy, SlotUntil time.Time
	ConfirmedAt, EndedAt                              *time.Time
	KnowsLease                                        bool // the agent promised to respect StartBy
}

// Name is what the wire calls a dispatch: no other of its host has the same.
func (d *Dispatch) Name() string { return strconv.FormatInt(d.DispatchedAt.UnixMilli(), 36) }

// Quarantine is a closure that is not offered on a channel any more. Keyed by (Channel, Closure).
type Quarantine struct {
	Channel, Closure, Reason string
	Since                    time.Time
	Cleared                  bool
}

// State is everything a World needs in order to go on after a restart.
type State struct {
	Rollouts    []Rollout
	Hosts       []HostRecord
	Dispatches  []Dispatch // open ones, and ended ones whose slot may still be held
	Quarantines []Quarantine
	Twins       []Twins
	Freezes     []Freeze
	Empty       bool // the database was empty at start
}

// Change is what one call changed: rows to upsert, events to append, hosts to wake.
type Change struct {
	Rollouts    []Rollout
	Hosts       []HostRecord
	Dispatches  []Dispatch
	Quarantines []Quarantine
	Twins       []Twins
	Freezes     []Freeze
	Events      []protocol.Event // Seq is given by the store; Reason is a stable code, Detail one sentence
	Wake        []string         // hosts whose answer may have changed, sorted
}

// Merge appends a later change. Rows keep their order, so that the last one of a key wins.
func (c *Change) Merge(o Change) {
	c.Rollouts = append(c.Rollouts, o.Rollouts...)
	c.Hosts = append(c.Hosts, o.Hosts...)
	c.Dispatches = append(c.Dispatches, o.Dispatches...)
	c.Quarantines = append(c.Quarantines, o.Quarantines...)
	c.Twins = append(c.Twins, o.Twins...)
	c.Freezes = append(c.Freezes, o.Freezes...)
	c.Events = append(c.Events, o.Events...)
	c.Wake = append(c.Wake, o.Wake...)
}

// Observation is one check-in, as far as decisions depend on it. Everything in it is the host's own word,
// except Attested, which the caller has verified.
type Observation struct {
	Closure, BootID string // running closure (store base name), kernel boot id
	LastConfirmedAt *time.Time
	// Attested says that the signature over LastConfirmedAt verifies for some rollout id of the intent that the host's
	// channel has now.
	Attested      bool
	Probes        []protocol.ProbeResult
	ProbeMode     string // disabled, permissive, enforce or "" (does not gate)
	Fetch         Fetch
	Phase         *protocol.Phase // nil: a v1 agent
	RebootPending bool
	// Held is why the host does not take targets by itself, "" when it does. protocol.HeldQuarantined of the
	// target's closure counts like the report closure-quarantined, so that a halt comes back after a lost database.
	Held       string
	KnowsLease bool // false: a v1 agent
	// Uptime is how long the agent has run, in whole seconds; 0 when it does not say.
	Uptime time.Duration
	// Twin says that two connections under this name were both in use at once.
	Twin bool
	// Wait is how long the caller may hold this request open; the host counts as present meanwhile.
	Wait time.Duration
}

// Fetch is how the last fetch of signed documents ended.
type Fetch struct {
	Result   string // ok, verify-failed, fetch-failed, none or ""
	Rollout  string
	Dispatch string // names the dispatch that it was for; "" when the host does not say
}

// Report is an agent's event as far as decisions depend on it.
type Report struct {
	Event     string // tag of wire.md §7
	RolloutID string
	Dispatch  string // the newest one that the host had been given when it happened; "" when the host does not say
	Closure   string // closure_hash where the event has one
	Phase     string // activation-failed: phase
	Reason    string // reason; compliance-failure: control_id
	Reboots   bool   // activation-deferred: the host reboots at once and by itself
	Counts    bool   // the verdict on its signature allows state changes
	// Unsigned says that the host should have signed it and did not: its event can be signed, and a host key is
	// declared. It then says nothing against the release.
	Unsigned bool
}

// Limits are the clocks of the procedure.
type Limits struct {
	ConfirmWindow  time.Duration // from the start of an activation to its confirm
	Lease          time.Duration // a dispatch must be started within it
	Margin         time.Duration // added before a silent lease gives its slot back
	OfflineAfter   time.Duration // silence after which a host is offline
	ProbeFailAfter time.Duration // unbroken failure after which probes fail a host
	MaxAttempts    int           // unconfirmed dispatches before a host counts as failed
	FetchLimit     time.Duration // how long renewals keep one dispatch alive while its host downloads
}

// DefaultLimits are the limits of wire.md and additions.md.
func DefaultLimits() Limits {
	return Limits{
		ConfirmWindow:  360 * time.Second,
		Lease:          300 * time.Second,
		Margin:         60 * time.Second,
		OfflineAfter:   180 * time.Second,
		ProbeFailAfter: 60 * time.Second,
		MaxAttempts:    3,
		FetchLimit:     4 * time.Hour,
	}
}

// Decision is the answer to "what should this host do now, and why".
type Decision struct {
	Target   *Target
	Rollback *protocol.Rollback
	Reason   protocol.Reason
}

// Target is an offer: activate Closure, beginning not later than StartBy from now.
type Target struct {
	Closure, RolloutID, Intent, Channel, ChannelRef string
	Dispatch                                        string // names the dispatch that it belongs to
	Wave                                            int
	ConfirmWindow                                   time.Duration
	StartBy                                         time.Duration // remaining lease
	Freshness                                       time.Duration // the channel's freshness window
	ComplianceMode                                  string
	SignedAt                                        time.Time
	Resent                                          bool // the same lease, told again
}
