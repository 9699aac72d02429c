package rollout

import (
	"cmp"
	"slices"
	"time"

	"nixfleet/nixops/fleet"
	"nixfleet/pki"
	"nixfleet/roles/protocol"
)

// PlanOptions say what a plan takes for granted.
type PlanOptions struct {
	// Activation is how long each host takes from its offer to its confirm; one minute when zero.
	Activation time.Duration
	// AssumePresent plans as if every host were there, running nothing known: for releases looked at without a
	// control plane.
	AssumePresent bool
	// Horizon bounds the plan; 90 days when zero.
	Horizon time.Duration
}

// Plan drives a copy of the World through virtual time with the given release (nil: the current one): every
// present host takes its offers, succeeds and stays healthy, every other stays away, and CI keeps signing. The
// same gates decide as in earnest. The World itself does not change.
func (w *World) Plan(rel *fleet.Release, o PlanOptions, now time.Time) protocol.Plan {
	return w.Clone(now).Spend(rel, o, now)
}

// Spend plans as Plan does, and uses the World up: it is for a copy that is not used any more.
func (w *World) Spend(rel *fleet.Release, o PlanOptions, now time.Time) protocol.Plan {
	now = at(now)
	if rel == nil {
		rel = w.rel
	}
	v := protocol.Plan{
		At: pki.At(now), Moves: []protocol.PlanMove{}, Waves: []protocol.PlanWave{}, Channels: []protocol.PlanChannel{},
		Blocked: []protocol.PlanBlocked{},
	}
	if rel == nil {
		return v
	}
	p := &planner{
		w: w, now: now, view: &v, step: cmp.Or(o.Activation, time.Minute), next: map[*run]int{}, intents: map[string]string{},
	}
	for _, ch := range w.rollouts.channels {
		if ch.cur == nil {
			continue
		}
		p.intents[ch.name] = ch.cur.Intent
		if ch.cur.State != Planning {
			p.next[ch.cur] = ch.cur.Wave + 1
		}
	}
	horizon := now.Add(cmp.Or(o.Horizon, 90*24*time.Hour))
	w.changes.virtual = true
	w.accept(rel, now)
	p.take()
	for _, ch := range w.rollouts.channels {
		// CI keeps signing: what is fresh now stays fresh.
		if r := ch.cur; r != nil && !now.After(r.signedAt.Add(r.freshness+time.Minute)) {
			r.freshness = horizon.Sub(r.signedAt)
		}
	}
	p.board(o.AssumePresent)
	p.wait = horizon.Sub(now)
	p.drive(horizon)
	p.conclude()
	return v
}

type planner struct {
	w       *World
	now     time.Time
	view    *protocol.Plan
	step    time.Duration     // of one activation
	wait    time.Duration     // hosts count as present for it
	queue   []*actor          // hosts to ask
	flights []flight          // under way, by start
	next    map[*run]int      // wave that opens next
	intents map[string]string // of the channels, before
	// closures holds many that the view points to, so that they are not allocated one by one.
	closures []string
}

// actor is a present host as the plan takes it to be.
type actor struct {
	host    *host
	rank    int // by name
	running string
	flying  bool // has its target and has yet to confirm it
	queued  bool
}

// flight is a host between its target and its confirm.
type flight struct {
	actor *actor
	from  time.Time
	to    string
}

// board takes the present hosts in and asks each of them first.
func (p *planner) board(all bool) {
	hosts := sortedMap(p.w.hosts.byName)
	actors := make([]actor, 0, len(hosts))
	p.queue = make([]*actor, 0, len(hosts))
	p.flights = make([]flight, 0, len(hosts))
	for _, h := range hosts {
		if h.decl.named && (all || (h.contact.reported && !p.w.hosts.offline(h, p.now))) {
			actors = append(actors, actor{host: h, rank: len(actors), running: h.said.Closure})
		}
	}
	for i := range actors {
		x := &actors[i]
		x.host.actor = x
		p.ring(x)
		p.underWay(x)
	}
	slices.SortFunc(p.view.Moves, func(a, b protocol.PlanMove) int { return a.At.Compare(b.At.Time) })
}

// drive asks, lands and ticks, always the earliest first.
func (p *planner) drive(horizon time.Time) {
	var spare []*actor
	for p.now.Before(horizon) {
		for len(p.queue) > 0 {
			asked := p.queue
			p.queue = spare[:0]
			slices.SortFunc(asked, func(a, b *actor) int { return a.rank - b.rank })
			for _, x := range asked {
				x.queued = false
			}
			for _, x := range asked {
				p.ask(x)
			}
			p.take()
			spare = asked
		}
		next := p.w.tick(p.now)
		if p.take(); len(p.queue) > 0 {
			continue
		}
		if len(p.flights) > 0 {
			if land := p.flights[0].from.Add(p.step); next.IsZero() || !land.After(next) {
				p.now = land
				p.land()
				continue
			}
		}
		if next.IsZero() || next.After(horizon) {
			return // the hosts count as present until then
		}
		p.now = next
	}
}

