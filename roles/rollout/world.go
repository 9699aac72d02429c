package rollout

import (
	"cmp"
	"maps"
	"slices"
	"time"

	"nixfleet/nixops/fleet"
)

// World is one fleet as the control plane sees it. See the package comment. Its parts know the World, since what one
// decides may concern the others; each has its own data, which only its own methods change.
type World struct {
	limits  Limits
	rel     *fleet.Release
	started time.Time
	// grace ends the time in which hosts that have not been heard of since the start are not called offline:
	// they may sit out the back-off that an outage of the control plane gave them.
	grace time.Time

	hosts    hosts
	rollouts rollouts
	leases   leases
	budgets  budgets
	timers   timers
	changes  changes
}

// hosts are the machines: what they said, and the state of each.
type hosts struct {
	w      *World
	byName map[string]*host
	all    []*host                       // of byName, in the order in which they came
	spare  []host                        // neighbours in memory of the host that came last
	stored map[string]map[string]*record // loaded rows by intent and host, until a release binds them
}

// rollouts are the channels with their rollouts, and what failed on them.
type rollouts struct {
	w           *World
	channels    map[string]*channel
	quarantines map[quarantineKey]*quarantine
	steps       []*run // a buffer of flush
}

// leases are the dispatches: given, started, prolonged, confirmed and ended.
type leases struct{ w *World }

// budgets are the disruption budgets of the release in force, and the slots that are held.
type budgets struct {
	w          *World
	bySelector map[string]*budget // by canonical selector
	// unheard is set until the end of the time in which, after an empty start, any host that has not
	// reported may hold a lease that the control plane does not remember. Zero otherwise.
	unheard time.Time
	born    time.Time // of the database
	clock   timer     // fires at the end of unheard
}

// empty makes a World without hosts.
func empty(l Limits, started time.Time) *World {
	w := &World{limits: l, started: started, grace: started.Add(l.Lease + l.ConfirmWindow)}
	w.hosts = hosts{w: w, byName: map[string]*host{}, stored: map[string]map[string]*record{}}
	w.rollouts = rollouts{w: w, channels: map[string]*channel{}, quarantines: map[quarantineKey]*quarantine{}}
	w.leases = leases{w: w}
	w.budgets = budgets{w: w, bySelector: map[string]*budget{}}
	return w
}

type quarantineKey struct{ channel, closure string }

type quarantine struct {
	Quarantine
	dirty bool
}

// New makes a World that goes on where State was taken. It decides nothing before the first Accept.
func New(s State, l Limits, now time.Time) *World {
	now = at(now)
	w := empty(l, now)
	// A database younger than the leases that its predecessor may have given is as good as empty.
	w.budgets.born = now
	for _, r := range s.Rollouts {
		if r.CreatedAt.Before(w.budgets.born) {
			w.budgets.born = r.CreatedAt
		}
	}
	if until := w.budgets.born.Add(l.Lease + l.ConfirmWindow); (s.Empty || len(s.Rollouts) > 0) && until.After(now) {
		w.budgets.unheard = until
		w.timers.schedule(&w.budgets.clock, w.budgets.unheard)
	}
	created := w.rollouts.load(s.Rollouts)
	for _, h := range s.Hosts {
		// A row older than its rollout belongs to an earlier round of the same intent.
		if h.Since.Before(created[h.Intent]) {
			continue
		}
		m := w.hosts.stored[h.Intent]
		if m == nil {
			m = map[string]*record{}
			w.hosts.stored[h.Intent] = m
		}
		m[h.Host] = &record{HostRecord: h}
	}
	for _, d := range slices.SortedFunc(slices.Values(s.Dispatches), func(a, b Dispatch) int {
		return cmp.Or(cmp.Compare(a.Host, b.Host), a.DispatchedAt.Compare(b.DispatchedAt))
	}) {
		w.leases.load(w.hosts.host(d.Host), &lease{Dispatch: d}, now)
	}
	for _, t := range s.Twins {
		if !t.Cleared {
			w.hosts.host(t.Host).contact.twins = &t
		}
	}
	for _, f := range s.Freezes {
		if !f.Thawed {
			w.rollouts.channel(f.Channel).freeze = &f
		}
	}
	for _, q := range s.Quarantines {
		if !q.Cleared {
			w.rollouts.quarantines[quarantineKey{q.Channel, q.Closure}] = &quarantine{Quarantine: q}
		}
	}
	return w
}

