package protocol

import (
	"archive/tar"
	"bytes"
	"context"
	"fmt"
	"maps"
	"net/http"
	"slices"
	"time"

	"nixfleet/pki"
)

// Plan answers GET and POST /v1/plan: what would happen from now on if all went
// well, in time order. Soak times are seconds.
type Plan struct {
	At       pki.Timestamp `json:"at" shape:"R"`
	Moves    []PlanMove    `json:"moves" shape:"R"`
	Waves    []PlanWave    `json:"waves" shape:"R"`
	Channels []PlanChannel `json:"channels" shape:"R"`
	Blocked  []PlanBlocked `json:"blocked" shape:"R"`
}

// PlanChannel is how a channel's rollout ends: State is the last that it
// reaches, Reason why it goes no further. Renewed: it is the rollout that the
// channel has already.
type PlanChannel struct {
	Channel     string         `json:"channel" shape:"R"`
	RolloutID   string         `json:"rolloutId" shape:"R"`
	Renewed     bool           `json:"renewed" shape:"R"`
	State       string         `json:"state" shape:"R"`
	ConvergedAt *pki.Timestamp `json:"convergedAt" shape:"N"`
	Reason      *Reason        `json:"reason" shape:"N"`
}

// PlanMove is a host that gets its target, at the earliest at At.
type PlanMove struct {
	At      pki.Timestamp `json:"at" shape:"R"`
	Host    string        `json:"host" shape:"R"`
	Channel string        `json:"channel" shape:"R"`
	Wave    uint32        `json:"wave" shape:"R"`
	From    *string       `json:"from" shape:"N"`
	To      string        `json:"to" shape:"R"`
}

// PlanWave is a wave that opens, at the earliest at At.
type PlanWave struct {
	At       pki.Timestamp `json:"at" shape:"R"`
	Channel  string        `json:"channel" shape:"R"`
	Wave     uint32        `json:"wave" shape:"R"`
	Hosts    uint32        `json:"hosts" shape:"R"`
	SoakSecs uint32        `json:"soakSecs" shape:"R"`
}

// PlanBlocked is a host that keeps its closure, and why.
type PlanBlocked struct {
	Host    string  `json:"host" shape:"R"`
	Channel string  `json:"channel" shape:"R"`
	Wave    uint32  `json:"wave" shape:"R"`
	From    *string `json:"from" shape:"N"`
	To      *string `json:"to" shape:"N"`
	Reason  Reason  `json:"reason" shape:"R"`
}

// Plan says what would happen from now on if all went well.
func (c *Client) Plan(ctx context.Context) (*Plan, error) {
	return view[Plan](ctx, c, "/v1/plan")
}

// TarType is the content type of a release that is posted, MaxPlanBody its
// bound in bytes: one of 100,000 hosts has about 50 MB.
const (
	TarType     = "application/x-tar"
	MaxPlanBody = 256 << 20
)

// PlanRelease says what would happen if a release were accepted now. docs are
// its documents by their names below the release directory.
func (c *Client) PlanRelease(ctx context.Context, docs map[string][]byte) (*Plan, error) {
	var body bytes.Buffer
	archive := tar.NewWriter(&body)
	for _, name := range slices.Sorted(maps.Keys(docs)) {
		err := archive.WriteHeader(&tar.Header{Name: name, Mode: 0o444, Size: int64(len(docs[name]))})
		if err == nil {
			_, err = archive.Write(docs[name])
		}
		if err != nil {
			return nil, fmt.Errorf("archive %s: %w", name, err)
		}
	}
	if err := archive.Close(); err != nil {
		return nil, fmt.Errorf("archive release: %w", err)
	}
	return ask[Plan](ctx, c, request{
		method: http.MethodPost, path: "/v1/plan", raw: body.Bytes(), header: http.Header{"Content-Type": {TarType}},
		timeout: 10 * time.Minute, limit: maxDocument,
	})
}
