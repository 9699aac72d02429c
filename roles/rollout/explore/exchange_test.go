package explore

import (
	"fmt"
	"slices"
	"strconv"
	"time"

	"nixfleet/roles/rollout"
)

// A runner makes the moves of one fleet and remembers what was broken by the last of them.
type runner struct {
	spec     *spec
	releases *releases
	limits   rollout.Limits
	broken   string
	rows     *rows                            // what is on disk, while that is compared
	told     func(format string, args ...any) // of a story; nil: nobody listens
}

func newRunner(s *spec) *runner {
	return &runner{spec: s, releases: &releases{spec: s, made: map[signing]*releaseInForce{}}, limits: s.limits()}
}

func (r *runner) violate(invariant, format string, args ...any) {
	if r.broken == "" {
		r.broken = invariant + ": " + fmt.Sprintf(format, args...)
	}
}

func (r *runner) tell(format string, args ...any) {
	if r.told != nil {
		r.told(format, args...)
	}
}

// hold is how long an agent of ours lets its request be held.
const hold = 2 * time.Minute

func (r *runner) checkin(n *node, h int, answered bool) {
	b := &n.Boxes[h]
	o := n.observation(r.spec, h)
	b.SaidSick, b.Said, b.Heard = b.Sick, b.Running, n.Now
	b.Woken, b.Until = false, 0
	d := r.ask(n, h, o)
	if d.Target == nil && d.Rollback == nil && !r.spec.hosts[h].v1 {
		// It is held, and its decision looked at once more.
		o.Wait = hold
		if d = r.ask(n, h, o); d.Target != nil || d.Rollback != nil {
			n.W.Seen(hostName(h), n.time())
			n.W.Gone(hostName(h), n.time())
		} else {
			b.Until = n.Now + hold.Milliseconds()
		}
	}
	if !answered {
		if b.Until > 0 {
			n.W.Gone(hostName(h), n.time())
			b.Until = 0
		}
		return
	}
	switch {
	case d.Rollback != nil:
		r.rollBack(n, h)
	case d.Target != nil:
		r.take(n, h, d.Target)
	}
}

// ask is one step of the decision procedure.
func (r *runner) ask(n *node, h int, o rollout.Observation) rollout.Decision {
	d, c := n.W.Checkin(hostName(h), o, n.time())
	r.took(n, c)
	r.answers(n, h, d)
	return d
}

// take is what a host does with a target.
func (r *runner) take(n *node, h int, t *rollout.Target) {
	b := &n.Boxes[h]
	closure, c := closureNumber(t.Closure), n.content(r.spec)
	id, of := uint8(c*8)+n.Signed[c]-1, r.named(h, t)
	switch {
	case b.Phase == idle, b.Phase == told:
	case b.Phase == staged && b.Closure == closure && b.Outs == 0:
		b.ID, b.Of = id, of
		b.say(deferred, id, 0) // once more: the control plane has not heard of it in time
		return
	default:
		return
	}
	if b.Quarantined != closure {
		b.Quarantined = 0
	}
	b.Phase, b.Closure, b.ID, b.Of = told, closure, id, of
	b.StartBy = n.Now + t.StartBy.Milliseconds()
	b.Lease, b.LeaseOf = b.StartBy, int8(c)
	if r.spec.hosts[h].v1 {
		r.begin(n, h)
	}
}

// named is what an agent keeps of the name of a dispatch.
func (r *runner) named(h int, t *rollout.Target) dispatched {
	if r.spec.hosts[h].v1 {
		return dispatched{}
	}
	ms, err := strconv.ParseInt(t.Dispatch, 36, 64)
	if err != nil {
		r.violate(invLease, "host %s is given a target without a dispatch", hostName(h))
	}
	return dispatched{At: ms}
}

