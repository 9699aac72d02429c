package sim

import "time"

// clock is what the machine takes for the time.
func (h *host) clock() time.Time {
	h.mu.Lock()
	defer h.mu.Unlock()
	now := time.Now()
	if now.Before(h.until[skew]) {
		return now.Add(h.wrong)
	}
	return now.Add(h.drift)
}

// faults are those of the moment.
type faults struct{ up, down, lossy, lie, slow bool }

func (h *host) faults(now time.Time) faults {
	h.mu.Lock()
	defer h.mu.Unlock()
	is := func(k kind) bool { return now.Before(h.until[k]) }
	return faults{is(cut) || is(cutUp), is(cut) || is(cutDown), is(lossy), is(lie), is(slowDisk)}
}

// worstSkew is more than any clock is ever wrong.
const worstSkew = time.Hour

// misset says how wrong the clock is from the next fault of it on.
func (h *host) misset(by time.Duration) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.wrong = by
}

// suffer begins a fault; what is open breaks when the network does.
func (h *host) suffer(k kind, last time.Duration) {
	if k == lie {
		h.w.locked(func() { h.recalled = true })
	}
	h.mu.Lock()
	h.until[k] = latest(h.until[k], time.Now().Add(last))
	h.mu.Unlock()
	if k == cut {
		h.hangUp()
	}
}

func (h *host) hangUp() {
	h.mu.Lock()
	defer h.mu.Unlock()
	for c := range h.conns {
		c.Close()
	}
	clear(h.conns)
}

// cutOff: what it runs lets nothing through.
func (h *host) cutOff() bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.severed || !h.sim.Online()
}
