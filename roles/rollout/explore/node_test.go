package explore

import (
	"reflect"
	"slices"
	"time"

	"nixfleet/roles/protocol"
	"nixfleet/roles/rollout"
)

// A node is one state: the control plane's world, the hosts as they are, and what was promised so far. It is
// frozen, thawed and printed by its shape; times are Unix milliseconds, zero is never.
type node struct {
	Now   int64
	W     *rollout.World
	Boxes [maxHosts]box
	Count int8

	Release  int8     // index in spec.contents
	Signed   [4]uint8 // signings so far of each content
	Known    [4]uint8 // the control plane knows the ids of its rollout from this signing on
	SignedAt int64
	Opened   [4]int64 // the first signing of each content

	Faults, Acts int8

	Lines   [maxChannels]line
	Failed  [maxChannels][4]bool // closures that truly failed on some host of the channel
	Emptied int64                // when the database was last lost
	Quiet   bool                 // nothing has happened at this moment but a tick
}

// line is what the control plane said about the newest rollout of a channel since its database was last lost.
type line struct {
	Halted    int8 // one of none, halted, recalled, cancelled
	Paused    bool
	Opened    int8 // waves opened so far
	Converged bool
	Bad       [4]bool // quarantined closures
}

const (
	none int8 = iota
	halted
	recalled
	cancelled
)

// box is what one host is.
type box struct {
	Running, Before int8 // closures
	Phase           int8
	Closure         int8  // of its target
	ID              uint8 // of the rollout that it was told or confirms
	Of              dispatched
	StartBy         int64 // it begins by then or not at all; v1 agents begin at once
	Deadline        int64 // of its activation
	Boot            int8
	Quarantined     int8 // the closure that it blames; 0: none
	Confirmed       uint8
	ConfirmedAt     int64 // by its own clock
	ConfirmedOf     dispatched
	Recalled        int8  // content for which it honoured a rollback
	Fetch           uint8 // rollout id whose fetch failed last
	FetchOf         dispatched
	Sick, SaidSick  bool  // its probe fails; and it said so last
	Said            int8  // the closure that it said last that it runs
	Heard           int64 // when it was heard of last
	Proven          int64 // it runs its closure, proven, since then
	Out             [6]message
	Outs            int8
	Late            message // a request that is still on its way
	LateRunning     int8
	LatePhase       int8

	Until   int64 // its held request ends then
	Woken   bool  // its held request is being answered
	Lease   int64 // a lease that the control plane remembers lets it begin until then
	LeaseOf int8  // and is for this content
	Retried bool  // an operator gave it one more attempt
	Acked   [4]bool
}

// dispatched names the dispatch that something is about; an agent of v1 does not know it. When it was made says nothing
// but whether it is the newest one.
type dispatched struct {
	At      int64
	Earlier bool // another one was made since
}

func (d dispatched) name() string {
	if d.At == 0 {
		return ""
	}
	return (&rollout.Dispatch{DispatchedAt: time.UnixMilli(d.At)}).Name()
}

// follow notes that the control plane has made another dispatch for the host.
func (b *box) follow() {
	for _, d := range []*dispatched{&b.Of, &b.FetchOf, &b.ConfirmedOf, &b.Late.Of} {
		d.Earlier = d.At > 0
	}
	for i := range b.Out {
		b.Out[i].Of.Earlier = b.Out[i].Of.At > 0
	}
}

// Phases of a host.
const (
	idle int8 = iota
	told
	switching // its activation began
	checking  // it runs its target, and that is not proven
	committed // it is proven and waits for the answer to its confirm
	staged    // for the next boot
)

var phaseNames = []string{"idle", "fetching", "activating", "checking", "committing", "staged"}

type message struct {
	Kind    int8
	ID      uint8
	Closure int8
	Of      dispatched
	Taken   bool // the control plane acted on it, and will know it again
}

// Kinds of messages.
const (
	noMessage int8 = iota
	started
	activationFailed
	undone
	undoneLocal
	undoneUnheard
	undoneRefused
	undonePower
	undoneRecalled
	quarantined
	deferred
	realiseFailed
	nonCompliant
	lateCheckin
	lateConfirm
)

var reports = map[int8]rollout.Report{
	started:          {Event: protocol.EventActivationStarted},
	activationFailed: {Event: protocol.EventActivationFailed, Phase: protocol.CauseHealthGate.With("a unit failed")},
	undone:           {Event: protocol.EventRollbackTriggered, Reason: protocol.CauseHealthGate.With("a unit failed")},
	undoneLocal:      {Event: protocol.EventRollbackTriggered, Reason: string(protocol.CauseLockHeld)},
	undoneUnheard:    {Event: protocol.EventRollbackTriggered, Reason: string(protocol.CauseUnreachable)},
	undoneRefused:    {Event: protocol.EventRollbackTriggered, Reason: string(protocol.CauseConfirmRefused)},
	undonePower:      {Event: protocol.EventRollbackTriggered, Reason: protocol.CausePreflight.With("power was lost")},
	undoneRecalled:   {Event: protocol.EventRollbackTriggered, Reason: protocol.CauseRecalled.With("another host failed")},
	quarantined:      {Event: protocol.EventClosureQuarantined, Reason: protocol.CauseHealthGate.With("a unit failed")},
	deferred:         {Event: protocol.EventActivationDeferred, Reason: "init"},
	realiseFailed:    {Event: protocol.EventRealiseFailed, Reason: "a path is missing"},
	nonCompliant:     {Event: protocol.EventComplianceFailure, Reason: "disk-encryption"},
}

var boxShape = func() *shape {
	c := newShapes()
	c.packs = c.packs[1:2]
	t := c.of(reflect.TypeFor[box]())
	return t
}()

