package rollout

import "time"

// HostState is where one host stands within one rollout. The words are those of /v1/hosts.
type HostState string

const (
	Queued        HostState = "Queued"        // waits for its turn; the default, never stored by itself
	Dispatched    HostState = "Dispatched"    // holds a lease and has not said that it started
	Activating    HostState = "Activating"    // said that it started to activate
	ConfirmWindow HostState = "ConfirmWindow" // runs the target and has not confirmed yet
	Healthy       HostState = "Healthy"       // confirmed (or found on its target and well); soaking
	Soaked        HostState = "Soaked"        // was healthy for the soak time of its wave
	Converged     HostState = "Converged"     // its rollout is done
	Failed        HostState = "Failed"        // the target did not work here
	Reverted      HostState = "Reverted"      // failed or recalled, and back on its previous closure
	Deferred      HostState = "Deferred"      // staged; waits for a reboot
	Skipped       HostState = "Skipped"       // not waited for (offline, held, tolerated), not forgotten
)

// RolloutState is where one rollout stands.
type RolloutState string

const (
	Planning          RolloutState = "Planning"  // accepted, waits for the channels it comes after
	Executing         RolloutState = "Executing" // wave Rollout.Wave is open
	RolloutConverged  RolloutState = "Converged"
	Halted            RolloutState = "Halted"    // a failure stopped it; nothing new starts
	Reverting         RolloutState = "Reverting" // a failure recalls every touched host
	RolloutReverted   RolloutState = "Reverted"  // every touched host is back
	Cancelled         RolloutState = "Cancelled" // by an operator
	RolloutSuperseded RolloutState = "Superseded"
)

// Dispatch states, as operators read them in pending_confirms.
const (
	DispatchPending    = "pending"
	DispatchConfirmed  = "confirmed"
	DispatchRolledBack = "rolled-back"
	DispatchCancelled  = "cancelled"
	DispatchDeferred   = "deferred-pending-reboot"
)

// Operator actions on a rollout.
const (
	ActionPause  = "pause"
	ActionResume = "resume"
	ActionCancel = "cancel"
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
	// Failures are the distinct outstanding compliance failures, sorted: "compliance:<control id>" or "runtime-gate:<reason>".
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

// Quarantine is a closure that is not offered on a channel any more. Keyed by (Channel, Closure).
type Quarantine struct {
	Channel, Closure, Reason string
	Since                    time.Time
	Cleared                  bool
}

// Event is one line of a rollout's append-only log. Seq is given by the store.
type Event struct {
	Seq                              int64
	At                               time.Time
	Intent, RolloutID, Channel, Host string
	Kind, Actor, Reason, Detail      string // Reason is a stable code, Detail one sentence
}

// State is everything a World needs in order to go on after a restart.
type State struct {
	Rollouts    []Rollout
	Hosts       []HostRecord
	Dispatches  []Dispatch // open ones, and ended ones whose slot may still be held
	Quarantines []Quarantine
	Empty       bool // the database was empty at start
}

// Change is what one call changed: rows to upsert, events to append, hosts to wake.
type Change struct {
	Rollouts    []Rollout
	Hosts       []HostRecord
	Dispatches  []Dispatch
	Quarantines []Quarantine
	Events      []Event
	Wake        []string // hosts whose answer may have changed, sorted
}

// Empty reports that nothing has to be stored and nobody has to be woken.
func (c Change) Empty() bool {
	return len(c.Rollouts) == 0 && len(c.Hosts) == 0 && len(c.Dispatches) == 0 &&
		len(c.Quarantines) == 0 && len(c.Events) == 0 && len(c.Wake) == 0
}

// Merge appends a later change. Rows keep their order, so that the last one of a key wins.
func (c *Change) Merge(o Change) {
	c.Rollouts = append(c.Rollouts, o.Rollouts...)
	c.Hosts = append(c.Hosts, o.Hosts...)
	c.Dispatches = append(c.Dispatches, o.Dispatches...)
	c.Quarantines = append(c.Quarantines, o.Quarantines...)
	c.Events = append(c.Events, o.Events...)
	c.Wake = append(c.Wake, o.Wake...)
}

// Probe is one health probe as the agent last reported it: Status is unknown, pass or fail.
type Probe struct{ Name, Kind, Status string }

// Phase is what an agent says it is doing: fetching, staged, activating, checking, committing, undoing, idle.
type Phase struct {
	Name, Intent, Closure string
	Since                 time.Time
	Attempt               int
}

// Observation is one check-in, as far as decisions depend on it. Everything in it is the host's own word,
// except Attested, which the caller has verified.
type Observation struct {
	Closure, BootID string // running closure (store base name), kernel boot id
	PendingClosure  string // staged for the next boot, when the agent says so
	LastConfirmedAt *time.Time
	// Attested: the signature over LastConfirmedAt verifies for some rollout id of the intent that the
	// host's channel has now; AttestedRollout is that id.
	Attested        bool
	AttestedRollout string
	Probes          []Probe
	ProbeMode       string // disabled, permissive, enforce or "" (does not gate)
	FetchResult     string // ok, verify-failed, fetch-failed, none or ""
	FetchRollout    string
	Phase           *Phase
	RebootPending   bool
	// Held is why the host does not take targets by itself, "" when it does. protocol.HeldQuarantined of the
	// target's closure counts like the report closure-quarantined, so that a halt comes back after a lost database.
	Held       string
	KnowsLease bool // false: a v1 agent
	// Wait is how long the caller may hold this request open; the host counts as present meanwhile.
	Wait time.Duration
}

// Report is an agent's event as far as decisions depend on it.
type Report struct {
	Event     string // tag of wire.md §7
	RolloutID string
	Closure   string // closure_hash where the event has one
	Phase     string // activation-failed: phase
	Reason    string // reason; compliance-failure: control_id
	Detail    string // for people: stderr tail and the like
	Reboots   bool   // activation-deferred: the host reboots at once and by itself
	Counts    bool   // the verdict on its signature allows state changes
	// Unsigned says that the host should have signed it and did not: its event can be signed, and a host key is declared. It then
	// says nothing against the release.
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
	Rollback *Rollback
	Reason   Reason
}

// Target is an offer: activate Closure, beginning not later than StartBy from now.
type Target struct {
	Closure, RolloutID, Intent, Channel, ChannelRef string
	Wave                                            int
	ConfirmWindow                                   time.Duration
	StartBy                                         time.Duration // remaining lease
	Freshness                                       time.Duration // the channel's freshness window
	ComplianceMode                                  string
	SignedAt                                        time.Time
	Resent                                          bool // the same lease, told again
}

// Rollback asks a host to return to its recorded previous closure. TargetRef is that closure, or the channel
// ref when the record was lost.
type Rollback struct{ RolloutID, TargetRef, Reason string }

// Reason says why a decision is what it is: a stable kebab-case code, the gate that spoke, one English
// sentence, and the next action of whoever reads it.
type Reason struct{ Code, Gate, Text, Next string }