// rollBack honours a request to go back, once for each intent and to what it recorded itself.
func (r *runner) rollBack(n *node, h int) {
	b := &n.Boxes[h]
	content := int8(n.content(r.spec))
	switch {
	case b.Phase != idle && b.Phase != told:
	case b.Confirmed > 0 && int8(b.Confirmed/8) == content && b.Running == content && b.Recalled != content:
		b.ID, b.Closure, b.Of = b.Confirmed, b.Running, b.ConfirmedOf
		b.Confirmed, b.ConfirmedAt, b.Recalled, b.ConfirmedOf = 0, 0, content, dispatched{}
		b.undo(undoneRecalled)
		if !r.spec.hosts[h].v1 {
			b.Quarantined = content
			b.say(quarantined, uint8(content)*8+n.Signed[content]-1, content)
		}
	case b.Confirmed == 0 && b.Recalled > 0 && b.Outs == 0:
		b.say(undoneRecalled, n.id(r.spec), 0)
	}
}

// confirm sends the word of a host that it is well. An agent of ours has made it the boot default before.
func (r *runner) confirm(n *node, h int, answered bool) bool {
	b := &n.Boxes[h]
	v1 := r.spec.hosts[h].v1
	r.letGo(n, h) // it is about to be something else
	if b.Phase == checking && !v1 {
		b.Phase, b.Proven, b.Deadline = committed, n.Now, 0
	}
	ok := r.confirmed(n, h, b.ID, b.Closure)
	switch {
	case !answered && v1 && ok:
		b.Phase = committed // and it goes back at its deadline all the same
	case !answered:
	case ok:
		b.Confirmed, b.ConfirmedAt, b.ConfirmedOf = b.ID, n.Now+r.spec.skew.Milliseconds(), b.Of
		if b.Proven == 0 {
			b.Proven = n.Now
		}
		if b.Quarantined == b.Closure {
			b.Quarantined = 0
		}
		b.idleNow()
	default:
		b.undo(undoneRefused)
	}
	return true
}

// confirmed is the control plane's answer to a confirm.
func (r *runner) confirmed(n *node, h int, id uint8, closure int8) bool {
	channel := r.spec.hosts[h].channel
	ok, c := n.W.Confirm(hostName(h), rolloutID(channel, id), closureNames[closure], n.time())
	r.took(n, c)
	content := id / 8
	if ok {
		n.Boxes[h].Said, n.Boxes[h].Heard = closure, n.Now
		n.Boxes[h].Acked[content] = true
		n.Boxes[h].Lease = 0
		r.acknowledged(n, h, id, closure)
		return true
	}
	r.refused(n, h, id, closure)
	return int(content) != n.content(r.spec) && n.Boxes[h].Acked[content]
}

func (r *runner) report(n *node, h int, m message) {
	rep := reports[m.Kind]
	rep.RolloutID, rep.Counts = rolloutID(r.spec.hosts[h].channel, m.ID), true
	rep.Dispatch = m.Of.name()
	if m.Closure > 0 {
		rep.Closure = closureNames[m.Closure]
	}
	r.took(n, n.W.Report(hostName(h), rep, n.time()))
}

// send delivers the oldest report. The control plane acts once on the same report, unless it was started anew.
func (r *runner) send(n *node, h int, answered bool) bool {
	b := &n.Boxes[h]
	if b.Outs == 0 {
		return false
	}
	m := b.Out[0]
	if !m.Taken {
		r.report(n, h, m)
	}
	if m.Kind != started && m.Kind != deferred && m.Kind != nonCompliant && !m.Of.Earlier {
		b.Lease = 0
	}
	if answered {
		b.said()
	} else {
		b.Out[0].Taken = true
	}
	return true
}

// arrive lets a request arrive that its host has given up.
func (r *runner) arrive(n *node, h int) {
	b := &n.Boxes[h]
	m := b.Late
	if m.Kind == lateConfirm {
		if r.confirmed(n, h, m.ID, m.Closure) && b.Phase == checking && b.ID == m.ID {
			b.Phase = committed // an agent of v1, which goes back at its deadline all the same
		}
	} else {
		now := *b
		b.Running, b.Phase, b.ID, b.Closure, b.Of = b.LateRunning, b.LatePhase, m.ID, m.Closure, m.Of
		o := n.observation(r.spec, h)
		b.Running, b.Phase, b.ID, b.Closure, b.Of = now.Running, now.Phase, now.ID, now.Closure, now.Of
		b.Until, b.Woken = 0, false
		r.ask(n, h, o)
	}
	b.Late, b.LateRunning, b.LatePhase = message{}, 0, 0
}

