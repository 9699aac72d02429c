package rollout

// The rules that a build with the tag `mutants` can break one by one, to prove that the simulator would find it. In any
// other build broken is always false.
const (
	ruleLeaseHoldsSlot = "a lease holds its slot"
	ruleConfirmCounts  = "a confirm is recorded"
	ruleSlotsComeBack  = "slots come back"
	ruleUnheardCount   = "unheard hosts count"
	ruleHaltIsKept     = "a halt is kept"
	ruleWellWaves      = "the wave is well"
	ruleHostsAreWoken  = "hosts are woken"
	ruleEdgesWake      = "an edge wakes"
	ruleRecallWakes    = "a recall wakes"
	ruleRecallRefuses  = "a recall refuses confirms"
	ruleV1ToldOnce     = "a v1 agent is told once"
	ruleLeaseEnds      = "a lease ends"
	ruleHostRowsStored = "rows of hosts are stored"
	ruleLeasesStored   = "dispatches are stored"
	ruleHoldIsKept     = "a pause is kept"

	ruleEventsNamed   = "events name their dispatch"
	ruleFetchesNamed  = "fetches name their dispatch"
	ruleAllWavesWell  = "every open wave is well"
	ruleResendAsks    = "an edge is asked again"
	ruleSkippedWoken  = "skipped hosts are woken"
	ruleUnheardQueue  = "hosts queue for the unheard"
	ruleWordsWake     = "a host's own word wakes it"
	ruleLeavingCounts = "a host on its way is not proven"
	ruleSoakHoldsSlot = "a soak holds its slot"
	ruleTriedWaves    = "a wave that nobody tried opens none"
	ruleRunsStored    = "rows of rollouts are stored"
	ruleBlameStored   = "quarantines are stored"
	ruleSoakIsWhole   = "a soak is whole"
	ruleWindowEnds    = "a window ends"

	ruleWindowCuts    = "a window cuts a lease"
	ruleWindowsWake   = "a window wakes"
	ruleFreezesStored = "freezes are stored"
)
