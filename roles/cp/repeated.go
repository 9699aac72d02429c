package cp

import (
	"crypto/sha256"
	"sync"

	"nixfleet/pki"
	"nixfleet/roles/protocol"
)

// maxRepeated is how many reports of a host are recognised when they come
// again: as many as an agent keeps until they are answered.
const maxRepeated = 64

// repeated knows the reports that have been acted upon. An agent whose answer
// was lost sends its report again, perhaps after the next dispatch, and that
// must not take the old failure for one of the new attempt. It lives in memory:
// after a restart one repetition may count again.
type repeated struct {
	mu     sync.Mutex
	byHost map[string][]heardReport // oldest first
}

type heardReport struct {
	hash    [sha256.Size]byte
	eventID string
}

func newRepeated() *repeated { return &repeated{byHost: map[string][]heardReport{}} }

// hashOf is the same for the same report sent again.
func hashOf(req *protocol.ReportRequest) (hash [sha256.Size]byte, err error) {
	doc, err := pki.Marshal(req)
	return sha256.Sum256(doc), err
}

func (r *repeated) find(host string, hash [sha256.Size]byte) (eventID string, ok bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, heard := range r.byHost[host] {
		if heard.hash == hash {
			return heard.eventID, true
		}
	}
	return "", false
}

func (r *repeated) note(host string, hash [sha256.Size]byte, eventID string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	heard := append(r.byHost[host], heardReport{hash, eventID})
	r.byHost[host] = heard[max(0, len(heard)-maxRepeated):]
}
