package protocol

import "nixfleet/pki"

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
// reaches, Reason why it does not go further. Renewed says that it is the rollout that the
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

// TarType is the content type of a release that is posted, MaxPlanBody its
// bound in bytes: one of 100,000 hosts has about 50 MB.
const (
	TarType     = "application/x-tar"
	MaxPlanBody = 256 << 20
)
