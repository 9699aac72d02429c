package rollout

// Codes of Reason and of HostRecord.Reason. They are stable: scripts, metrics and alerts may match on them.
const (
	// CodeNotReady: no verified release has been accepted yet.
	CodeNotReady = "not-ready"
	// CodeNotDeclared: the current release does not name this host.
	CodeNotDeclared = "not-declared"
	// CodeNoClosure: the release names the host and gives it no closure.
	CodeNoClosure = "no-closure"

	// CodeOffered: the host is offered its target in this very answer.
	CodeOffered = "offered"
	// CodeResent: the running lease is told again, because the host shows that it has not started.
	CodeResent = "resent"
	// CodeRollback: the host is asked to return to its previous closure.
	CodeRollback = "rollback"

	// CodeConverged: the host runs its target and its rollout is done.
	CodeConverged = "converged"
	// CodePinned: like converged, on a pinned closure.
	CodePinned = "pinned"
	// CodeSoaked: the host has soaked; the rest of its rollout goes on.
	CodeSoaked = "soaked"
	// CodeSoaking: the host is healthy and its soak time runs.
	CodeSoaking = "soaking"
	// CodeProbesNotRun: on target; no health probe has reported a result yet.
	CodeProbesNotRun = "probes-not-run"
	// CodeProbesFailing: on target; a health probe fails.
	CodeProbesFailing = "probes-failing"
	// CodeAwaitingEvidence: on target; no check-in since then has shown its health.
	CodeAwaitingEvidence = "awaiting-evidence"
	// CodeOnTarget: runs the target in a rollout that no longer moves.
	CodeOnTarget = "on-target"

	// CodeLease: the host holds a lease and has not started.
	CodeLease = "lease"
	// CodeActivating: the host activates its target.
	CodeActivating = "activating"
	// CodeConfirmWindow: the host runs its target and has to confirm it.
	CodeConfirmWindow = "confirm-window"
	// CodeOldLease: the host holds a lease of a superseded rollout.
	CodeOldLease = "superseded-lease"
	// CodeHostBusy: the host says it is activating or undoing something.
	CodeHostBusy = "host-busy"
	// CodeDeferred: the target is staged and waits for a reboot.
	CodeDeferred = "deferred-pending-reboot"

	// CodeFailed: the target failed here (the words of the failure follow in the text).
	CodeFailed = "failed"
	// CodeReverted: the host returned to its previous closure.
	CodeReverted = "reverted"
	// CodeTolerated: an operator resumed the rollout without this host.
	CodeTolerated = "tolerated"

	// CodeStale: the release is older than the channel's freshness window.
	CodeStale = "release-stale"
	// CodePaused: an operator paused the rollout.
	CodePaused = "paused"
	// CodeCancelled: an operator cancelled the rollout.
	CodeCancelled = "cancelled"
	// CodeHalted: a failure halted the rollout.
	CodeHalted = "halted"
	// CodeReverting: a failure recalls the rollout.
	CodeReverting = "reverting"
	// CodeQuarantined: the closure failed on this channel and is not offered any more.
	CodeQuarantined = "quarantined"
	// CodeChannelEdge: the channel comes after another one whose rollout has not converged.
	CodeChannelEdge = "channel-edge"
	// CodeWave: the wave of this host is not open yet.
	CodeWave = "wave"
	// CodeWaveWorking: some hosts of the wave are not soaked yet.
	CodeWaveWorking = "wave-working"
	// CodeWaveUnproven: no host of the wave has soaked, and those that got the target fell silent or failed.
	CodeWaveUnproven = "wave-unproven"
	// CodeWaveAbsent: every host of the wave is absent; it stays open for its minimum time.
	CodeWaveAbsent = "wave-absent"
	// CodeCompliance: hosts of earlier waves have outstanding compliance failures.
	CodeCompliance = "compliance"
	// CodeHostEdge: another host of the channel comes first.
	CodeHostEdge = "host-edge"
	// CodeFetchFailed: the host could not fetch or verify; it is offered the target again after a pause.
	CodeFetchFailed = "fetch-failed"
	// CodeBackoff: an earlier attempt was not confirmed; the next one waits.
	CodeBackoff = "backoff"
	// CodeHeld: the host itself does not take targets.
	CodeHeld = "host-held"
	// CodeOffline: the host is silent.
	CodeOffline = "offline"
	// CodeBudget: a disruption budget is used up.
	CodeBudget = "budget"
	// CodeBudgetUnheard: a disruption budget may be used by hosts not heard of since the database was lost.
	CodeBudgetUnheard = "budget-unheard"

	// CodeLeaseExpired: a dispatch was not confirmed in time.
	CodeLeaseExpired = "lease-expired"
	// CodeUnconfirmed: MaxAttempts dispatches were not confirmed in time.
	CodeUnconfirmed = "unconfirmed"
	// CodeLost: the host started to activate and was not heard of again.
	CodeLost = "lost-after-start"
	// CodeActivationFailed: the agent reported a failed activation.
	CodeActivationFailed = "activation-failed"
	// CodeRolledBack: the agent returned by itself to its previous closure.
	CodeRolledBack = "rollback-triggered"
	// CodeAgentQuarantine: the agent says that it quarantined the closure.
	CodeAgentQuarantine = "closure-quarantined"
	// CodeProbesFailed: probes failed for the sustained time.
	CodeProbesFailed = "probes-failed"
	// CodeComplianceFailed: a compliance control failed under enforce.
	CodeComplianceFailed = "compliance-failure"
	// CodeHostLocal: attempts ended for reasons of this host (space, network, lock), not of the release.
	CodeHostLocal = "host-local"
	// CodeSoakVoided: the host runs another closure than the one that soaked.
	CodeSoakVoided = "soak-voided"
	// CodeRebootFellBack: the host rebooted and came back without its staged target.
	CodeRebootFellBack = "reboot-fell-back"
	// CodeRetry: an operator asked for one more attempt on this host.
	CodeRetry = "retry"
	// CodeReturned: the host was absent and is back.
	CodeReturned = "returned"
	// CodeAttested: health restored from the host's signed confirm time.
	CodeAttested = "attested"
	// CodeFound: the host was found running its target.
	CodeFound = "found-on-target"
	// CodeConfirmed: the host confirmed.
	CodeConfirmed = "confirmed"
)
