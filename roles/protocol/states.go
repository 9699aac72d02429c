package protocol

// HostState is where a host stands within a rollout, in the words of /v1/hosts.
type HostState string

// The states of a host. HostQueued is the default.
const (
	HostFailed        HostState = "Failed"        // the target did not work here
	HostReverted      HostState = "Reverted"      // failed or recalled, and back on its previous closure
	HostQueued        HostState = "Queued"        // waits for its turn
	HostDispatched    HostState = "Dispatched"    // holds a lease and has not said that it started
	HostActivating    HostState = "Activating"    // said that it started to activate
	HostConfirmWindow HostState = "ConfirmWindow" // runs the target and has not confirmed yet
	HostDeferred      HostState = "Deferred"      // staged; waits for a reboot
	HostHealthy       HostState = "Healthy"       // confirmed, or found well on its target; soaking
	HostSoaked        HostState = "Soaked"        // was healthy for the soak time of its wave
	HostConverged     HostState = "Converged"     // its rollout is done
	HostSkipped       HostState = "Skipped"       // not waited for (offline, held, tolerated), and not forgotten
)

// HostStateCount is the number of states of a host.
const HostStateCount = 11

// HostStates are all states of a host in the order in which they are told: what went wrong first, then the life of
// a host.
var HostStates = [HostStateCount]HostState{
	HostFailed, HostReverted, HostQueued, HostDispatched, HostActivating, HostConfirmWindow, HostDeferred, HostHealthy,
	HostSoaked, HostConverged, HostSkipped,
}

// Index is the place of the state in HostStates. A word that is not a state counts as HostQueued.
func (s HostState) Index() int {
	if i := indexes[s.key()]; i > 0 && HostStates[i-1] == s {
		return i - 1
	}
	return indexes[HostQueued.key()] - 1
}

// indexes are the places in HostStates and one, by key: a rollout of 100,000 hosts asks for millions.
var indexes = func() (places [512]int) {
	for i, s := range HostStates {
		places[s.key()] = i + 1
	}
	return places
}()

// key tells the states apart by their length and first letter.
func (s HostState) key() int {
	if s == "" {
		return 0
	}
	return len(s)&15<<5 | int(s[0])&31
}

// RolloutState is where a rollout stands.
type RolloutState string

// The states of a rollout.
const (
	RolloutPlanning   RolloutState = "Planning"   // accepted, waits for the channels it comes after
	RolloutExecuting  RolloutState = "Executing"  // a wave is open
	RolloutConverged  RolloutState = "Converged"  // every host has soaked, or is not waited for
	RolloutHalted     RolloutState = "Halted"     // a failure stopped it; nothing new starts
	RolloutReverting  RolloutState = "Reverting"  // a failure recalls every touched host
	RolloutReverted   RolloutState = "Reverted"   // every touched host is back
	RolloutCancelled  RolloutState = "Cancelled"  // by an operator
	RolloutSuperseded RolloutState = "Superseded" // by a newer release
)

// Open reports whether something may still come of a rollout in this state.
func (s RolloutState) Open() bool {
	switch s {
	case RolloutPlanning, RolloutExecuting, RolloutHalted, RolloutReverting:
		return true
	}
	return false
}

// What operators do with a rollout.
const (
	ActionPause  = "pause"
	ActionResume = "resume"
	ActionCancel = "cancel"
)

// Kinds of Event: what the event log tells.
const (
	LogOpened            = "rollout-opened"
	LogRenewed           = "rollout-renewed"
	LogSuperseded        = "rollout-superseded"
	LogWaveOpened        = "wave-opened"
	LogConverged         = "rollout-converged"
	LogHalted            = "rollout-halted"
	LogReverting         = "rollout-reverting"
	LogReverted          = "rollout-reverted"
	LogPaused            = "rollout-paused"
	LogResumed           = "rollout-resumed"
	LogCancelled         = "rollout-cancelled"
	LogDispatched        = "host-dispatched"
	LogLeaseRenewed      = "lease-renewed"
	LogLeaseExpired      = "lease-expired"
	LogHost              = "host-state" // any other move of a host; Detail says from and to
	LogQuarantined       = "closure-quarantined"
	LogQuarantineCleared = "quarantine-cleared"
	LogFrozen            = "channel-frozen"
	LogThawed            = "channel-thawed"
	LogRetry             = "host-retry"
	LogTwoMachines       = "two-machines"
	LogCompliance        = "compliance-failure"
)
