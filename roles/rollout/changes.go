package rollout

import (
	"cmp"
	"slices"
	"time"

	"nixfleet/roles/protocol"
)

// changes collects what one call changes; each row is exported once, in its last form.
type changes struct {
	runs        []*run
	records     []*record
	leases      []*lease
	quarantines []*quarantine
	twins       []Twins
	freezes     []Freeze
	events      []protocol.Event
	moved       []*run    // rollouts that may be ready for their next step
	toWake      []*host   // those that are still woken
	promised    []*budget // whose slots are promised to them
	virtual     bool      // it is a plan's: what it changes is not stored or read
}

func (c *changes) saveRun(r *run) {
	if !r.dirty && !c.virtual && !broken(ruleRunsStored) {
		r.dirty = true
		c.runs = append(c.runs, r)
	}
}

func (c *changes) saveRecord(r *record) {
	if !r.dirty && !c.virtual && !broken(ruleHostRowsStored) {
		r.dirty = true
		c.records = append(c.records, r)
	}
}

func (c *changes) saveLease(l *lease) {
	if !l.dirty && !c.virtual && !broken(ruleLeasesStored) {
		l.dirty = true
		c.leases = append(c.leases, l)
	}
}

func (c *changes) saveQuarantine(q *quarantine) {
	if !q.dirty && !c.virtual && !broken(ruleBlameStored) {
		q.dirty = true
		c.quarantines = append(c.quarantines, q)
	}
}

func (c *changes) log(e protocol.Event) {
	if !c.virtual || e.Kind == protocol.LogWaveOpened {
		c.events = append(c.events, e)
	}
}

// wake notes that a held request of this host may now have another answer.
func (c *changes) wake(h *host) {
	if h.contact.reported && !h.woken && !broken(ruleHostsAreWoken) {
		h.woken = true
		c.toWake = append(c.toWake, h)
	}
}

// woken takes the hosts to wake, in the order in which that was noted, and forgets what was promised to them.
func (c *changes) woken(take func(*host)) {
	for _, h := range c.toWake {
		if h.woken { // it may have been answered meanwhile
			h.woken = false
			take(h)
		}
	}
	for _, b := range c.promised {
		b.promised = 0
	}
}

// move notes that a rollout may be ready for its next step; flush takes it.
func (c *changes) move(r *run) {
	if !r.moved {
		r.moved = true
		c.moved = append(c.moved, r)
	}
}

// flush lets every moved rollout take its steps; steps may move others.
func (rs *rollouts) flush(now time.Time) {
	for len(rs.w.changes.moved) > 0 {
		moved := rs.w.changes.moved
		rs.w.changes.moved, rs.steps = rs.steps[:0], nil
		slices.SortFunc(moved, func(a, b *run) int {
			return cmp.Or(cmp.Compare(a.Channel, b.Channel), cmp.Compare(a.Intent, b.Intent))
		})
		for _, r := range moved {
			r.moved = false
			rs.advance(r, now)
		}
		rs.steps = moved
	}
}

// finish exports what the call changed and starts a new collection.
func (w *World) finish() Change {
	p := &w.changes
	var c Change
	for _, r := range p.runs {
		r.dirty = false
		c.Rollouts = append(c.Rollouts, r.export())
	}
	if len(p.records) > 0 {
		c.Hosts = make([]HostRecord, 0, len(p.records))
	}
	for _, r := range p.records {
		r.dirty = false
		c.Hosts = append(c.Hosts, r.export())
	}
	for _, l := range p.leases {
		l.dirty = false
		c.Dispatches = append(c.Dispatches, l.Dispatch)
	}
	for _, q := range p.quarantines {
		q.dirty = false
		c.Quarantines = append(c.Quarantines, q.Quarantine)
	}
	c.Twins, c.Freezes, c.Events = p.twins, p.freezes, p.events
	w.changes.woken(func(h *host) { c.Wake = append(c.Wake, h.name) })
	slices.SortFunc(c.Rollouts, func(a, b Rollout) int {
		return cmp.Or(cmp.Compare(a.Channel, b.Channel), cmp.Compare(a.Intent, b.Intent))
	})
	slices.SortFunc(c.Hosts, func(a, b HostRecord) int {
		return cmp.Or(cmp.Compare(a.Host, b.Host), cmp.Compare(a.Intent, b.Intent))
	})
	slices.SortFunc(c.Dispatches, func(a, b Dispatch) int {
		return cmp.Or(cmp.Compare(a.Host, b.Host), a.DispatchedAt.Compare(b.DispatchedAt))
	})
	slices.SortFunc(c.Quarantines, func(a, b Quarantine) int {
		return cmp.Or(cmp.Compare(a.Channel, b.Channel), cmp.Compare(a.Closure, b.Closure))
	})
	slices.Sort(c.Wake)
	*p = changes{virtual: p.virtual}
	return c
}

// Empty reports whether nothing has to be stored and no host has to be woken.
func (c Change) Empty() bool {
	return len(c.Rollouts) == 0 && len(c.Hosts) == 0 && len(c.Dispatches) == 0 &&
		len(c.Quarantines) == 0 && len(c.Twins) == 0 && len(c.Freezes) == 0 && len(c.Events) == 0 && len(c.Wake) == 0
}

// at is the resolution of everything stored: milliseconds, UTC.
func at(t time.Time) time.Time { return t.UTC().Truncate(time.Millisecond) }

func later(a, b time.Time) time.Time {
	if a.After(b) {
		return a
	}
	return b
}
