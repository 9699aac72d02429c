package explore

import (
	"slices"
	"time"

	"nixfleet/roles/protocol"
	"nixfleet/roles/rollout"
)

// The invariants, by the names of the simulator's where it has the same one.
const (
	invBudget       = "1 budgets hold"
	invWaves        = "2 waves and edges in order"
	invSigned       = "3 only what was signed for the host, never older"
	invHalt         = "4 a halt, a hold and a quarantine hold"
	invArrives      = "6 everybody arrives or says why"
	invSoak         = "7 soak is whole"
	invAcknowledged = "8 acknowledged once and for ever"
	invReason       = "9 who waits has a reason"
	invOutage       = "10 an outage quarantines nothing"
	invWake         = "11 who may begin is woken"
	invRows         = "12 what is stored is what is known"
	invTwice        = "13 the same word twice changes nothing"
	invTime         = "14 ticks go on"
	invLease        = "15 one lease at a time"
	invRollback     = "16 only what was recalled goes back"
)

// took notes what a change says, and looks at each event of it.
func (r *runner) took(n *node, c rollout.Change) {
	s := r.spec
	if r.rows != nil {
		r.rows.apply(c)
	}
	for i := range c.Events {
		e := &c.Events[i]
		channel := slices.Index([]string{channelName(0), channelName(1)}, e.Channel)
		if channel < 0 || e.Intent != "" && e.Intent != intentOf(channel, n.content(s)) {
			continue
		}
		l := &n.Lines[channel]
		if e.Host == "" {
			r.tell("    the rollout of %s: %s %s", e.Channel, e.Kind, e.Detail)
		} else {
			r.tell("    host %s: %s %s %s", e.Host, e.Kind, e.Reason, e.Detail)
		}
		switch e.Kind {
		case protocol.LogOpened:
			l.Halted, l.Paused, l.Opened, l.Converged = none, false, 0, false
			for _, h := range n.members(s, channel) {
				n.Boxes[h].Retried = false
			}
		case protocol.LogWaveOpened:
			l.Opened++
			r.opens(n, channel, int(l.Opened)-1)
		case protocol.LogConverged:
			l.Converged = true
			r.converges(n, channel)
		case protocol.LogHalted:
			l.Halted = halted
		case protocol.LogReverting:
			l.Halted = recalled
		case protocol.LogCancelled:
			l.Halted, l.Paused = cancelled, false
		case protocol.LogPaused:
			l.Paused = true
		case protocol.LogResumed:
			l.Halted, l.Paused = none, false
		case protocol.LogRetry:
			n.Boxes[hostOf(e.Host)].Retried = true
		}
	}
	for i := range c.Quarantines {
		q := &c.Quarantines[i]
		channel := slices.Index([]string{channelName(0), channelName(1)}, q.Channel)
		closure := closureNumber(q.Closure)
		n.Lines[channel].Bad[closure] = !q.Cleared
		if !q.Cleared && !n.Failed[channel][closure] && !r.recalledOnce(n, channel, closure) {
			r.violate(invOutage, "%s is quarantined on %s (%s), and never failed there", q.Closure, q.Channel, q.Reason)
		}
	}
	for _, name := range c.Wake {
		if b := &n.Boxes[hostOf(name)]; b.Until >= n.Now && b.Until > 0 {
			b.Woken = true
		}
	}
}

// recalledOnce: the closure was recalled from a host, which blames it since.
func (r *runner) recalledOnce(n *node, channel int, closure int8) bool {
	return slices.ContainsFunc(n.members(r.spec, channel), func(h int) bool {
		return n.Boxes[h].Recalled == closure || n.Boxes[h].Quarantined == closure
	})
}

// opens: each host of the wave before has soaked, in truth, or is not waited for.
func (r *runner) opens(n *node, channel, wave int) {
	s := r.spec
	if wave == 0 {
		if s.chained && channel == 1 && !n.Lines[0].Converged {
			r.violate(invWaves, "%s begins, and %s, which comes first, has not converged", channelName(1), channelName(0))
		}
		return
	}
	some := r.soaked(n, channel, wave-1, "the next wave opens")
	if !some && n.Acts == int8(s.acts) { // an operator may have gone on without its hosts
		r.violate(invWaves, "wave %d of %s opens, and no host of the one before has soaked", wave, channelName(channel))
	}
}

