package rollout

import (
	"cmp"
	"maps"
	"slices"
	"time"

	"nixfleet/nixops/fleet"
	"nixfleet/roles/protocol"
)

// World is one fleet as the control plane sees it. See the package comment.
type World struct {
	limits  Limits
	rel     *fleet.Release
	started time.Time
	// grace ends the time in which hosts that have not been heard of since the start are not called offline:
	// they may sit out the back-off that an outage of the control plane gave them.
	grace time.Time
	// unheard is set until the end of the time in which, after an empty start, any host that has not
	// reported may hold a lease that nobody remembers. Zero otherwise.
	unheard time.Time
	born    time.Time // of the database
	clock   timer     // fires at the end of unheard

	hosts       map[string]*host
	spare       []host // neighbours in memory of the host that came last
	channels    map[string]*channel
	budgets     map[string]*budget // by canonical selector
	quarantines map[quarantineKey]*quarantine
	stored      map[string]map[string]*record // loaded rows by intent and host, until a release binds them
	timers      timerHeap

	pending changes // what the running call has changed so far
	steps   []*run  // a buffer of flush
	virtual bool    // it is a plan's: nobody stores or reads what it changes
}

type quarantineKey struct{ channel, closure string }

type quarantine struct {
	Quarantine
	dirty bool
}

// channel holds the newest rollout of a channel (it alone may dispatch) and those it superseded.
type channel struct {
	name string
	cur  *run
	past []*run // newest first; leases of theirs may still be open
	// after are the channels that come before this one, with the reasons of the edges.
	after []channelEdge
}

type channelEdge struct {
	before *channel
	reason string
}

// run is a Rollout with what its release says and what is counted about it.
type run struct {
	Rollout
	timer
	dirty bool
	moved bool // is in World.pending.moved

	rel            *fleet.ChannelRelease // nil until a release binds it, and for superseded ones after a restart
	signedAt       time.Time
	freshness      time.Duration
	revert         bool // rollback-and-halt
	complianceMode string
	confirmWindow  time.Duration
	lease          time.Duration
	waves          []wave
	// touched counts, by state, the hosts that got a target in this rollout.
	touched [protocol.HostStateCount]int
}

type wave struct {
	soak         time.Duration
	hosts        []*host // sorted by name
	counts       [protocol.HostStateCount]int
	silent       int // touched hosts that are Skipped
	failing      int // Healthy and Soaked hosts whose probes fail
	noncompliant int // hosts with outstanding compliance failures
}

// host is one machine. The strings are shared with the release.
type host struct {
	timer
	name     string
	declared bool
	pinned   string // "commit until time" for people, "" when not pinned
	reboots  string // when it reboots by itself, for people; "" when it does not
	channel  *channel
	run      *run // newest rollout of its channel, when that names the host
	wave     int
	closure  string // target
	after    []hostEdge
	before   []*host   // hosts held by an edge that this one opens
	budgets  []*budget // that count this host

	rec   *record // within run; nil: Queued and never touched
	prior *record // within the superseded rollout of lease, while that is open
	lease *lease  // open dispatch, of run or of a superseded one
	done  *lease  // last confirmed dispatch
	ended *lease  // unconfirmed and over; its slot may still be held

	slotUntil time.Time // holds its budgets' slots until then; zero: holds none
	slots     []*budget
	waitsFor  *budget // budget queue it stands in

	// The rest is what the host said and when; never stored.
	seen       time.Time // last contact
	until      time.Time // it counts as present until then (seen plus the wait of a held request)
	reported   bool
	said       Observation // its last check-in; what a confirm or a report changes of it is changed here
	stagedBoot string      // boot id when its staged target was first seen
	health     health
	healthAt   time.Time // last time health was observed on the target; zero: not yet in this state
	attested   time.Time // verified confirm time of this intent; zero: none

	woken bool   // is in World.pending.wake
	actor *actor // what a plan takes it for; nil outside of one
}

type hostEdge struct {
	first  *host
	reason string
}

type record struct {
	HostRecord
	dirty bool
}

// touched: the host got a target (or attests that it took one) within this rollout.
func (r *record) touched() bool { return r != nil && (r.Attempt > 0 || r.Previous != "") }

type lease struct {
	Dispatch
	dirty bool
	retry bool // an operator asked for it, after a failure
}

func (l *lease) pending() bool  { return l != nil && l.State == DispatchPending }
func (l *lease) deferred() bool { return l != nil && l.State == DispatchDeferred }

