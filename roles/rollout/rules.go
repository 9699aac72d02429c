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
)
