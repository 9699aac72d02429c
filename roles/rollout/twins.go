package rollout

import (
	"time"

	"nixfleet/pki"
	"nixfleet/roles/protocol"
)

// Twins are two machines that answer under the name of one host: a cloned image, or a snapshot that was started beside
// its original. Keyed by Host. What one of them says does not hold for the other, so that nothing they say is counted
// and neither is given a target, until a person acts.
type Twins struct {
	Host    string
	BootIDs [2]string // equal when only their connections tell them apart
	Since   time.Time
	Held    bool // false: their agents are of v1, and are named only
	Cleared bool
}

// notice keeps that two machines answer as one host. What it was given is taken back, as far as that goes: neither
// machine is told anew, and the slots stay held until the dispatch would have ended.
func (w *World) notice(h *host, ids [2]string, held bool, now time.Time) {
	if h.contact.twins != nil || w.changes.virtual {
		return
	}
	t := Twins{Host: h.name, BootIDs: ids, Since: now, Held: held}
	h.contact.twins = &t
	w.changes.twins = append(w.changes.twins, t)
	w.changes.log(protocol.Event{
		At: pki.At(now), Host: h.name, Kind: protocol.LogTwoMachines, Reason: CodeTwoMachines, Detail: t.words(),
	})
	if held {
		w.leases.endLease(h, DispatchCancelled, now)
	}
}

// words name the two machines.
func (t *Twins) words() string {
	if t.BootIDs[0] == t.BootIDs[1] {
		return "two machines answer as " + t.Host + ", both with boot id " + t.BootIDs[0]
	}
	return "two machines answer as " + t.Host + ", with boot ids " + t.BootIDs[0] + " and " + t.BootIDs[1]
}

// parted notes that a person has seen to it. Two machines that still answer are noticed again.
func (w *World) parted(h *host) {
	if h.contact.twins == nil {
		return
	}
	t := *h.contact.twins
	t.Cleared = true
	w.changes.twins = append(w.changes.twins, t)
	h.contact.twins, h.contact.other = nil, nil
}

// settleDoubled stops waiting for a host of which there are two.
func (w *World) settleDoubled(h *host, g glance) {
	switch h.state() {
	case Queued, Dispatched, Activating, ConfirmWindow, Healthy, Deferred:
		if g.awaited || h.rec.touched() {
			w.hosts.enter(h, Skipped, CodeTwoMachines, "", g.now)
		}
	}
}

func sayTwins(_ *hold, s subject) (string, string) {
	return s.host.contact.twins.words() + ", since " + clockText(s.host.contact.twins.Since) +
			"; neither is given a target, and nothing they say is counted",
		"stop one of them, or give it a name and a key of its own; then: " + retry(s)
}
