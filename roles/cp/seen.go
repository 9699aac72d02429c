package cp

import (
	"slices"
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

// attestation is the last one of a host: an idle host repeats it at every
// check-in. It verified for rolloutID or, when that is empty, for no id up to
// newest: a host that has nothing to do in a rollout attests an older one.
type attestation struct {
	key, signature    string
	at                time.Time
	rolloutID, newest string
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
		s.pending = brief(req.PendingGeneration.ClosureHash)
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

// attested gives the one of ids, oldest first, for which verifies holds, empty
// when there is none. What was found before is not looked for again.
func (l *lastSeen) attested(host, key, signature string, at time.Time, ids []string, verifies func(id string) bool) string {
	l.mu.Lock()
	a, known := l.attestations[host]
	l.mu.Unlock()
	untried := ids
	if known && a.key == key && a.signature == signature && a.at.Equal(at) {
		if slices.Contains(ids, a.rolloutID) {
			return a.rolloutID
		}
		untried = ids[slices.Index(ids, a.newest)+1:]
	}
	a = attestation{key: key, signature: signature, at: at, newest: ids[len(ids)-1]}
	if i := slices.IndexFunc(untried, verifies); i >= 0 {
		a.rolloutID = untried[i]
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.attestations[host] = a
	return a.rolloutID
}