// load takes in the rollouts of before, and returns since when each intent is there.
func (rs *rollouts) load(stored []Rollout) map[string]time.Time {
	created := map[string]time.Time{}
	for _, r := range slices.SortedFunc(slices.Values(stored), func(a, b Rollout) int {
		return cmp.Or(a.CreatedAt.Compare(b.CreatedAt), cmp.Compare(a.Intent, b.Intent))
	}) {
		ch := rs.channel(r.Channel)
		r.IDs = slices.Clone(r.IDs)
		if broken(ruleHoldIsKept) {
			r.Hold = nil
		}
		if r.State == Halted && broken(ruleHaltIsKept) {
			r.State = Executing
		}
		created[r.Intent] = r.CreatedAt
		if r.State == RolloutSuperseded {
			ch.past = slices.Insert(ch.past, 0, newRun(r))
			continue
		}
		if ch.cur != nil {
			ch.past = slices.Insert(ch.past, 0, ch.cur)
		}
		ch.cur = newRun(r)
	}
	return created
}

// load takes in a dispatch made before; those of one host come in the order in which they were made.
func (ls *leases) load(h *host, l *lease, now time.Time) {
	switch l.State {
	case DispatchPending:
		h.lease = l
		h.slot.until = later(h.slot.until, l.SlotUntil)
	case DispatchDeferred:
		h.lease, h.slot.until = l, l.SlotUntil
	case DispatchConfirmed:
		h.lease, h.slot.until = nil, time.Time{}
		h.past.done, h.past.ended = l, nil
	default:
		h.lease, h.past.ended = nil, l
		h.slot.until = later(h.slot.until, l.SlotUntil)
	}
	if !h.slot.until.After(now) {
		h.slot.until = time.Time{}
	}
	ls.w.hosts.arm(h, now)
}

func newRun(r Rollout) *run {
	x := &run{Rollout: r}
	x.timer.run = x
	return x
}

func (rs *rollouts) channel(name string) *channel {
	ch := rs.channels[name]
	if ch == nil {
		ch = &channel{name: name}
		rs.channels[name] = ch
	}
	return ch
}

func (hs *hosts) host(name string) *host {
	h := hs.byName[name]
	if h == nil {
		if len(hs.spare) == 0 {
			hs.spare = make([]host, 16)
		}
		h, hs.spare = &hs.spare[0], hs.spare[1:]
		h.name, h.timer.host = name, h
		hs.byName[name] = h
		hs.all = append(hs.all, h)
	}
	return h
}

// State exports what New needs to go on from here.
func (w *World) State() State {
	s := State{}
	for _, ch := range sortedMap(w.rollouts.channels) {
		if ch.freeze != nil {
			s.Freezes = append(s.Freezes, *ch.freeze)
		}
		if ch.cur != nil {
			s.Rollouts = append(s.Rollouts, ch.cur.export())
		}
		for _, r := range ch.past {
			s.Rollouts = append(s.Rollouts, r.export())
		}
	}
	for _, h := range sortedMap(w.hosts.byName) {
		h.export(&s)
	}
	for intent := range sortedKeys(w.hosts.stored) {
		for _, r := range sortedMap(w.hosts.stored[intent]) {
			s.Hosts = append(s.Hosts, r.export())
		}
	}
	for _, k := range slices.SortedFunc(maps.Keys(w.rollouts.quarantines), compareQuarantines) {
		s.Quarantines = append(s.Quarantines, w.rollouts.quarantines[k].Quarantine)
	}
	return s
}

// export adds what is stored of a host.
func (h *host) export(s *State) {
	for _, r := range []*record{h.rec, h.past.prior} {
		if r != nil {
			s.Hosts = append(s.Hosts, r.export())
		}
	}
	if h.past.done != nil {
		s.Dispatches = append(s.Dispatches, h.past.done.Dispatch)
	}
	if h.lease != nil {
		s.Dispatches = append(s.Dispatches, h.lease.Dispatch)
	}
	if h.past.ended != nil && !h.slot.until.IsZero() {
		s.Dispatches = append(s.Dispatches, h.past.ended.Dispatch)
	}
	if t := h.contact.twins; t != nil {
		s.Twins = append(s.Twins, *t)
	}
}

func compareQuarantines(a, b quarantineKey) int {
	return cmp.Or(cmp.Compare(a.channel, b.channel), cmp.Compare(a.closure, b.closure))
}

func (r *run) export() Rollout {
	x := r.Rollout
	x.IDs = slices.Clone(x.IDs)
	return x
}

func (r *record) export() HostRecord {
	x := r.HostRecord
	x.Failures = slices.Clone(x.Failures)
	return x
}

func sortedKeys[V any](m map[string]V) func(func(string) bool) {
	return slices.Values(slices.Sorted(maps.Keys(m)))
}

func sortedMap[V any](m map[string]V) []V {
	keys := slices.Sorted(maps.Keys(m))
	out := make([]V, 0, len(keys))
	for _, k := range keys {
		out = append(out, m[k])
	}
	return out
}
