package cp

import (
	"maps"
	"sync"
	"time"

	"nixfleet/nixops/fleet"
	"nixfleet/pki"
)

// maxHistory bounds what manifests of earlier releases take, in bytes. The
// oldest go first; a source that keeps them still has them.
const maxHistory = 64 << 20

// history keeps manifests while the longest freshness window of their release
// has not passed: agents that were told of one may still ask for it.
type history struct {
	mu   sync.Mutex
	byID map[string]remembered
	size int
}

type remembered struct {
	file  fleet.Artifact
	hosts map[string]int // that it names
	until time.Time
}

func newHistory() *history { return &history{byID: map[string]remembered{}} }

func (h *history) add(rel *fleet.Release, now time.Time) {
	longest := time.Duration(0)
	for _, c := range rel.Fleet.Channels {
		longest = max(longest, fleet.Minutes(c.FreshnessWindow))
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, c := range rel.Channels {
		if _, had := h.byID[c.RolloutID]; !had && len(c.ManifestFile.Body) > 0 {
			h.byID[c.RolloutID] = remembered{c.ManifestFile, c.Index, rel.SignedAt.Add(longest + pki.ClockSlack)}
			h.size += len(c.ManifestFile.Body)
		}
	}
	for id, m := range h.byID {
		if now.After(m.until) {
			h.drop(id)
		}
	}
	for h.size > maxHistory {
		h.drop(h.oldest())
	}
}

func (h *history) drop(id string) {
	h.size -= len(h.byID[id].file.Body)
	delete(h.byID, id)
}

func (h *history) oldest() (oldest string) {
	for id, m := range h.byID {
		if oldest == "" || m.until.Before(h.byID[oldest].until) {
			oldest = id
		}
	}
	return oldest
}

func (h *history) find(id string) (remembered, bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	m, ok := h.byID[id]
	return m, ok
}

func (h *history) all() map[string]remembered {
	h.mu.Lock()
	defer h.mu.Unlock()
	return maps.Clone(h.byID)
}
