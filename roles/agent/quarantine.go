package agent

import (
	"fmt"
	"sync"
	"time"

	"nixfleet/pki"
	"nixfleet/roles/agent/journal"
)

const (
	quarantineFile = "quarantine.json"
	holdFile       = "hold.json"
	confirmedFile  = "confirmed.json"
	// unreachableTries is how often a closure is tried again that was undone only
	// because the control plane could not be reached.
	unreachableTries = 3
)

// quarantine is a closure that failed here and is not tried again until the
// fleet declares another, root says otherwise, or an operator retries it.
type quarantine struct {
	Closure     string         `json:"closure" shape:"R"`
	Intent      string         `json:"intent" shape:"D"`
	ChannelRef  string         `json:"channelRef" shape:"D"`
	Reason      journal.Reason `json:"reason" shape:"R"`
	Failures    uint32         `json:"failures" shape:"R"`
	Unreachable uint32         `json:"unreachable" shape:"D"` // undos without blame
	Refused     uint32         `json:"refused" shape:"D"`     // by this host, before anything was changed
	Retried     bool           `json:"retried" shape:"D"`     // an operator's one retry was taken
	At          pki.Timestamp  `json:"at" shape:"R"`
}

// holdState is root's word on this host: paused, or held at a closure.
type holdState struct {
	Kind    string        `json:"kind" shape:"R"`
	Closure string        `json:"closure" shape:"D"`
	Intent  string        `json:"intent" shape:"D"` // that was in force when root spoke
	Reason  string        `json:"reason" shape:"D"`
	At      pki.Timestamp `json:"at" shape:"R"`
}

// confirmed is the last generation that the control plane accepted.
type confirmed struct {
	Closure   string        `json:"closure" shape:"R"`
	RolloutID string        `json:"rolloutId" shape:"R"`
	Intent    string        `json:"intent" shape:"D"`
	At        pki.Timestamp `json:"at" shape:"R"`
	// Taken is when the control plane took it, where this host's clock was behind;
	// the second is whole. Only attestations use it: nobody can shorten by it what
	// is limited from here on.
	Taken pki.Timestamp `json:"taken,omitzero" shape:"D"`
}

// attested is the time to attest: a clock that is behind would have made the soak
// look longer than it was.
func (c *confirmed) attested() pki.Timestamp {
	if c.Taken.After(c.At.Time) {
		return c.Taken
	}
	return c.At
}

// over: it is not tried again by itself.
func (q *quarantine) over() bool { return q.Failures > 0 || q.Unreachable > unreachableTries }

// blocked says why a closure is not tried now; empty when it may be.
func (q *quarantine) blocked(closure string, now time.Time) string {
	switch {
	case q == nil || q.Closure != closure:
		return ""
	case q.Failures > 0:
		return "quarantined: " + q.Reason.String()
	case q.Unreachable > unreachableTries:
		return fmt.Sprintf("quarantined: undone %d times without blame, the last time: %s", q.Unreachable, q.Reason)
	}
	// A clock that was set back since then would make it wait for as long.
	if pause, since := backoff(q.Unreachable+q.Refused), now.Sub(q.At.Time); since >= 0 && since < pause {
		return fmt.Sprintf("waits %s after: %s", pause, q.Reason)
	}
	return ""
}

func backoff(n uint32) time.Duration {
	return min(time.Minute<<min(n, 8), maxContact)
}

// cache is a small document that is read by several goroutines.
type cache[T any] struct {
	mu sync.Mutex
	v  T
}

func (c *cache[T]) get() T {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.v
}

func (c *cache[T]) set(v T) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.v = v
}
