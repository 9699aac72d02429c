package rollout

import (
	"cmp"
	"slices"
	"time"

	"nixfleet/nixops/fleet"
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

// PlanView is what would happen if a release were accepted now and everything went well.
type PlanView struct {
	At       time.Time
	Moves    []PlanMove    // in time order
	Waves    []PlanWave    // in time order
	Channels []PlanChannel // sorted
	Blocked  []PlanBlocked // hosts that would not get their target, sorted
}

// PlanMove is one host that gets its target. At is the earliest start; one before
// the plan's own time is of a host that is under way already.
type PlanMove struct {
	At            time.Time
	Host, Channel string
	Wave          int
	From, To      string // closures; From is "" when unknown
}

// PlanWave is one wave and when it opens at the earliest.
type PlanWave struct {
	At      time.Time
	Channel string
	Wave    int
	Hosts   int
	Soak    time.Duration
}

// PlanChannel is how the rollout of a channel ends.
type PlanChannel struct {
	Channel, RolloutID string
	Renewed            bool // the intent is the one that the channel has already
	State              RolloutState
	ConvergedAt        *time.Time
	Reason             Reason // why it does not go on
}

// PlanBlocked is one host that keeps its closure, and why.
type PlanBlocked struct {
	Host, Channel, From, To string
	Wave                    int
	Reason                  Reason
}

// Plan drives a copy of the World through virtual time with the given release (nil: the current one): every
// present host takes its offers, succeeds and stays healthy, every other stays away, and CI keeps signing. The
// same gates decide as in earnest. The World itself does not change.
func (w *World) Plan(rel *fleet.Release, o PlanOptions, now time.Time) PlanView {
	now = at(now)
	if rel == nil {
		rel = w.rel
	}
	v := PlanView{At: now}
	if rel == nil {
		return v
	}
	p := &planner{
		w: w.Clone(now), now: now, view: &v, step: cmp.Or(o.Activation, time.Minute),
		running: map[string]string{}, flying: map[string]bool{}, next: map[*run]int{},
	}
	for _, ch := range p.w.channels {
		if ch.cur != nil && ch.cur.State != Planning {
			p.next[ch.cur] = ch.cur.Wave + 1
		}
	}
	horizon := now.Add(cmp.Or(o.Horizon, 90*24*time.Hour))
	p.take(p.w.Accept(rel, now))
	for _, ch := range p.w.channels {
		// CI keeps signing: what is fresh now stays fresh.
		if r := ch.cur; r != nil && !now.After(r.signedAt.Add(r.freshness+time.Minute)) {
			r.freshness = horizon.Sub(r.signedAt)
		}
	}
	for _, h := range sortedMap(p.w.hosts) {
		if h.declared && (o.AssumePresent || (h.reported && !p.w.offline(h, now))) {
			p.running[h.name] = h.running
			p.queue = append(p.queue, h.name)
			p.underWay(h)
		}
	}
	slices.SortFunc(v.Moves, func(a, b PlanMove) int { return a.At.Compare(b.At) })
	p.wait = horizon.Sub(now)
	p.drive(horizon)
	p.conclude(w)
	return v
}

type planner struct {
	w       *World
	now     time.Time
	view    *PlanView
	step    time.Duration // of one activation
	wait    time.Duration // hosts count as present for it
	running map[string]string
	queue   []string   // hosts to ask
	flights []PlanMove // under way, by start
	flying  map[string]bool
	next    map[*run]int // wave that opens next
}

// drive asks, lands and ticks, always the earliest first.
func (p *planner) drive(horizon time.Time) {
	for p.now.Before(horizon) {
		for len(p.queue) > 0 {
			asked := slices.Compact(slices.Sorted(slices.Values(p.queue)))
			p.queue = nil
			for _, h := range asked {
				p.ask(h)
			}
		}
		c, next := p.w.Tick(p.now)
		if p.take(c); len(p.queue) > 0 {
			continue
		}
		if len(p.flights) > 0 {
			if land := p.flights[0].At.Add(p.step); next.IsZero() || !land.After(next) {
				p.now = land
				p.land()
				continue
			}
		}
		if next.IsZero() {
			return
		}
		p.now = next
	}
}

func (p *planner) take(c Change) {
	for _, e := range c.Events {
		r := p.w.runOf(e.Channel, e.Intent)
		if e.Kind != EventWaveOpened || r == nil || p.next[r] >= len(r.waves) {
			continue
		}
		i := p.next[r]
		p.next[r]++
		p.view.Waves = append(p.view.Waves, PlanWave{At: e.At, Channel: e.Channel, Wave: i, Hosts: len(r.waves[i].hosts), Soak: r.waves[i].soak})
	}
	for _, h := range c.Wake {
		if _, ok := p.running[h]; ok {
			p.queue = append(p.queue, h)
		}
	}
}

func (p *planner) observation(h string) Observation {
	return Observation{Closure: p.running[h], KnowsLease: true, Wait: p.wait, Held: p.w.hosts[h].held}
}

func (p *planner) ask(h string) {
	d, c := p.w.Checkin(h, p.observation(h), p.now)
	p.take(c)
	if t := d.Target; t != nil && !p.flying[h] {
		m := PlanMove{At: p.now, Host: h, Channel: t.Channel, Wave: t.Wave, From: p.running[h], To: t.Closure}
		p.view.Moves = append(p.view.Moves, m)
		p.flights = append(p.flights, m)
		p.flying[h] = true
	}
}

// underWay takes a host that has its target already, and has yet to confirm it, for
// one that does so a whole activation from now.
func (p *planner) underWay(h *host) {
	l := h.lease
	if l == nil || l.deferred() || h.run == nil || l.Intent != h.run.Intent || h.running == h.closure {
		return
	}
	m := PlanMove{At: l.DispatchedAt, Host: h.name, Channel: h.run.Channel, Wave: h.wave, From: h.running, To: h.closure}
	p.view.Moves = append(p.view.Moves, m)
	m.At = p.now
	p.flights = append(p.flights, m)
	p.flying[h.name] = true
}

// land confirms the flights that have lasted long enough.
func (p *planner) land() {
	for len(p.flights) > 0 && !p.flights[0].At.Add(p.step).After(p.now) {
		m := p.flights[0]
		p.flights = p.flights[1:]
		delete(p.flying, m.Host)
		p.running[m.Host] = m.To
		if h := p.w.hosts[m.Host]; h.run != nil {
			_, c := p.w.Confirm(m.Host, h.run.RolloutID, m.To, p.now)
			p.take(c)
		}
		p.queue = append(p.queue, m.Host)
	}
}

func (p *planner) conclude(before *World) {
	for _, ch := range sortedMap(p.w.channels) {
		r := ch.cur
		if r == nil {
			continue
		}
		x := PlanChannel{Channel: ch.name, RolloutID: r.RolloutID, State: r.State}
		if old := before.channels[ch.name]; old != nil && old.cur != nil {
			x.Renewed = old.cur.Intent == r.Intent
		}
		if r.State == RolloutConverged {
			x.ConvergedAt = r.TerminalAt
		} else if b := p.w.blocked(promote, subject{run: r}, p.now); b != nil {
			x.Reason = *b
		}
		p.view.Channels = append(p.view.Channels, x)
		for i := range r.waves {
			for _, h := range r.waves[i].hosts {
				if h.running == h.closure && h.reported {
					continue
				}
				p.view.Blocked = append(p.view.Blocked, PlanBlocked{
					Host: h.name, Channel: ch.name, From: h.running, To: h.closure, Wave: i, Reason: p.w.decide(h, p.now).Reason,
				})
			}
		}
	}
	slices.SortFunc(p.view.Blocked, func(a, b PlanBlocked) int { return cmp.Compare(a.Host, b.Host) })
}

// Clone copies a World with what it has heard.
func (w *World) Clone(now time.Time) *World {
	c := New(w.State(), w.limits, now)
	c.rel, c.started, c.grace, c.born, c.unheard = w.rel, w.started, w.grace, w.born, w.unheard
	if !w.unheard.IsZero() {
		c.schedule(&c.clock, w.unheard)
	}
	for name, h := range w.hosts {
		x := c.host(name)
		x.seen, x.until, x.reported, x.running, x.bootID, x.stagedBoot = h.seen, h.until, h.reported, h.running, h.bootID, h.stagedBoot
		x.health, x.healthAt, x.fetchResult, x.fetchID = h.health, h.healthAt, h.fetchResult, h.fetchID
		x.held, x.attested, x.knowsLease, x.rebootDue = h.held, h.attested, h.knowsLease, h.rebootDue
	}
	return c
}
