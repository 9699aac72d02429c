package rollout

import (
	"fmt"
	"time"

	"nixfleet/pki"
	"nixfleet/roles/protocol"
)

// record returns the host's row in its rollout, making it when needed.
func (hs *hosts) record(h *host, now time.Time) *record {
	if h.rec == nil {
		h.rec = &record{HostRecord: HostRecord{
			Host: h.name, Intent: h.run.Intent, Channel: h.run.Channel, State: Queued, Wave: h.wave, Closure: h.closure,
			Since: now,
		}}
	}
	return h.rec
}

// count adds (sign 1) or removes (sign -1) a host in the counters of its rollout.
func (r *run) count(h *host, sign int) {
	st := h.state()
	wv := &r.waves[h.wave]
	wv.counts[st.Index()] += sign
	if h.rec == nil {
		return
	}
	if st == Skipped && h.rec.Reason == CodeTolerated {
		wv.tolerated += sign
	}
	if (st == Failed || st == Reverted) && h.rec.Reason != CodeLost && h.rec.Reason != CodeUnconfirmed {
		wv.failed += sign
	}
	if h.rec.touched() {
		r.touched[st.Index()] += sign
		if st == Skipped && h.rec.Reason != CodeTolerated {
			wv.silent += sign
		}
	}
	if h.rec.FailingSince != nil {
		wv.failing += sign
	}
	if len(h.rec.Failures) > 0 {
		wv.noncompliant += sign
	}
}

// edit changes a host's row and keeps every counter right.
func (hs *hosts) edit(h *host, now time.Time, change func(*record)) {
	h.run.count(h, -1)
	change(hs.record(h, now))
	h.run.count(h, 1)
	hs.w.changes.saveRecord(h.rec)
	hs.w.budgets.settle(h, now)
}

// enter moves a host to a state, for a reason, and lets its rollout and its neighbours notice.
func (hs *hosts) enter(h *host, st HostState, code, detail string, now time.Time) {
	from := h.state()
	if from == st && h.rec != nil && h.rec.Reason == code {
		return
	}
	hs.edit(h, now, func(r *record) {
		r.State, r.Reason, r.Since = st, code, now
		switch st {
		case Healthy, Soaked, Converged, Skipped:
		default:
			r.HealthySince = nil
		}
		if st != Healthy && st != Soaked {
			r.FailingSince = nil
		}
	})
	if st != Queued {
		h.slot.waitsFor = nil
	}
	if (from != st || code != "") && !hs.w.changes.virtual {
		e := hs.w.rollouts.event(h.run, protocol.LogHost, code, now)
		e.Host, e.Detail = h.name, fmt.Sprintf("%s to %s", from, st)
		if detail != "" {
			e.Detail += ": " + detail
		}
		hs.w.changes.log(e)
	}
	hs.w.changes.move(h.run)
	hs.passOn(h, from, st, now)
}

// passOn tells the hosts that come after this one by an edge.
func (hs *hosts) passOn(h *host, from, to HostState, now time.Time) {
	for _, g := range h.decl.before {
		if g.run != h.run {
			continue
		}
		switch {
		case to == Soaked && from != Converged:
			if g.state() == Skipped && g.rec.Reason == CodeHostEdge {
				hs.enter(g, Queued, CodeReturned, "", now)
			}
			if !broken(ruleEdgesWake) {
				hs.w.changes.wake(g)
			}
		case to == Skipped && g.state() == Queued:
			hs.enter(g, Skipped, CodeHostEdge, "host "+h.name+", which comes first, is not waited for", now)
		case from == Skipped && g.state() == Skipped && g.rec.Reason == CodeHostEdge:
			hs.enter(g, Queued, CodeReturned, "", now)
		}
	}
}

func (rs *rollouts) event(r *run, kind, code string, now time.Time) protocol.Event {
	return protocol.Event{
		At: pki.At(now), Intent: r.Intent, RolloutID: r.RolloutID, Channel: r.Channel, Kind: kind, Reason: code,
	}
}

// logRun notes something about the whole rollout.
func (rs *rollouts) logRun(r *run, kind, code, actor, detail string, now time.Time) {
	e := rs.event(r, kind, code, now)
	e.Actor, e.Detail = actor, detail
	rs.w.changes.log(e)
	rs.w.changes.saveRun(r)
}
