package cp

import (
	"sync"
	"time"

	"nixfleet/roles/protocol"
)

// lastSeen is what views show of a host's last check-in besides what decisions
// depend on. It lives in memory: an idle check-in writes nothing.
type lastSeen struct {
	mu           sync.Mutex
	byHost       map[string]sighting
	attestations map[string]attestation
}

// attestation is the last one of a host that verified: an idle host repeats it
// at every check-in.
type attestation struct {
	signature, rolloutID string
	at                   time.Time
}

type sighting struct {
	at      time.Time
	uptime  *uint64
	pending string
	held    *string
}

func newLastSeen() *lastSeen {
	return &lastSeen{byHost: map[string]sighting{}, attestations: map[string]attestation{}}
}

func (l *lastSeen) note(host string, req *protocol.CheckinRequest) {
	s := sighting{at: time.Now(), uptime: req.UptimeSecs}
	if req.Held != nil {
		held := brief(*req.Held)
		s.held = &held
	}
	if req.PendingGeneration != nil {
		s.pending = req.PendingGeneration.ClosureHash
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.byHost[host] = s
}

func (l *lastSeen) of(host string) (sighting, bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	s, ok := l.byHost[host]
	return s, ok
}

// attested gives the rollout id of an attestation that verified before.
func (l *lastSeen) attested(host, signature string, at time.Time) (rolloutID string, ok bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	a, ok := l.attestations[host]
	return a.rolloutID, ok && a.signature == signature && a.at.Equal(at)
}

func (l *lastSeen) noteAttested(host, signature string, at time.Time, rolloutID string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.attestations[host] = attestation{signature, rolloutID, at}
}
