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

// boot is a boot of a host that spoke before the present one. It is not changed once it is made.
type boot struct {
	id     string
	seen   time.Time
	uptime time.Duration // of its agent, when it was seen
	// returned says that it had spoken again after another one, and was alive then.
	returned bool
}

// twinSlack is how much later a request may arrive than it was made and still prove that its maker is alive.
const twinSlack = 3 * time.Second

// alive reports whether a check-in was made just now by the same run of an agent as this boot's last one: the agent has
// got older by as much time as has passed. A request that was on its way for long, one that is repeated, a snapshot
// that was restored, and an agent that was started anew are none of that.
func (b *boot) alive(o *Observation, now time.Time) bool {
	return b != nil && b.id == o.BootID && o.Uptime > b.uptime && o.Uptime-b.uptime >= now.Sub(b.seen)-twinSlack
}

// hears notes which boot of a host speaks, before the rest of its check-in is taken. Two machines are there when a
// boot speaks again after a newer one, and that one again after it, both alive; or when two connections prove it.
func (w *World) hears(h *host, o *Observation, now time.Time) {
	last := h.said.BootID
	if o.Twin && last != "" {
		w.notice(h, [2]string{last, o.BootID}, o.KnowsLease, now)
		return
	}
	if last == "" || last == o.BootID || h.said.Uptime == 0 || o.Uptime == 0 {
		return
	}
	before := h.contact.other
	back := before.alive(o, now)
	if back && before.returned {
		w.notice(h, [2]string{last, o.BootID}, o.KnowsLease, now)
	}
	h.contact.other = &boot{id: last, seen: h.contact.seen, uptime: h.said.Uptime, returned: back}
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

// doubled reports whether nothing that is said in the name of the host counts.
func (h *host) doubled() bool { return h.contact.twins != nil && h.contact.twins.Held }

// settleDoubled stops waiting for a host of which there are two.
func (w *World) settleDoubled(h *host, g glance) {
	switch h.state() {
	case Queued, Dispatched, Activating, ConfirmWindow, Healthy, Deferred:
		if g.awaited || h.rec.touched() {
			w.hosts.enter(h, Skipped, CodeTwoMachines, "", g.now)
		}
	}
}

// twins gates both machines.
func (s subject) twins() *hold {
	if s.host.doubled() {
		return heldTwoMachines
	}
	return nil
}

func sayTwins(_ *hold, s subject) (string, string) {
	return s.host.contact.twins.words() + ", since " + clockText(s.host.contact.twins.Since) +
			"; neither is given a target, and nothing they say is counted",
		"stop one of them, or give it a name and a key of its own; then: " + retry(s)
}
