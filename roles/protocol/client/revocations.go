package client

import (
	"context"
	"net/http"

	"nixfleet/pki"
	"nixfleet/roles/protocol"
)

// Revocations are the calls about certificates that are refused.
type Revocations struct{ client *Client }

// Revocations gives the calls about certificates that are refused.
func (c *Client) Revocations() Revocations { return Revocations{c} }

// Add refuses the certificates of a host or operator issued before a time, nil for
// now.
func (r Revocations) Add(ctx context.Context, hostname string, notBefore *pki.Timestamp, reason string) error {
	return r.client.tell(ctx, "/v1/revocations",
		&protocol.RevokeRequest{Hostname: hostname, NotBefore: notBefore, Reason: reason})
}

// List lists local and signed revocations.
func (r Revocations) List(ctx context.Context) (*protocol.RevocationsResponse, error) {
	return view[protocol.RevocationsResponse](ctx, r.client, "/v1/revocations")
}

// Undo takes back the local revocations of a name.
func (r Revocations) Undo(ctx context.Context, name, reason string) (*protocol.UnrevokeResponse, error) {
	return ask[protocol.UnrevokeResponse](ctx, r.client, request{method: http.MethodPost, path: "/v1/revocations/undo",
		body: protocol.UnrevokeRequest{Hostname: name, Reason: reason}})
}