// soaked looks whether the hosts of a wave did what they are said to have done.
func (r *runner) soaked(n *node, channel, wave int, when string) (some bool) {
	s := r.spec
	states := n.W.HostStates(rolloutID(channel, n.id(s)))
	for _, h := range n.members(s, channel) {
		b := &n.Boxes[h]
		st := states[hostName(h)]
		if s.hosts[h].wave != wave {
			continue
		}
		switch st {
		case rollout.Soaked, rollout.Converged:
			some = true
		case rollout.Skipped, rollout.Failed, rollout.Reverted:
			continue
		default:
			r.violate(invWaves, "%s, and host %s of wave %d is %s", when, hostName(h), wave, st)
			continue
		}
		if b.Late.Kind != noMessage {
			continue // what it does since then nobody can know
		}
		soak := s.channels[channel].soaks[wave]
		soaked := time.Duration(n.Now-b.Proven) * time.Millisecond
		if b.Running == int8(n.content(s)) && soaked < soak-s.skew {
			r.violate(invSoak, "%s %s after host %s was proven; its wave soaks %s", when, soaked, hostName(h), soak)
		}
		if s.probes && b.SaidSick {
			r.violate(invSoak, "%s, and host %s said last that its probe fails", when, hostName(h))
		}
	}
	return some
}

// converges: somebody proved the release [C5].
func (r *runner) converges(n *node, channel int) {
	some := false
	for w := range r.spec.channels[channel].soaks {
		some = r.soaked(n, channel, w, "the rollout converges") || some
	}
	if !some {
		r.violate(invWaves, "the rollout of %s converges, and no host of it has soaked", channelName(channel))
	}
}

// answers is looked at for each answer to a check-in.
func (r *runner) answers(n *node, h int, d rollout.Decision) {
	s, b := r.spec, &n.Boxes[h]
	channel := s.hosts[h].channel
	l := &n.Lines[channel]
	name := hostName(h)
	switch {
	case d.Rollback != nil:
		r.tell("    it is asked to go back: %s", d.Rollback.Reason)
		v, _ := n.W.Host(name, n.time())
		if l.Halted != recalled && v.State != rollout.Failed || !s.channels[channel].revert {
			r.violate(invRollback, "host %s is asked to go back in a rollout that was not recalled", name)
		}
		return
	case d.Target == nil:
		r.tell("    it waits: %s", d.Reason.Text)
		r.wholeReason(h, d.Reason)
		return
	}
	t := d.Target
	r.tell("    it is given %s of rollout %s for %s", t.Closure, t.RolloutID, t.StartBy)
	if t.Closure != closureNames[n.content(s)] || t.RolloutID != rolloutID(channel, n.id(s)) {
		r.violate(invSigned, "host %s is given %s of rollout %s, which is not in force", name, t.Closure, t.RolloutID)
	}
	if s.fresh > 0 && n.Now > n.SignedAt+(s.fresh+time.Minute).Milliseconds() {
		r.violate(invSigned, "host %s is given a release whose window is over", name)
	}
	switch {
	case l.Halted == halted && b.Retried:
	case l.Halted != none || l.Paused:
		r.violate(invHalt, "host %s is given its target in a rollout that is halted, held, recalled or cancelled", name)
	}
	if l.Bad[n.content(s)] {
		r.violate(invHalt, "host %s is given %s, which is quarantined", name, t.Closure)
	}
	if int8(s.hosts[h].wave) >= l.Opened && !b.Retried && !l.Converged {
		r.violate(invWaves, "host %s of wave %d is given its target, and %d waves are open", name, s.hosts[h].wave, l.Opened)
	}
	r.edges(n, h)
	if !t.Resent {
		r.slots(n, h)
	}
	r.leases(n, h, t)
}

// slots: a host is counted until it has soaked, and a channel before this one has nothing under way.
func (r *runner) slots(n *node, h int) {
	s, soaking := r.spec, 0
	for x := range s.hosts {
		if v, _ := n.W.Host(hostName(x), n.time()); x != h && v.State == rollout.Healthy && n.Boxes[x].Acked[n.content(s)] {
			soaking++
		}
	}
	if s.budget > 0 && soaking >= s.budget {
		r.violate(invBudget, "host %s is given its target while %d hosts soak; the budget allows %d", hostName(h), soaking,
			s.budget)
	}
	if s.chained && s.hosts[h].channel == 1 && !n.Lines[0].Converged && n.Lines[0].Halted != cancelled {
		if v, ok := n.W.Rollout(rolloutID(0, n.id(s)), n.time()); ok && v.Open {
			r.violate(invWaves, "host %s is given its target while %s, which comes first, has an active rollout", hostName(h),
				channelName(0))
		}
	}
}

