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
	c := &World{
		limits: w.limits, rel: w.rel, started: w.started, grace: w.grace, unheard: w.unheard, born: w.born,
		hosts:       make(map[string]*host, len(w.hosts)),
		channels:    make(map[string]*channel, len(w.channels)),
		budgets:     map[string]*budget{},
		quarantines: make(map[quarantineKey]*quarantine, len(w.quarantines)),
		stored:      map[string]map[string]*record{},
	}
	c.schedule(&c.clock, c.unheard)
	for name, ch := range w.channels {
		x := c.channel(name)
		if ch.cur != nil {
			x.cur = newRun(ch.cur.export())
		}
		for _, r := range ch.past {
			x.past = append(x.past, newRun(r.export()))
		}
	}
	for k, q := range w.quarantines {
		c.quarantines[k] = &quarantine{Quarantine: q.Quarantine}
	}
	for intent, rows := range w.stored {
		for _, r := range rows {
			c.store(intent, len(rows), &record{HostRecord: r.export()})
		}
	}
	hosts, records := make([]host, len(w.hosts)), make([]record, 0, len(w.hosts))
	copied := func(h *host) {
		x := &hosts[len(c.hosts)]
		x.name, x.timer.host = h.name, x
		c.hosts[h.name] = x
		if h.rec != nil {
			records = append(records, record{HostRecord: h.rec.export()})
			c.store(h.rec.Intent, len(w.hosts), &records[len(records)-1])
		}
		c.copyLeases(x, h, now)
		x.said, x.seen, x.until, x.reported = h.said, h.seen, h.until, h.reported
		x.said.Phase = nil // a plan takes every host for one that answers what it is asked
		x.health, x.healthAt, x.attested, x.stagedBoot = h.health, h.healthAt, h.attested, h.stagedBoot
	}
	// In the order of the waves, so that they lie like that in memory.
	for _, ch := range w.channels {
		if ch.cur == nil {
			continue
		}
		for i := range ch.cur.waves {
			for _, h := range ch.cur.waves[i].hosts {
				copied(h)
			}
		}
	}
	for _, h := range w.hosts {
		if c.hosts[h.name] == nil {
			copied(h)
		}
	}
	return c
}

// store keeps a row until a release binds it.
func (w *World) store(intent string, expected int, r *record) {
	m := w.stored[intent]
	if m == nil {
		m = make(map[string]*record, expected)
		w.stored[intent] = m
	}
	m[r.Host] = r
}

// copyLeases shares leases that are over, since they do not change any more.
func (w *World) copyLeases(x, h *host, now time.Time) {
	var of [3]*lease
	n := 0
	for _, l := range []*lease{h.done, h.lease, h.ended} {
		if l == nil || (l == h.ended && h.slotUntil.IsZero()) {
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
		w.load(x, l, now)
	}
}
