package cp

import "sync"

// waiters are the check-ins that are held open, one per host.
type waiters struct {
	mu    sync.Mutex
	held  map[string]chan struct{}
	limit int
}

func newWaiters(limit int) *waiters { return &waiters{held: map[string]chan struct{}{}, limit: limit} }

// hold registers a host's request. A second request of the same host ends the
// first. ok is false when too many are held.
func (w *waiters) hold(host string) (woken chan struct{}, ok bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if before := w.held[host]; before != nil {
		close(before)
		delete(w.held, host)
	}
	if len(w.held) >= w.limit {
		return nil, false
	}
	woken = make(chan struct{})
	w.held[host] = woken
	return woken, true
}

// release forgets a request that ended by itself.
func (w *waiters) release(host string, woken chan struct{}) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.held[host] == woken {
		delete(w.held, host)
	}
}

// wake ends the host's held request, if there is one.
func (w *waiters) wake(host string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if woken := w.held[host]; woken != nil {
		close(woken)
		delete(w.held, host)
	}
}

// wakeAll ends every held request.
func (w *waiters) wakeAll() {
	w.mu.Lock()
	defer w.mu.Unlock()
	for host, woken := range w.held {
		close(woken)
		delete(w.held, host)
	}
}

func (w *waiters) count() int {
	w.mu.Lock()
	defer w.mu.Unlock()
	return len(w.held)
}

// feed tells followers of the event log that there is more.
type feed struct {
	mu   sync.Mutex
	more chan struct{}
}

func newFeed() *feed { return &feed{more: make(chan struct{})} }

// wait returns a channel that closes with the next announcement.
func (f *feed) wait() <-chan struct{} {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.more
}

func (f *feed) announce() {
	f.mu.Lock()
	defer f.mu.Unlock()
	close(f.more)
	f.more = make(chan struct{})
}
