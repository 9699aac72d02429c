package rollout

import (
	"cmp"
	"container/heap"
	"time"
)

// timer is one entry of the heap: the time at which its host, rollout or (neither) the World itself may have
// something to decide. It is armed early rather than late: firing costs one look and re-arms.
type timer struct {
	at   time.Time
	pos  int // index in the heap plus one; 0: not in it
	host *host
	run  *run
}

// less orders by time; at the same time the World comes first, then hosts by name, then rollouts.
func (t *timer) less(o *timer) bool {
	if c := t.at.Compare(o.at); c != 0 {
		return c < 0
	}
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

type timerHeap []*timer

func (h timerHeap) Len() int           { return len(h) }
func (h timerHeap) Less(i, j int) bool { return h[i].less(h[j]) }
func (h timerHeap) Swap(i, j int) {
	h[i], h[j] = h[j], h[i]
	h[i].pos, h[j].pos = i+1, j+1
}
func (h *timerHeap) Push(x any) {
	t := x.(*timer)
	*h = append(*h, t)
	t.pos = len(*h)
}
func (h *timerHeap) Pop() any {
	old := *h
	t := old[len(old)-1]
	old[len(old)-1] = nil
	*h = old[:len(old)-1]
	t.pos = 0
	return t
}

// schedule makes the timer fire at the given time or before.
func (w *World) schedule(t *timer, due time.Time) {
	if due.IsZero() {
		return
	}
	due = at(due.Add(time.Millisecond - 1)) // a tick's time is in milliseconds, and must not be before it
	switch {
	case t.pos == 0:
		t.at = due
		heap.Push(&w.timers, t)
	case due.Before(t.at):
		t.at = due
		heap.Fix(&w.timers, t.pos-1)
	}
}

// unschedule forgets the timer of something that goes away.
func (w *World) unschedule(t *timer) {
	if t.pos > 0 {
		heap.Remove(&w.timers, t.pos-1)
	}
}

// Tick does what has become due: leases that ran out, soaks that ended, probes that failed for too long, hosts
// that fell silent. next is the earliest time at which Tick may have something to do again; zero when there is
// none. Calling it more often, or late, changes nothing but the delay.
func (w *World) Tick(now time.Time) (c Change, next time.Time) {
	now = at(now)
	for len(w.timers) > 0 && !w.timers[0].at.After(now) {
		t := heap.Pop(&w.timers).(*timer)
		switch {
		case t.host != nil:
			w.settle(t.host, now)
			w.wakeRetry(t.host, now)
		case t.run != nil:
			w.move(t.run)
		default:
			w.endUnheard(now)
		}
		w.flush(now)
	}
	if len(w.timers) > 0 {
		next = w.timers[0].at
	}
	return w.finish(), next
}

// endUnheard gives back the slots that were kept for hosts unheard of since an empty start.
func (w *World) endUnheard(now time.Time) {
	if now.Before(w.unheard) {
		w.schedule(&w.clock, w.unheard)
		return
	}
	w.unheard = time.Time{}
	for _, ch := range sortedMap(w.channels) {
		if ch.cur != nil {
			w.wakeOfferable(ch.cur, now)
		}
	}
}