// edges: the host that comes first runs what it should.
func (r *runner) edges(n *node, h int) {
	for _, e := range r.spec.edges {
		if first := &n.Boxes[e[0]]; e[1] == h && first.Said != int8(n.content(r.spec)) && first.Until >= n.Now {
			r.violate(invWaves, "host %s is given its target before host %s, which comes first, runs it",
				hostName(h), hostName(e[0]))
		}
	}
}

// leases: a host has one at a time.
func (r *runner) leases(n *node, h int, t *rollout.Target) {
	b := &n.Boxes[h]
	content := int8(n.content(r.spec))
	switch {
	case t.StartBy <= 0:
		r.violate(invLease, "host %s is given its target with a lease of %s", hostName(h), t.StartBy)
	case t.Resent && r.spec.hosts[h].v1:
		r.violate(invLease, "host %s, whose agent is of v1, is told its target twice", hostName(h))
	case t.Resent:
	case b.Lease >= n.Now && b.Lease > 0 && b.LeaseOf == content && !b.Retried:
		r.violate(invLease, "host %s is dispatched twice at once", hostName(h))
	case (b.Phase == switching || b.Phase == checking) && b.Late.Kind == noMessage && !r.spec.hosts[h].v1:
		r.violate(invLease, "host %s is dispatched while it says that it is %s", hostName(h), phaseNames[b.Phase])
	}
	if !t.Resent {
		b.Retried = false
		b.follow()
	}
	b.Lease, b.LeaseOf = n.Now+t.StartBy.Milliseconds(), content
}

func (r *runner) wholeReason(h int, why protocol.Reason) {
	if why.Code == "" || why.Text == "" || why.Next == "" || why.Gate == "" {
		r.violate(invReason, "host %s waits without a whole reason: %+v", hostName(h), why)
	}
}

// acknowledged: a confirm that was accepted is on record.
func (r *runner) acknowledged(n *node, h int, id uint8, closure int8) {
	r.tell("    its confirm of %s is accepted", closureNames[closure])
	if int(id/8) != n.content(r.spec) {
		return
	}
	v, _ := n.W.Host(hostName(h), n.time())
	switch v.State {
	case rollout.Healthy, rollout.Soaked, rollout.Converged:
	default:
		r.violate(invAcknowledged, "the confirm of host %s is accepted, and it is %s", hostName(h), v.State)
	}
}

// refused: a confirm of what the release in force wants is refused only where that failed or was recalled.
func (r *runner) refused(n *node, h int, id uint8, closure int8) {
	r.tell("    its confirm of %s is refused", closureNames[closure])
	l := &n.Lines[r.spec.hosts[h].channel]
	if !n.current(r.spec, id) || int(closure) != n.content(r.spec) || l.Halted == recalled || l.Bad[closure] {
		return
	}
	v, _ := n.W.Host(hostName(h), n.time())
	switch v.State {
	case rollout.Failed, rollout.Reverted:
	default:
		r.violate(invAcknowledged, "host %s runs and confirms what it should, is %s and is refused", hostName(h), v.State)
	}
}

// remembered: nothing is lost or decided by starting again.
func (r *runner) remembered(n *node, before *rollout.World) {
	for c := range r.spec.channels {
		id := rolloutID(c, n.id(r.spec))
		was, _ := before.Rollout(id, n.time())
		is, _ := n.W.Rollout(id, n.time())
		if was.State != is.State || was.Wave != is.Wave || (was.Hold == nil) != (is.Hold == nil) {
			r.violate(invRows, "the rollout of %s was %s in wave %d and is %s in wave %d after a restart",
				channelName(c), was.State, was.Wave, is.State, is.Wave)
		}
		states := n.W.HostStates(id)
		for host, st := range before.HostStates(id) {
			if states[host] != st && st != rollout.Skipped { // who is there shows anew
				r.violate(invRows, "host %s was %s and is %s after a restart", host, st, states[host])
			}
		}
	}
}