// New makes a World that goes on where State was taken. It decides nothing before the first Accept.
func New(s State, l Limits, now time.Time) *World {
	now = at(now)
	w := &World{
		limits:      l,
		started:     now,
		grace:       now.Add(l.Lease + l.ConfirmWindow),
		hosts:       map[string]*host{},
		channels:    map[string]*channel{},
		budgets:     map[string]*budget{},
		quarantines: map[quarantineKey]*quarantine{},
		stored:      map[string]map[string]*record{},
	}
	// A database younger than the leases that its predecessor may have given is as good as empty.
	w.born = now
	for _, r := range s.Rollouts {
		if r.CreatedAt.Before(w.born) {
			w.born = r.CreatedAt
		}
	}
	if until := w.born.Add(l.Lease + l.ConfirmWindow); (s.Empty || len(s.Rollouts) > 0) && until.After(now) {
		w.unheard = until
		w.schedule(&w.clock, w.unheard)
	}
	created := map[string]time.Time{}
	for _, r := range slices.SortedFunc(slices.Values(s.Rollouts), func(a, b Rollout) int {
		return cmp.Or(a.CreatedAt.Compare(b.CreatedAt), cmp.Compare(a.Intent, b.Intent))
	}) {
		ch := w.channel(r.Channel)
		r.IDs = slices.Clone(r.IDs)
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
	for _, h := range s.Hosts {
		// A row older than its rollout belongs to an earlier round of the same intent.
		if h.Since.Before(created[h.Intent]) {
			continue
		}
		m := w.stored[h.Intent]
		if m == nil {
			m = map[string]*record{}
			w.stored[h.Intent] = m
		}
		m[h.Host] = &record{HostRecord: h}
	}
	for _, d := range slices.SortedFunc(slices.Values(s.Dispatches), func(a, b Dispatch) int {
		return cmp.Or(cmp.Compare(a.Host, b.Host), a.DispatchedAt.Compare(b.DispatchedAt))
	}) {
		w.load(w.host(d.Host), &lease{Dispatch: d}, now)
	}
	for _, q := range s.Quarantines {
		if !q.Cleared {
			w.quarantines[quarantineKey{q.Channel, q.Closure}] = &quarantine{Quarantine: q}
		}
	}
	return w
}

// load takes in a dispatch made before; those of one host come in the order in which they were made.
func (w *World) load(h *host, l *lease, now time.Time) {
	switch l.State {
	case DispatchPending:
		h.lease = l
		h.slotUntil = later(h.slotUntil, l.SlotUntil)
	case DispatchDeferred:
		h.lease, h.slotUntil = l, l.SlotUntil
	case DispatchConfirmed:
		h.lease, h.done, h.ended, h.slotUntil = nil, l, nil, time.Time{}
	default:
		h.lease, h.ended = nil, l
		h.slotUntil = later(h.slotUntil, l.SlotUntil)
	}
	if !h.slotUntil.After(now) {
		h.slotUntil = time.Time{}
	}
	w.arm(h, now)
}

func newRun(r Rollout) *run {
	x := &run{Rollout: r}
	x.timer.run = x
	return x
}

func (w *World) channel(name string) *channel {
	ch := w.channels[name]
	if ch == nil {
		ch = &channel{name: name}
		w.channels[name] = ch
	}
	return ch
}

func (w *World) host(name string) *host {
	h := w.hosts[name]
	if h == nil {
		if len(w.spare) == 0 {
			w.spare = make([]host, 16)
		}
		h, w.spare = &w.spare[0], w.spare[1:]
		h.name, h.timer.host = name, h
		w.hosts[name] = h
	}
	return h
}

// at is the resolution of everything stored: milliseconds, UTC.
func at(t time.Time) time.Time { return t.UTC().Truncate(time.Millisecond) }

func later(a, b time.Time) time.Time {
	if a.After(b) {
		return a
	}
	return b
}

// State exports what New needs to go on from here.
func (w *World) State() State {
	s := State{}
	for _, ch := range sortedMap(w.channels) {
		if ch.cur != nil {
			s.Rollouts = append(s.Rollouts, ch.cur.export())
		}
		for _, r := range ch.past {
			s.Rollouts = append(s.Rollouts, r.export())
		}
	}
	for _, h := range sortedMap(w.hosts) {
		for _, r := range []*record{h.rec, h.prior} {
			if r != nil {
				s.Hosts = append(s.Hosts, r.export())
			}
		}
		if h.done != nil {
			s.Dispatches = append(s.Dispatches, h.done.Dispatch)
		}
		if h.lease != nil {
			s.Dispatches = append(s.Dispatches, h.lease.Dispatch)
		}
		if h.ended != nil && !h.slotUntil.IsZero() {
			s.Dispatches = append(s.Dispatches, h.ended.Dispatch)
		}
	}
	for intent := range sortedKeys(w.stored) {
		for _, r := range sortedMap(w.stored[intent]) {
			s.Hosts = append(s.Hosts, r.export())
		}
	}
	for _, k := range slices.SortedFunc(maps.Keys(w.quarantines), compareQuarantines) {
		s.Quarantines = append(s.Quarantines, w.quarantines[k].Quarantine)
	}
	return s
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
