package rollout

// Codes of Reason and of HostRecord.Reason. They are stable: scripts, metrics and alerts may match on them.
const (
	// CodeNotReady means that no verified release has been accepted yet.
	CodeNotReady = "not-ready"
	// CodeNotDeclared means that the current release does not name this host.
	CodeNotDeclared = "not-declared"
	// CodeNoClosure means that the release names the host and gives it no closure.
	CodeNoClosure = "no-closure"

	// CodeOffered means that the host is offered its target in this very answer.
	CodeOffered = "offered"
	// CodeResent means that the running lease is told again, because the host shows that it has not started.
	CodeResent = "resent"
	// CodeRollback means that the host is asked to return to its previous closure.
	CodeRollback = "rollback"

	// CodeConverged means that the host runs its target and its rollout is done.
	CodeConverged = "converged"
	// CodePinned means the same as CodeConverged for a host whose closure is pinned.
	CodePinned = "pinned"
	// CodeSoaked means that the host has soaked; the rest of its rollout goes on.
	CodeSoaked = "soaked"
	// CodeSoaking means that the host is healthy and its soak time runs.
	CodeSoaking = "soaking"
	// CodeProbesNotRun means that the host runs its target, and no health probe has reported a result yet.
	CodeProbesNotRun = "probes-not-run"
	// CodeProbesFailing means that the host runs its target, and a health probe fails.
	CodeProbesFailing = "probes-failing"
	// CodeAwaitingEvidence means that the host runs its target, and no check-in since then has shown its health.
	CodeAwaitingEvidence = "awaiting-evidence"
	// CodeOnTarget means that the host runs the target of a rollout that no longer moves.
	CodeOnTarget = "on-target"

	// CodeLease means that the host holds a lease and has not started.
	CodeLease = "lease"
	// CodeActivating means that the host activates its target.
	CodeActivating = "activating"
	// CodeConfirmWindow means that the host runs its target and has to confirm it.
	CodeConfirmWindow = "confirm-window"
	// CodeOldLease means that the host holds a lease of a superseded rollout.
	CodeOldLease = "superseded-lease"
	// CodeHostBusy means that the host says it is activating or undoing something.
	CodeHostBusy = "host-busy"
	// CodeDeferred means that the target is staged and waits for a reboot.
	CodeDeferred = "deferred-pending-reboot"

	// CodeFailed means that the target failed here (the words of the failure follow in the text).
	CodeFailed = "failed"
	// CodeReverted means that the host returned to its previous closure.
	CodeReverted = "reverted"
	// CodeTolerated means that an operator resumed the rollout without this host.
	CodeTolerated = "tolerated"

	// CodeStale means that the release is older than the channel's freshness window.
	CodeStale = "release-stale"
	// CodePaused means that an operator paused the rollout.
	CodePaused = "paused"
	// CodeCancelled means that an operator cancelled the rollout.
	CodeCancelled = "cancelled"
	// CodeFrozen means that an operator froze the channel until a time.
	CodeFrozen = "frozen"
	// CodeMaintenance means that no maintenance window of the channel is open.
	CodeMaintenance = "maintenance"
	// CodeMissed means that the last maintenance window closed without the host; it waits for the next one.
	CodeMissed = "maintenance-missed"
	// CodeHalted means that a failure halted the rollout.
	CodeHalted = "halted"
	// CodeReverting means that a failure recalls the rollout.
	CodeReverting = "reverting"
	// CodeQuarantined means that the closure failed on this channel and is not offered any more.
	CodeQuarantined = "quarantined"
	// CodeChannelEdge means that the channel comes after another one whose rollout has not converged.
	CodeChannelEdge = "channel-edge"
	// CodeWave means that the wave of this host is not open yet.
	CodeWave = "wave"
	// CodeWaveWorking means that some hosts of the wave are not soaked yet.
	CodeWaveWorking = "wave-working"
	// CodeWaveUnproven means that no host of the wave has soaked, and those that got the target fell silent or failed.
	CodeWaveUnproven = "wave-unproven"
	// CodeWaveAbsent means that every host of the wave is absent; it stays open for its minimum time.
	CodeWaveAbsent = "wave-absent"
	// CodeCompliance means that hosts of earlier waves have outstanding compliance failures.
	CodeCompliance = "compliance"
	// CodeHostEdge means that another host of the channel comes first.
	CodeHostEdge = "host-edge"
	// CodeFetchFailed means that the host could not fetch or verify; it is offered the target again after a pause.
	CodeFetchFailed = "fetch-failed"
	// CodeBackoff means that an earlier attempt was not confirmed; the next one waits.
	CodeBackoff = "backoff"
	// CodeHeld means that the host itself does not take targets.
	CodeHeld = "host-held"
	// CodeOffline means that the host is silent.
	CodeOffline = "offline"
	// CodeTwoMachines means that two machines answer under the name of the host.
	CodeTwoMachines = "two-machines"
	// CodeBudget means that a disruption budget is used up.
	CodeBudget = "budget"
	// CodeBudgetUnheard means that a disruption budget may be used by hosts not heard of since the database was lost.
	CodeBudgetUnheard = "budget-unheard"

	// CodeLeaseExpired means that a dispatch was not confirmed in time.
	CodeLeaseExpired = "lease-expired"
	// CodeUnconfirmed means that Limits.MaxAttempts dispatches were not confirmed in time.
	CodeUnconfirmed = "unconfirmed"
	// CodeLost means that the host started to activate and was not heard of again.
	CodeLost = "lost-after-start"
	// CodeActivationFailed means that the agent reported a failed activation.
	CodeActivationFailed = "activation-failed"
	// CodeRolledBack means that the agent returned by itself to its previous closure.
	CodeRolledBack = "rollback-triggered"
	// CodeAgentQuarantine means that the agent says that it quarantined the closure.
	CodeAgentQuarantine = "closure-quarantined"
	// CodeProbesFailed means that probes failed for the sustained time.
	CodeProbesFailed = "probes-failed"
	// CodeComplianceFailed means that a compliance control failed under enforce.
	CodeComplianceFailed = "compliance-failure"
	// CodeHostLocal means that attempts ended for reasons of this host (space, network, lock), not of the release.
	CodeHostLocal = "host-local"
	// CodeSoakVoided means that the host runs another closure than the one that soaked.
	CodeSoakVoided = "soak-voided"
	// CodeRebootFellBack means that the host rebooted and came back without its staged target.
	CodeRebootFellBack = "reboot-fell-back"
	// CodeRetry means that an operator asked for one more attempt on this host.
	CodeRetry = "retry"
	// CodeReturned means that the host was absent and is back.
	CodeReturned = "returned"
	// CodeAttested means that the health was restored from the host's signed confirm time.
	CodeAttested = "attested"
	// CodeFound means that the host was found running its target.
	CodeFound = "found-on-target"
	// CodeConfirmed means that the host confirmed.
	CodeConfirmed = "confirmed"
)
