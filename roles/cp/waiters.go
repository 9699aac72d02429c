package cp

import "sync"

// waiters are the check-ins that are held open, one per host.
type waiters struct {
	mu    sync.Mutex
	held  map[string]*waiter
	limit int
}

// waiter is one held check-in. It stays registered until it is answered.
type waiter struct {
	woken    chan struct{} // has an element when the decision may have changed
	replaced chan struct{} // closed when the host has sent a newer check-in
}

func newWaiters(limit int) *waiters { return &waiters{held: map[string]*waiter{}, limit: limit} }

// replace ends the host's held request: a newer one says more.
func (w *waiters) replace(host string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.end(host)
}

func (w *waiters) end(host string) {
	if before := w.held[host]; before != nil {
		close(before.replaced)
		delete(w.held, host)
	}
}

// hold registers a host's request and ends the one before. Nil means that too
// many are held.
func (w *waiters) hold(host string) *waiter {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.end(host)
	if len(w.held) >= w.limit {
		return nil
	}
	h := &waiter{make(chan struct{}, 1), make(chan struct{})}
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
