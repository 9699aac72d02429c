package protocol

import (
	"time"

	"nixfleet/pki"
)

// HostDetail answers GET /v1/hosts/{name}: what is known of one host.
type HostDetail struct {
	Host   HostEntry `json:"host" shape:"R"`
	Reason Reason    `json:"reason" shape:"R"`

	Waves      uint32         `json:"waveCount,omitzero" shape:"O"`  // of its rollout
	Attempt    uint32         `json:"attempt,omitzero" shape:"O"`    // dispatches in its rollout
	ConfirmBy  *pki.Timestamp `json:"confirmBy,omitzero" shape:"O"`  // of its open dispatch
	Quarantine *Quarantined   `json:"quarantine,omitzero" shape:"O"` // of its declared closure

	Agent       *AgentWord       `json:"agent,omitzero" shape:"O"`
	Certificate *CertificateView `json:"certificate,omitzero" shape:"O"`
	Failure     *HostFailure     `json:"failure,omitzero" shape:"O"`

	Dispatches []HostDispatch `json:"dispatches" shape:"R"` // newest first
	Reports    []HostReport   `json:"reports" shape:"R"`    // newest first
}

// HostRelease is what a host runs, of which release, and since when. Commit is
// empty when it was not a release that put it there.
type HostRelease struct {
	Commit string         `json:"commit" shape:"D"`
	Since  *pki.Timestamp `json:"since,omitzero" shape:"O"`
}

// Quarantined says why a closure is not given to any host of a channel.
type Quarantined struct {
	Closure string        `json:"closure" shape:"R"`
	Reason  string        `json:"reason" shape:"R"`
	Since   pki.Timestamp `json:"since" shape:"R"`
}

// HostFailure is how the newest failed activation of a host ended. Cause is of
// protocol.Cause with its text; Closure is what failed, where the report says it.
type HostFailure struct {
	At       OffsetTime `json:"at" shape:"R"`
	Event    string     `json:"event" shape:"R"`
	Cause    string     `json:"cause" shape:"R"`
	ExitCode *int32     `json:"exitCode,omitzero" shape:"O"`
	Log      *string    `json:"log,omitzero" shape:"O"`     // the tail of what the switch printed
	Verdict  *string    `json:"verdict,omitzero" shape:"O"` // on its signature
	Rollout  *string    `json:"rollout,omitzero" shape:"O"`
}

// HostDispatch is one dispatch of a host, in the words of TraceEvent.
type HostDispatch struct {
	RolloutID  string         `json:"rolloutId" shape:"R"`
	Commit     string         `json:"commit" shape:"R"`
	Wave       uint32         `json:"wave" shape:"R"`
	Closure    string         `json:"closure" shape:"R"`
	State      string         `json:"state" shape:"R"` // as in pending_confirms
	At         pki.Timestamp  `json:"at" shape:"R"`
	ConfirmBy  pki.Timestamp  `json:"confirmBy" shape:"R"`
	TerminalAt *pki.Timestamp `json:"terminalAt,omitzero" shape:"O"`
}

// Kinds of certificates.
const (
	CertificateServer   = "server"
	CertificateClientCA = "client-ca"
	CertificateIssuing  = "issuing-ca"
	CertificateOperator = "operator"
	CertificateAgent    = "agent"
)

// CertificatesResponse answers GET /v1/certificates: what the control plane
// uses, and what callers have shown since it started, the first to end first.
type CertificatesResponse struct {
	Certificates []CertificateView `json:"certificates" shape:"R"`
	// Agents is how many certificates of agents are known, those that are left out
	// included.
	Agents int `json:"agents" shape:"R"`
}

// CertificateEndsSoon is how long before its end the views name a certificate.
const CertificateEndsSoon = 30 * 24 * time.Hour

// CertificateView is one certificate with its end.
type CertificateView struct {
	Kind      string         `json:"kind" shape:"R"`
	Name      string         `json:"name" shape:"R"`
	NotBefore pki.Timestamp  `json:"notBefore" shape:"R"`
	NotAfter  pki.Timestamp  `json:"notAfter" shape:"R"`
	SeenAt    *pki.Timestamp `json:"seenAt,omitzero" shape:"O"`
}