func (r *runner) hold(n *node, channel int, action string) bool {
	c, err := n.W.Hold(rolloutID(channel, n.id(r.spec)), action, "ann", "to be sure", n.time())
	if err != nil {
		return false
	}
	r.took(n, c)
	return true
}

// restart starts the control plane again, from its database or from nothing.
func (r *runner) restart(n *node, wiped bool) {
	state := rollout.State{Empty: true}
	before := n.W
	if !wiped {
		state = n.W.State()
	} else {
		n.Emptied = n.Now
		clear(n.Lines[:])
		c := n.content(r.spec)
		n.Known = [4]uint8{}
		for i := range n.Known {
			n.Known[i] = n.Signed[i]
		}
		n.Known[c] = n.Signed[c] - 1
	}
	for h := range n.Boxes[:n.Count] {
		b := &n.Boxes[h]
		b.Until, b.Woken = 0, false
		for i := range b.Out {
			b.Out[i].Taken = false
		}
		if wiped {
			b.Lease, b.Retried, b.Acked = 0, false, [4]bool{}
		}
	}
	n.W = rollout.New(state, r.limits, n.time())
	r.took(n, n.W.Accept(r.inForce(n), n.time()))
	if !wiped {
		r.remembered(n, before)
	}
}

// pass lets time go on to the next moment at which something is due, or to just before or after it.
func (r *runner) pass(n *node, k moveKind) bool {
	c, due := n.W.Tick(n.time())
	r.took(n, c)
	first, last := r.due(n, due)
	if first == 0 {
		return false
	}
	next := last
	switch k {
	case mTimeBefore:
		next = first - 1
	case mTimeAt:
		if next = first; first == last {
			return false
		}
	case mTimeAfter:
		next = last + 1
	}
	if next <= n.Now {
		return false
	}
	n.Now = next
	for h := range n.Boxes[:n.Count] {
		r.ages(n, h)
	}
	c, _ = n.W.Tick(n.time())
	r.took(n, c)
	if c, _ = n.W.Tick(n.time()); !c.Empty() {
		r.violate(invTime, "a second tick at the same moment does something again")
	}
	return true
}

// together is how far apart deadlines may be that count as one.
const together = coarse / 2

// due finds the next moment at which something is due, and the last that is so near to it that both count as one.
func (r *runner) due(n *node, tick time.Time) (first, last int64) {
	var room [4 * (maxHosts + 1)]int64
	list := room[:0]
	look := func(t int64) {
		if t > n.Now {
			list = append(list, t)
		}
	}
	if !tick.IsZero() {
		if look(tick.UnixMilli()); tick.UnixMilli() <= n.Now {
			r.violate(invTime, "the tick wants to come back at the same moment")
		}
	}
	for h := range n.Boxes[:n.Count] {
		b := &n.Boxes[h]
		look(b.StartBy)
		look(b.Deadline)
		look(b.Until)
		if b.Until > 0 {
			look(b.Until + r.limits.OfflineAfter.Milliseconds())
		}
	}
	if r.spec.fresh > 0 {
		look(n.SignedAt + (r.spec.fresh + time.Minute).Milliseconds())
	}
	if len(list) == 0 {
		return 0, 0
	}
	first = slices.Min(list)
	for _, t := range list {
		if t <= first+together {
			last = max(last, t)
		}
	}
	return first, last
}

// ages is what time alone does to a host.
func (r *runner) ages(n *node, h int) {
	b := &n.Boxes[h]
	was := *b
	defer r.stir(n, h, &was)
	if b.Phase == told && n.Now > b.StartBy && !r.spec.hosts[h].v1 {
		b.idleNow()
	}
	if b.Deadline > 0 && n.Now >= b.Deadline {
		b.undo(undoneUnheard)
	}
	if b.Until > 0 && n.Now > b.Until {
		b.Until, b.Woken = 0, false
	}
	if b.Lease > 0 && n.Now > b.Lease {
		b.Lease = 0
	}
}
