package protocol

import (
	"github.com/go-json-experiment/json/jsontext"

	"nixfleet/pki"
)

// EnrollRequest asks for a host's first certificate.
type EnrollRequest struct {
	Token  pki.Token `json:"token" shape:"R"`
	CSRPEM string    `json:"csrPem" shape:"R"`
}

// RenewRequest asks for the next certificate.
type RenewRequest struct {
	CSRPEM string `json:"csrPem" shape:"R"`
}

// CertResponse holds a leaf certificate, PEM.
type CertResponse struct {
	CertPEM  string        `json:"certPem" shape:"R"`
	NotAfter pki.Timestamp `json:"notAfter" shape:"R"`
}

// BootstrapReport is what a host without a certificate may say.
type BootstrapReport struct {
	Token        pki.Token      `json:"token" shape:"R"`
	AgentVersion string         `json:"agentVersion" shape:"R"`
	OccurredAt   pki.Timestamp  `json:"occurredAt" shape:"R"`
	Event        BootstrapEvent `json:"event" shape:"R"`
}

// BootstrapEvent is an event of Events with its details. One without them is no
// event that is known, rather than a body of another shape: its token is looked
// at first.
type BootstrapEvent struct {
	Event   string         `json:"event,omitzero" shape:"O"`
	Details jsontext.Value `json:"details,omitzero" shape:"O"`
}
