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
	events      []protocol.Event
	moved       []*run    // rollouts that may be ready for their next step
	wake        []*host   // those that are still woken
	promised    []*budget // whose slots are promised to them
}

func (w *World) saveRun(r *run) {
	if !r.dirty && !w.virtual {
		r.dirty = true
		w.pending.runs = append(w.pending.runs, r)
	}
}

func (w *World) saveRecord(r *record) {
	if !r.dirty && !w.virtual {
		r.dirty = true
		w.pending.records = append(w.pending.records, r)
	}
}

func (w *World) saveLease(l *lease) {
	if !l.dirty && !w.virtual {
		l.dirty = true
		w.pending.leases = append(w.pending.leases, l)
	}
}

func (w *World) saveQuarantine(q *quarantine) {
	if !q.dirty && !w.virtual {
		q.dirty = true
		w.pending.quarantines = append(w.pending.quarantines, q)
	}
}

func (w *World) log(e protocol.Event) {
	if !w.virtual || e.Kind == protocol.LogWaveOpened {
		w.pending.events = append(w.pending.events, e)
	}
}

// wake notes that a held request of this host may now have another answer.
func (w *World) wake(h *host) {
	if h.reported && !h.woken {
		h.woken = true
		w.pending.wake = append(w.pending.wake, h)
	}
}

// woken takes the hosts to wake, in the order in which that was noted, and forgets what was promised to them.
func (w *World) woken(take func(*host)) {
	for _, h := range w.pending.wake {
		if h.woken { // it may have been answered meanwhile
			h.woken = false
			take(h)
		}
	}
	for _, b := range w.pending.promised {
		b.promised = 0
	}
}

// move notes that a rollout may be ready for its next step; flush takes it.
func (w *World) move(r *run) {
	if !r.moved {
		r.moved = true
		w.pending.moved = append(w.pending.moved, r)
	}
}

// flush lets every moved rollout take its steps; steps may move others.
func (w *World) flush(now time.Time) {
	for len(w.pending.moved) > 0 {
		moved := w.pending.moved
		w.pending.moved, w.steps = w.steps[:0], nil
		slices.SortFunc(moved, func(a, b *run) int {
			return cmp.Or(cmp.Compare(a.Channel, b.Channel), cmp.Compare(a.Intent, b.Intent))
		})
		for _, r := range moved {
			r.moved = false
			w.advance(r, now)
		}
		w.steps = moved
	}
}

// finish exports what the call changed and starts a new collection.
func (w *World) finish() Change {
	p := &w.pending
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
	c.Events = p.events
	w.woken(func(h *host) { c.Wake = append(c.Wake, h.name) })
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
	*p = changes{}
	return c
}