// take reads what has changed: waves that opened, and hosts that would be woken.
func (p *planner) take() {
	c := &p.w.changes
	for _, e := range c.events {
		r := p.w.rollouts.runOf(e.Channel, e.Intent)
		if e.Kind != protocol.LogWaveOpened || r == nil || p.next[r] >= len(r.waves) {
			continue
		}
		i := p.next[r]
		p.next[r]++
		p.view.Waves = append(p.view.Waves, protocol.PlanWave{
			At: e.At, Channel: e.Channel, Wave: uint32(i),
			Hosts: uint32(len(r.waves[i].hosts)), SoakSecs: uint32(r.waves[i].soak / time.Second),
		})
	}
	p.w.changes.woken(func(h *host) {
		if h.actor != nil {
			p.ring(h.actor)
		}
	})
	*c = changes{events: c.events[:0], moved: c.moved, toWake: c.toWake[:0], promised: c.promised[:0], virtual: c.virtual}
}

// ring has a host asked.
func (p *planner) ring(x *actor) {
	if !x.queued {
		x.queued = true
		p.queue = append(p.queue, x)
	}
}

func (p *planner) ask(x *actor) {
	h := x.host
	d := p.w.checkin(h, &Observation{
		Closure: x.running, BootID: h.said.BootID, RebootPending: h.said.RebootPending, Held: h.said.Held,
		KnowsLease: true, Wait: p.wait,
	}, p.now)
	if t := d.Target; t != nil && !x.flying {
		p.start(x, protocol.PlanMove{
			At: pki.At(p.now), Host: h.name, Channel: t.Channel, Wave: uint32(t.Wave), From: p.known(x.running), To: t.Closure,
		})
	}
}

func (p *planner) start(x *actor, m protocol.PlanMove) {
	if len(p.view.Moves) == 0 {
		p.view.Moves = make([]protocol.PlanMove, 0, cap(p.flights))
	}
	p.view.Moves = append(p.view.Moves, m)
	p.flights = append(p.flights, flight{x, p.now, m.To})
	x.flying = true
}

// underWay takes a host that has its target already, and has yet to confirm it, for
// one that does so a whole activation from now.
func (p *planner) underWay(x *actor) {
	h := x.host
	l := h.lease
	if l == nil || l.deferred() || h.run == nil || l.Intent != h.run.Intent || h.said.Closure == h.closure {
		return
	}
	p.start(x, protocol.PlanMove{
		At: pki.At(l.DispatchedAt), Host: h.name, Channel: h.run.Channel, Wave: uint32(h.wave),
		From: p.known(h.said.Closure), To: h.closure,
	})
}

// land confirms the flights that have lasted long enough.
func (p *planner) land() {
	n := 0
	for ; n < len(p.flights) && !p.flights[n].from.Add(p.step).After(p.now); n++ {
		f := p.flights[n]
		f.actor.flying, f.actor.running = false, f.to
		if h := f.actor.host; h.run != nil {
			p.w.leases.confirm(h, h.run.RolloutID, f.to, p.now)
		}
		p.ring(f.actor)
	}
	p.flights = p.flights[n:]
	p.take()
}

// known is a closure for the wire, nil when it is not known.
func (p *planner) known(closure string) *string {
	if closure == "" {
		return nil
	}
	if len(p.closures) == cap(p.closures) {
		p.closures = make([]string, 0, max(16, len(p.flights)))
	}
	p.closures = append(p.closures, closure)
	return &p.closures[len(p.closures)-1]
}

func (p *planner) conclude() {
	for _, ch := range sortedMap(p.w.rollouts.channels) {
		r := ch.cur
		if r == nil {
			continue
		}
		x := protocol.PlanChannel{
			Channel: ch.name, RolloutID: r.RolloutID, State: string(r.State), Renewed: p.intents[ch.name] == r.Intent,
		}
		if r.State == RolloutConverged {
			at := pki.At(*r.TerminalAt)
			x.ConvergedAt = &at
		} else if why := p.w.rollouts.whole(r, p.now).blocked(promote); why != nil {
			reason := p.w.rollouts.whole(r, p.now).reason(why)
			x.Reason = &reason
		}
		p.view.Channels = append(p.view.Channels, x)
		for i := range r.waves {
			for _, h := range r.waves[i].hosts {
				if h.said.Closure == h.closure && h.contact.reported {
					continue
				}
				p.view.Blocked = append(p.view.Blocked, protocol.PlanBlocked{
					Host: h.name, Channel: ch.name, Wave: uint32(i), From: p.known(h.said.Closure), To: &h.closure,
					Reason: p.w.Decide(h.name, p.now).Reason,
				})
			}
		}
	}
	slices.SortFunc(p.view.Blocked, func(a, b protocol.PlanBlocked) int { return cmp.Compare(a.Host, b.Host) })
}
