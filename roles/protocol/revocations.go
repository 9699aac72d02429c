package protocol

import "nixfleet/pki"

// RevokeRequest is the body of POST /v1/revocations. Without NotBefore every
// certificate issued up to now is refused.
type RevokeRequest struct {
	Hostname  string         `json:"hostname" shape:"R"`
	NotBefore *pki.Timestamp `json:"notBefore,omitzero" shape:"O"`
	Reason    string         `json:"reason" shape:"D"`
}

// UnrevokeRequest takes back the local revocations of a name.
type UnrevokeRequest struct {
	Hostname string `json:"hostname" shape:"R"`
	Reason   string `json:"reason" shape:"D"`
}

// UnrevokeResponse says what was taken back, and what the signed list still says.
type UnrevokeResponse struct {
	Rows            int64          `json:"rows" shape:"R"`
	SignedNotBefore *pki.Timestamp `json:"signedNotBefore,omitzero" shape:"O"`
}

// RevocationsResponse answers GET /v1/revocations: local rows, then the signed list.
type RevocationsResponse struct {
	Revocations []RevocationView `json:"revocations" shape:"R"`
}

// Where a revocation stands.
const (
	RevokedLocally      = "local"
	RevokedBySignedList = "signed"
)

// Concerned is whom a revocation refuses.
type Concerned string

// Whom a revocation refuses.
const (
	ConcernsHost     Concerned = "host"
	ConcernsOperator Concerned = "operator" // one that has called since the control plane started
	ConcernsNobody   Concerned = "nobody"   // its name differs from that of a host by case or blanks
	ConcernsUnknown  Concerned = "unknown"  // nobody who is known has this name
)

// RevocationView is one row.
type RevocationView struct {
	Hostname  string         `json:"hostname" shape:"R"`
	NotBefore *pki.Timestamp `json:"notBefore" shape:"N"` // null where it cannot be read, which refuses every certificate
	Written   string         `json:"written,omitzero" shape:"O"`
	Reason    string         `json:"reason" shape:"D"`
	RevokedBy string         `json:"revokedBy" shape:"D"`
	RevokedAt string         `json:"revokedAt,omitzero" shape:"O"`
	Source    string         `json:"source" shape:"R"`
	Concerns  Concerned      `json:"concerns" shape:"R"`
	Meant     string         `json:"meant,omitzero" shape:"O"` // the host, where it concerns nobody
}
