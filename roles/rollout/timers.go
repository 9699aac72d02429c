package rollout

import (
	"cmp"
	"time"
)

// timer is one entry of the heap: the time at which its host, rollout or (neither) the World itself may have
// something to decide. It is armed early rather than late: firing costs one look and re-arms.
type timer struct {
	pos  int // index in the heap plus one; 0: not in it
	host *host
	run  *run
}

// less orders timers of the same time: the World comes first, then hosts by name, then rollouts.
func (t *timer) less(o *timer) bool {
	if c := cmp.Compare(t.rank(), o.rank()); c != 0 {
		return c < 0
	}
	switch {
	case t.host != nil:
		return t.host.name < o.host.name
	case t.run != nil:
		return cmp.Or(cmp.Compare(t.run.Channel, o.run.Channel), cmp.Compare(t.run.Intent, o.run.Intent)) < 0
	}
	return false
}

func (t *timer) rank() int {
	switch {
	case t.host != nil:
		return 1
	case t.run != nil:
		return 2
	}
	return 0
}

// timers are what is due when, of hosts, rollouts and the World.
type timers struct{ heap timerHeap }

// timerHeap has four children to a node and the times in itself: a comparison seldom has to look at a host.
type timerHeap []armed

type armed struct {
	at int64 // Unix milliseconds
	*timer
}

func (a armed) before(b armed) bool { return a.at < b.at || a.at == b.at && a.less(b.timer) }

func (h timerHeap) set(i int, a armed) {
	h[i] = a
	a.pos = i + 1
}

// settle moves the entry at i to where it belongs.
func (h timerHeap) settle(i int) {
	a := h[i]
	for i > 0 {
		parent := (i - 1) / 4
		if !a.before(h[parent]) {
			break
		}
		h.set(i, h[parent])
		i = parent
	}
	for {
		least := 4*i + 1
		if least >= len(h) {
			break
		}
		for k := least + 1; k < min(4*i+5, len(h)); k++ {
			if h[k].before(h[least]) {
				least = k
			}
		}
		if !h[least].before(a) {
			break
		}
		h.set(i, h[least])
		i = least
	}
	h.set(i, a)
}

// remove takes the entry at i out.
func (h *timerHeap) remove(i int) *timer {
	old := *h
	t, last := old[i].timer, old[len(old)-1]
	old[len(old)-1] = armed{}
	*h = old[:len(old)-1]
	t.pos = 0
	if last.timer != t {
		h.set(i, last)
		h.settle(i)
	}
	return t
}

// schedule makes the timer fire at the given time or before.
func (ts *timers) schedule(t *timer, due time.Time) {
	if due.IsZero() {
		return
	}
	ms := due.Add(time.Millisecond - 1).UnixMilli() // a tick's time is in milliseconds, and must not be before it
	switch {
	case t.pos == 0:
		ts.heap = append(ts.heap, armed{ms, t})
		ts.heap.settle(len(ts.heap) - 1)
	case ms < ts.heap[t.pos-1].at:
		ts.heap[t.pos-1].at = ms
		ts.heap.settle(t.pos - 1)
	}
}

// unschedule forgets the timer of something that goes away.
func (ts *timers) unschedule(t *timer) {
	if t.pos > 0 {
		ts.heap.remove(t.pos - 1)
	}
}

// Tick does what has become due: leases that ran out, soaks that ended, probes that failed for too long, hosts
// that fell silent. next is the earliest time at which Tick may have something to do again; zero when there is
// none. Calling it more often, or late, changes nothing but the delay.
func (w *World) Tick(now time.Time) (c Change, next time.Time) {
	next = w.tick(at(now))
	return w.finish(), next
}

func (w *World) tick(now time.Time) (next time.Time) {
	for len(w.timers.heap) > 0 && w.timers.heap[0].at <= now.UnixMilli() {
		t := w.timers.heap.remove(0)
		switch {
		case t.host != nil:
			w.hosts.settle(t.host, now)
			w.hosts.wakeRetry(t.host, now)
		case t.run != nil:
			w.changes.move(t.run)
		default:
			w.budgets.endUnheard(now)
		}
		w.rollouts.flush(now)
	}
	if len(w.timers.heap) > 0 {
		next = time.UnixMilli(w.timers.heap[0].at).UTC()
	}
	return next
}

// endUnheard gives back the slots that were kept for hosts unheard of since an empty start.
func (bs *budgets) endUnheard(now time.Time) {
	if now.Before(bs.unheard) {
		bs.w.timers.schedule(&bs.clock, bs.unheard)
		return
	}
	bs.unheard = time.Time{}
	for _, ch := range sortedMap(bs.w.rollouts.channels) {
		if ch.cur != nil {
			bs.w.rollouts.wakeOfferable(ch.cur, now)
		}
	}
}
