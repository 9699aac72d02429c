package cp

import (
	"net/http"
	"strconv"
	"strings"
	"sync"
	"time"

	"nixfleet/roles/rollout"
)

// waiters are the check-ins that are held open, one per host.
type waiters struct {
	mu    sync.Mutex
	held  map[string]*waiter
	limit int
	// ended are connections whose held request ended because another one of the host sent a check-in. An agent sends one
	// at a time, and closes the connection of one that it gives up: if such a connection speaks again, two agents are
	// there.
	ended map[string]*connection
	// spoke is how often that was seen of a host in a row.
	spoke map[string]int
}

// waiter is one held check-in. It stays registered until it is answered.
type waiter struct {
	woken    chan struct{} // has an element when the decision may have changed
	replaced chan struct{} // closed when the host has sent a newer check-in
	by       *connection   // nil: not known
}

func newWaiters(limit int) *waiters {
	return &waiters{held: map[string]*waiter{}, limit: limit, ended: map[string]*connection{}, spoke: map[string]int{}}
}

// twinsSpeak is how often in a row a connection has to speak again after another one ended its request.
const twinsSpeak = 2

// replace ends the host's held request: a newer one says more. It reports whether two agents of the host are at work.
func (w *waiters) replace(host string, by *connection) (twin bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	before := w.held[host]
	w.end(host)
	again := by != nil && w.ended[host] == by
	delete(w.ended, host)
	if before == nil || by == nil || before.by == nil || before.by == by {
		if !again {
			delete(w.spoke, host)
		}
		return false
	}
	w.ended[host] = before.by
	if !again {
		delete(w.spoke, host)
		return false
	}
	w.spoke[host]++
	return w.spoke[host] >= twinsSpeak
}

func (w *waiters) end(host string) {
	if before := w.held[host]; before != nil {
		close(before.replaced)
		delete(w.held, host)
	}
}

// hold registers a host's request and ends the one before. Nil means that too
// many are held.
func (w *waiters) hold(host string, by *connection) *waiter {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.end(host)
	if len(w.held) >= w.limit {
		return nil
	}
	h := &waiter{make(chan struct{}, 1), make(chan struct{}), by}
	w.held[host] = h
	return h
}

// release forgets a request that is being answered.
func (w *waiters) release(host string, h *waiter) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.held[host] == h {
		delete(w.held, host)
	}
}

func (h *waiter) gone() bool {
	select {
	case <-h.replaced:
		return true
	default:
		return false
	}
}

// wake lets the host's held request look again, if there is one.
func (w *waiters) wake(host string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.held[host].wake()
}

func (h *waiter) wake() {
	if h == nil {
		return
	}
	select {
	case h.woken <- struct{}{}:
	default:
	}
}

// wakeIf lets those held requests look again whose host it concerns.
func (w *waiters) wakeIf(concerns func(host string) bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for host, h := range w.held {
		if concerns(host) {
			h.wake()
		}
	}
}

func (w *waiters) count() int {
	w.mu.Lock()
	defer w.mu.Unlock()
	return len(w.held)
}

// maxWait bounds how long a check-in is held.
const maxWait = 300 * time.Second

// preferredWait reads Prefer: wait=N (RFC 7240 §2), N in seconds.
func preferredWait(headers []string) time.Duration {
	for _, h := range headers {
		for preference := range strings.SplitSeq(h, ",") {
			preference, _, _ = strings.Cut(preference, ";")
			name, value, _ := strings.Cut(preference, "=")
			if !strings.EqualFold(strings.TrimSpace(name), "wait") {
				continue
			}
			if n, err := strconv.Atoi(strings.Trim(value, ` "`)); err == nil && n > 0 {
				return time.Duration(min(n, int(maxWait/time.Second))) * time.Second
			}
		}
	}
	return 0
}

// hold keeps the request open until the host's decision changes, the time is
// over, a newer request of the host comes or the server stops. Who the caller is
// is checked anew before it is answered.
func (k *checkins) hold(c *call, x *contact, d decision, wait time.Duration) (decision, error) {
	if x.held = k.waiters.hold(x.host, connectionOf(c.Context())); x.held == nil {
		return d, nil
	}
	defer k.waiters.release(x.host, x.held)
	c.w.Header().Set("Preference-Applied", "wait")
	control := http.NewResponseController(c.w)
	// A held request outlives the deadlines of plain ones. Their errors only mean
	// that the connection has none.
	_ = control.SetReadDeadline(time.Time{})
	_ = control.SetWriteDeadline(time.Now().Add(wait + requestTimeout))
	until := time.Now().Add(wait)
	over := time.NewTimer(wait)
	defer over.Stop()
	// While it is held the host counts as present; a decision may also have
	// changed between the look before and the registration.
	x.held.wake()
	for last := false; !last; {
		select {
		case <-c.Context().Done():
			k.left(x, false)
			return d, c.Context().Err()
		case <-x.held.replaced:
			return d, nil
		case <-over.C:
			last = true
		case <-k.stopping:
			last = true
		case <-x.held.woken:
			k.cfg.Woken(x.host)
		}
		if _, err := k.door.authorize(c.Context()); err != nil {
			c.w.Header().Del("Preference-Applied")
			return d, k.door.shut(c.Request, c.caller, err)
		}
		if last {
			break
		}
		x.o.Wait = max(0, time.Until(until))
		var err error
		if d, err = k.decide(c.Context(), x); err != nil {
			return d, err
		}
		last = !d.waits()
	}
	k.left(x, true)
	return d, nil
}

// left notes that nothing holds the host's presence any longer, and that it was
// there until now when it is answered.
func (k *checkins) left(c *contact, answered bool) {
	if c.held.gone() {
		return
	}
	if !answered {
		k.seen.leave(c.host, time.Now())
	}
	look(k.world, func(w *rollout.World, now time.Time) bool {
		if answered {
			w.Seen(c.host, now)
		}
		w.Gone(c.host, now)
		return answered
	})
}
