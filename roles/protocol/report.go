package protocol

import (
	"github.com/go-json-experiment/json/jsontext"

	"nixfleet/pki"
)

// Events that agents report.
const (
	EventActivationStarted        = "activation-started"
	EventActivationDeferred       = "activation-deferred"
	EventClosureQuarantined       = "closure-quarantined"
	EventActivationFailed         = "activation-failed"
	EventRealiseFailed            = "realise-failed"
	EventVerifyMismatch           = "verify-mismatch"
	EventRollbackTriggered        = "rollback-triggered"
	EventEnrollmentFailed         = "enrollment-failed"
	EventRenewalFailed            = "renewal-failed"
	EventTrustError               = "trust-error"
	EventClosureSignatureMismatch = "closure-signature-mismatch"
	EventStaleTarget              = "stale-target"
	EventComplianceFailure        = "compliance-failure"
	EventRuntimeGateError         = "runtime-gate-error"
	EventManifestMissing          = "manifest-missing"
	EventManifestVerifyFailed     = "manifest-verify-failed"
	EventManifestMismatch         = "manifest-mismatch"
	EventOther                    = "other"
)

// Kinds of the `other` event that our agents send.
const (
	KindReleaseStale    = "release-stale"
	KindJournalSetAside = "journal-set-aside"
	KindMarkReset       = "mark-reset"
	KindBreakGlass      = "break-glass"
	KindThirdClosure    = "third-closure"
	KindRollbackRefused = "rollback-refused"
	KindSwitched        = "switched" // what a switch did to units
	KindPreview         = "preview"  // what a staged generation would do to them
	KindFallback        = "fallback" // the boot loader has left the confirmed generation
)

// ReportRequest is one event of a host.
type ReportRequest struct {
	Hostname     string         `json:"hostname" shape:"R"`
	AgentVersion string         `json:"agentVersion" shape:"R"`
	OccurredAt   pki.Timestamp  `json:"occurredAt" shape:"R"`
	Rollout      *string        `json:"rollout" shape:"N"`
	Event        string         `json:"event" shape:"R"`
	Details      jsontext.Value `json:"details" shape:"R"`
	// Dispatch is ours: the newest dispatch of this rollout that the agent had been given.
	Dispatch string `json:"dispatch,omitzero" shape:"O"`
}

// ReportResponse names the stored event.
type ReportResponse struct {
	EventID string `json:"eventId" shape:"R"`
}

// Details of the events, by event. Signature is filled in by SignEvidence.
type (
	// ActivationStarted is of EventActivationStarted.
	ActivationStarted struct {
		ClosureHash string `json:"closure_hash" shape:"R"`
		ChannelRef  string `json:"channel_ref" shape:"R"`
	}
	// ActivationDeferred is of EventActivationDeferred; Component is dbus,
	// systemd or kernel.
	ActivationDeferred struct {
		ClosureHash string `json:"closure_hash" shape:"R"`
		ChannelRef  string `json:"channel_ref" shape:"R"`
		Component   string `json:"component" shape:"R"`
		// Reboots is ours: window or immediate when the host reboots by itself.
		Reboots string `json:"reboots,omitzero" shape:"O"`
	}
	// ClosureQuarantined is of EventClosureQuarantined.
	ClosureQuarantined struct {
		ClosureHash  string `json:"closure_hash" shape:"R"`
		ChannelRef   string `json:"channel_ref" shape:"R"`
		FailureCount uint32 `json:"failure_count" shape:"R"`
		Reason       string `json:"reason" shape:"R"`
	}
	// ActivationFailed is of EventActivationFailed.
	ActivationFailed struct {
		Phase      string  `json:"phase" shape:"R"`
		ExitCode   *int32  `json:"exit_code,omitzero" shape:"O"`
		StderrTail *string `json:"stderr_tail,omitzero" shape:"O"`
		Signature  *string `json:"signature,omitzero" shape:"O"`
	}
	// RealiseFailed is of EventRealiseFailed.
	RealiseFailed struct {
		ClosureHash string  `json:"closure_hash" shape:"R"`
		Reason      string  `json:"reason" shape:"R"`
		Signature   *string `json:"signature,omitzero" shape:"O"`
	}
	// VerifyMismatch is of EventVerifyMismatch.
	VerifyMismatch struct {
		Expected  string  `json:"expected" shape:"R"`
		Actual    string  `json:"actual" shape:"R"`
		Signature *string `json:"signature,omitzero" shape:"O"`
	}
	// Reasoned is of EventRollbackTriggered, and unsigned of
	// EventEnrollmentFailed, EventRenewalFailed and EventTrustError.
	Reasoned struct {
		Reason    string  `json:"reason" shape:"R"`
		Signature *string `json:"signature,omitzero" shape:"O"`
	}
	// ClosureSignatureMismatch is of EventClosureSignatureMismatch.
	ClosureSignatureMismatch struct {
		ClosureHash string  `json:"closure_hash" shape:"R"`
		StderrTail  string  `json:"stderr_tail" shape:"R"`
		Signature   *string `json:"signature,omitzero" shape:"O"`
	}
	// StaleTarget is of EventStaleTarget; the numbers are seconds.
	StaleTarget struct {
		ClosureHash         string        `json:"closure_hash" shape:"R"`
		ChannelRef          string        `json:"channel_ref" shape:"R"`
		SignedAt            pki.Timestamp `json:"signed_at" shape:"R"`
		FreshnessWindowSecs uint32        `json:"freshness_window_secs" shape:"R"`
		AgeSecs             int64         `json:"age_secs" shape:"R"`
		Signature           *string       `json:"signature,omitzero" shape:"O"`
	}
	// ComplianceFailure is of EventComplianceFailure.
	ComplianceFailure struct {
		ControlID           string         `json:"control_id" shape:"R"`
		Status              string         `json:"status" shape:"R"`
		FrameworkArticles   []string       `json:"framework_articles" shape:"R"`
		EvidenceSnippet     jsontext.Value `json:"evidence_snippet,omitzero" shape:"O"`
		EvidenceCollectedAt pki.Timestamp  `json:"evidence_collected_at" shape:"R"`
		Signature           *string        `json:"signature,omitzero" shape:"O"`
	}
	// RuntimeGateError is of EventRuntimeGateError.
	RuntimeGateError struct {
		Reason                string         `json:"reason" shape:"R"`
		CollectorExitCode     *int32         `json:"collector_exit_code,omitzero" shape:"O"`
		EvidenceCollectedAt   *pki.Timestamp `json:"evidence_collected_at,omitzero" shape:"O"`
		ActivationCompletedAt pki.Timestamp  `json:"activation_completed_at" shape:"R"`
		Signature             *string        `json:"signature,omitzero" shape:"O"`
	}
	// ManifestProblem is of EventManifestMissing, EventManifestVerifyFailed and
	// EventManifestMismatch.
	ManifestProblem struct {
		RolloutID string  `json:"rollout_id" shape:"R"`
		Reason    string  `json:"reason" shape:"R"`
		Signature *string `json:"signature,omitzero" shape:"O"`
	}
	// Other is of EventOther.
	Other struct {
		Kind   string         `json:"kind" shape:"R"`
		Detail jsontext.Value `json:"detail,omitzero" shape:"O"`
	}
)