func (b *box) say(kind int8, id uint8, closure int8) {
	if int(b.Outs) == len(b.Out) {
		copy(b.Out[:], b.Out[1:])
		b.Outs--
	}
	b.Out[b.Outs] = message{Kind: kind, ID: id, Closure: closure, Of: b.Of}
	b.Outs++
}

func (b *box) said() {
	copy(b.Out[:], b.Out[1:b.Outs])
	b.Outs--
	b.Out[b.Outs] = message{}
}

// idleNow ends whatever it was at.
func (b *box) idleNow() {
	b.Phase, b.Closure, b.ID, b.Of, b.StartBy, b.Deadline = idle, 0, 0, dispatched{}, 0, 0
}

// undo takes the host back to what it ran before, and reports it.
func (b *box) undo(kind int8) {
	id, closure, of := b.ID, b.Closure, b.Of
	b.Running, b.Proven = b.Before, 1
	b.idleNow()
	b.Of = of
	defer func() { b.Of = dispatched{} }()
	if kind == undone {
		b.say(activationFailed, id, 0)
	}
	b.say(kind, id, 0)
	if kind == undone {
		b.Quarantined = closure
		b.say(quarantined, id, closure)
	}
}

func (n *node) content(s *spec) int { return s.contents[n.Release] }

// id is the rollout id in force.
func (n *node) id(s *spec) uint8 {
	c := n.content(s)
	return uint8(c*8) + n.Signed[c] - 1
}

func (n *node) time() time.Time { return time.UnixMilli(n.Now).UTC() }

// ids: the control plane takes this id for one of the rollout that is in force.
func (n *node) current(s *spec, id uint8) bool {
	c := n.content(s)
	return int(id/8) == c && id%8 >= n.Known[c]
}

func (n *node) observation(s *spec, h int) rollout.Observation {
	b := &n.Boxes[h]
	boot := []string{"boot-0", "boot-1"}[b.Boot]
	o := rollout.Observation{Closure: closureNames[b.Running], BootID: boot, KnowsLease: !s.hosts[h].v1}
	if o.KnowsLease {
		p := phaseOf[b.Phase]
		if b.Phase != idle {
			p = &protocol.Phase{
				Name: phaseNames[b.Phase], Intent: intentOf(s.hosts[h].channel, int(b.ID/8)), ClosureHash: closureNames[b.Closure],
				Dispatch: b.Of.name(),
			}
		}
		o.Phase = p
	}
	if b.Quarantined > 0 && !s.hosts[h].v1 {
		o.Held = protocol.HeldQuarantined(closureNames[b.Quarantined])
	}
	if b.Fetch > 0 {
		o.Fetch.Result, o.Fetch.Rollout = protocol.FetchFailed, rolloutID(s.hosts[h].channel, b.Fetch)
		o.Fetch.Dispatch = b.FetchOf.name()
	}
	if b.Confirmed > 0 && b.Running == int8(b.Confirmed/8) && b.ConfirmedAt <= n.Now+s.skew.Milliseconds() {
		t := time.UnixMilli(b.ConfirmedAt).UTC()
		o.LastConfirmedAt = &t
		// The control plane verifies it for the release in force.
		o.Attested = int(b.Running) == n.content(s) && n.current(s, b.Confirmed)
	}
	if s.probes {
		o.ProbeMode = "enforce"
		o.Probes = probePasses
		if b.Sick {
			o.Probes = probeFails
		}
	}
	return o
}

var (
	phaseOf     = []*protocol.Phase{{Name: "idle"}, nil, nil, nil, nil, nil}
	probePasses = []protocol.ProbeResult{{Name: "web", Kind: "unit", Status: "pass"}}
	probeFails  = []protocol.ProbeResult{{Name: "web", Kind: "unit", Status: "fail"}}
)

// start is the first state: every host runs what ran before, and a release comes.
func (r *runner) start() *node {
	n := &node{Now: began, Count: int8(len(r.spec.hosts)), Quiet: true}
	n.Faults, n.Acts = int8(r.spec.faults), int8(r.spec.acts)
	n.W = rollout.New(rollout.State{}, r.limits, n.time())
	for h := range r.spec.hosts {
		n.Boxes[h].Proven = 1
	}
	r.publish(n, 0)
	return n
}

// publish signs a content anew and has the control plane accept it.
func (r *runner) publish(n *node, release int8) {
	n.Release = release
	c := n.content(r.spec)
	if n.Signed[c] == 0 || release > 0 && r.spec.contents[release-1] != c && n.SignedAt != n.Now {
		// Another intent was wanted in between, so that it opens again.
		n.Opened[c] = n.Now
	}
	if n.Signed[c] > 0 && release > 0 && r.spec.contents[release-1] != c {
		n.Known[c] = n.Signed[c]
	}
	n.Signed[c]++
	n.SignedAt = n.Now
	r.took(n, n.W.Accept(r.inForce(n), n.time()))
}

func (r *runner) inForce(n *node) (rel *releaseInForce) {
	c := n.content(r.spec)
	return r.releases.get(signing{content: c, nth: n.Signed[c] - 1, at: n.SignedAt, opened: n.Opened[c]})
}

// inFlight are the hosts whose activation runs, whatever the control plane thinks.
func (n *node) inFlight() (list []int) {
	for h := range n.Boxes[:n.Count] {
		if p := n.Boxes[h].Phase; p == switching || p == checking {
			list = append(list, h)
		}
	}
	return list
}

func (n *node) members(s *spec, channel int) (list []int) {
	for h, p := range s.hosts {
		if p.channel == channel {
			list = append(list, h)
		}
	}
	return list
}

func (s *spec) can(fault rune) bool { return slices.Contains([]rune(s.may), fault) }

func (s *spec) person(act rune) bool { return slices.Contains([]rune(s.people), act) }
