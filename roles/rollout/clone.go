package rollout

import (
	"slices"
	"time"
)

// Clone copies a World with what it has heard: what New would make of its State, and the hosts' words. Like that it
// decides nothing before the next Accept; nothing that is done to one of the two reaches the other. It costs little,
// since callers hold up every check-in for it.
func (w *World) Clone(now time.Time) *World {
	now = at(now)
	c := empty(w.limits, w.started)
	c.rel, c.grace = w.rel, w.grace
	c.budgets.unheard, c.budgets.born = w.budgets.unheard, w.budgets.born
	c.hosts.byName, c.hosts.all = make(map[string]*host, len(w.hosts.all)), make([]*host, 0, len(w.hosts.all))
	c.timers.schedule(&c.budgets.clock, c.budgets.unheard)
	for name, ch := range w.rollouts.channels {
		x := c.rollouts.channel(name)
		x.freeze = ch.freeze // never changed
		if ch.cur != nil {
			x.cur = newRun(ch.cur.export())
		}
		for _, r := range ch.past {
			x.past = append(x.past, newRun(r.export()))
		}
	}
	for k, q := range w.rollouts.quarantines {
		c.rollouts.quarantines[k] = &quarantine{Quarantine: q.Quarantine}
	}
	for intent, rows := range w.hosts.stored {
		for _, r := range rows {
			c.hosts.store(intent, len(rows), &record{HostRecord: r.export()})
		}
	}
	hosts, records := make([]host, len(w.hosts.all)), make([]record, 0, len(w.hosts.all))
	copied := func(h *host) {
		x := &hosts[len(c.hosts.byName)]
		x.name, x.timer.host = h.name, x
		c.hosts.byName[h.name] = x
		c.hosts.all = append(c.hosts.all, x)
		if h.rec != nil {
			records = append(records, record{HostRecord: h.rec.export()})
			c.hosts.store(h.rec.Intent, len(w.hosts.byName), &records[len(records)-1])
		}
		c.leases.copyLeases(x, h, now)
		x.said, x.contact, x.proof = h.said, h.contact, h.proof
		x.said.Phase = nil // a plan takes every host for one that answers what it is asked
	}
	// In the order of the waves, so that they lie like that in memory.
	for _, ch := range w.rollouts.channels {
		if ch.cur == nil {
			continue
		}
		for i := range ch.cur.waves {
			for _, h := range ch.cur.waves[i].hosts {
				copied(h)
			}
		}
	}
	for _, h := range w.hosts.all {
		if c.hosts.byName[h.name] == nil {
			copied(h)
		}
	}
	return c
}

// store keeps a row until a release binds it.
func (hs *hosts) store(intent string, expected int, r *record) {
	m := hs.stored[intent]
	if m == nil {
		m = make(map[string]*record, expected)
		hs.stored[intent] = m
	}
	m[r.Host] = r
}

// copyLeases shares leases that are over, since they do not change any more.
func (ls *leases) copyLeases(x, h *host, now time.Time) {
	var of [3]*lease
	n := 0
	for _, l := range []*lease{h.past.done, h.lease, h.past.ended} {
		if l == nil || (l == h.past.ended && h.slot.until.IsZero()) {
			continue
		}
		if l == h.lease {
			l = &lease{Dispatch: l.Dispatch}
		}
		of[n] = l
		n++
	}
	slices.SortStableFunc(of[:n], func(a, b *lease) int { return a.DispatchedAt.Compare(b.DispatchedAt) })
	for _, l := range of[:n] {
		ls.load(x, l, now)
	}
}
