package rollout

import (
	"time"

	"nixfleet/nixops/fleet"
	"nixfleet/roles/protocol"
)

// channel holds the newest rollout of a channel (it alone may dispatch) and those it superseded.
type channel struct {
	name string
	cur  *run
	past []*run // newest first; leases of theirs may still be open
	// after are the channels that come before this one, with the reasons of the edges.
	after  []channelEdge
	freeze *Freeze // nil: it is not frozen
}

type channelEdge struct {
	before  *channel
	reason  string
	opening bool // it holds the opening of a rollout only
}

// run is a Rollout with what its release says and what is counted about it.
type run struct {
	Rollout
	timer
	dirty bool
	moved bool // is in World.pending.moved

	rel            *fleet.ChannelRelease // nil until a release binds it, and for superseded ones after a restart
	signedAt       time.Time
	freshness      time.Duration
	revert         bool // rollback-and-halt
	threshold      int  // hosts that must have failed before the policy acts; fewer halt
	complianceMode string
	confirmWindow  time.Duration
	lease          time.Duration
	waves          []wave
	times          calendar
	// touched counts, by state, the hosts that got a target in this rollout.
	touched [protocol.HostStateCount]int
}

type wave struct {
	soak         time.Duration
	mayBeEmpty   bool    // the next one opens although no host was heard
	hosts        []*host // sorted by name
	counts       [protocol.HostStateCount]int
	silent       int // touched hosts that are Skipped
	tolerated    int // hosts without which an operator went on
	failed       int // Failed and Reverted hosts, without those that only fell silent
	failing      int // Healthy and Soaked hosts whose probes fail
	noncompliant int // hosts with outstanding compliance failures
}
