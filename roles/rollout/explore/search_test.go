package explore

import (
	"fmt"
	"slices"
	"time"

	"nixfleet/roles/rollout"
)

// A search goes through the states of one fleet, breadth first. What it keeps of a state is its fingerprint, where
// it came from and, until its own turn, the state itself, frozen.
type search struct {
	*runner
	limit   int // of states; it stops before the next one
	freezer *freezer
	printer *printer

	prints  table
	parents []uint32
	by      []move
	next    []uint32 // where a state goes when all faults stop; itself when everybody is settled or explained
	depth   int
	tried   int // moves made
	walks   int // from states that seemed to lead nowhere
	full    bool

	frontier queue
	found    *finding
	list     []move
	buf      []byte
	everyRow int // rows are compared at every so many states
}

const nowhere = ^uint32(0)

// finding is a violation and the state in which it shows.
type finding struct {
	what  string
	state uint32
	last  move // from there; 0 with fine: in the state itself
	fine  bool
	depth int
}

func newSearch(s *spec, limit int) *search {
	r := newRunner(s)
	x := &search{runner: r, limit: limit, freezer: newFreezer(r.limits), everyRow: 16}
	x.printer = newPrinter(x.freezer.root, s)
	x.prints.grow(1 << 12)
	return x
}

// run explores until everything was seen, the limit is reached or something is broken.
func (x *search) run() *finding {
	n := x.start()
	if x.broken != "" {
		return &finding{what: x.broken, fine: true}
	}
	x.add(x.printer.print(n), nowhere, 0)
	x.buf = x.freezer.freeze(x.buf[:0], n)
	x.frontier.push(x.buf)
	layerEnd := uint32(1)
	for i := uint32(0); int(i) < len(x.by); i++ {
		if i == layerEnd {
			layerEnd = uint32(len(x.by))
			x.depth++
		}
		if len(x.by) >= x.limit {
			x.full = true
			return nil
		}
		if x.expand(i, x.frontier.pop()); x.found != nil {
			x.found.depth = len(x.path(x.found.state))
			if !x.found.fine {
				x.found.depth++
			}
			return x.found
		}
	}
	return x.everybodyArrives()
}

func (x *search) add(print uint64, parent uint32, m move) uint32 {
	i := uint32(len(x.by))
	x.prints.put(print, i)
	x.parents, x.by, x.next = append(x.parents, parent), append(x.by, m), append(x.next, nowhere)
	return i
}

func (x *search) expand(i uint32, frozen []byte) {
	n := x.freezer.thaw(frozen)
	x.broken = ""
	settled := x.look(n)
	if x.broken != "" {
		x.found = &finding{what: x.broken, state: i, fine: true}
		return
	}
	if settled {
		x.next[i] = i
	}
	x.list = x.moves(n, x.list[:0])
	var before *rows
	if x.rows = nil; int(i)%x.everyRow == 0 {
		before = rowsOf(n.W.State())
	}
	for k, m := range x.list {
		if k > 0 {
			n = x.freezer.thaw(frozen)
		}
		if before != nil {
			x.rows = before.clone()
		}
		x.tried++
		ok := x.apply(n, m)
		if x.broken != "" {
			x.found = &finding{what: x.broken, state: i, last: m}
			return
		}
		if !ok {
			continue
		}
		if x.rows != nil && m.kind() != mWipe {
			if x.compareRows(n); x.broken != "" {
				x.found = &finding{what: x.broken, state: i, last: m}
				return
			}
		}
		print := x.printer.print(n)
		to, known := x.prints.find(print)
		if !known {
			to = x.add(print, i, m)
			x.buf = x.freezer.freeze(x.buf[:0], n)
			x.frontier.push(x.buf)
		}
		if x.next[i] == nowhere && m.kind() < mCalm && to != i {
			x.next[i] = to
		}
	}
}

// look checks what must hold in any state, and tells whether everybody is settled or explained.
func (x *search) look(n *node) (settled bool) {
	settled = true
	waiting, root, asks := false, false, false
	var free []int
	woken := false
	for h := range x.spec.hosts {
		b := &n.Boxes[h]
		woken = woken || b.Woken
		d := n.W.Decide(hostName(h), n.time())
		if d.Target == nil && d.Rollback == nil {
			x.wholeReason(h, d.Reason)
		}
		if (d.Rollback != nil || d.Target != nil && !d.Target.Resent) && b.Until > n.Now && !b.Woken {
			free = append(free, h)
		}
		asks = asks || d.Target != nil && b.Until <= n.Now
		settled = settled && b.Phase == idle && b.Outs == 0 && b.Late.Kind == noMessage && n.heardOf(h)
		switch {
		case !settled:
		case slices.Contains(arrived, d.Reason.Code):
		case slices.Contains(explained, d.Reason.Code):
			root = true
		case slices.Contains(behind, d.Reason.Code):
			waiting = true
		default:
			settled = false
		}
		if n.Lines[x.spec.hosts[h].channel].Halted == recalled && n.tookHere(x.spec, h) && d.Rollback == nil {
			settled = false // nobody asks it to go back
		}
	}
	// With a budget the slot may be promised to a host that asks by itself, or that was woken before.
	if len(free) > 0 && !(x.spec.budget > 0 && (woken || asks)) {
		x.violate(invWake, "host %s holds a request and would be given something else now, and was not woken",
			hostName(free[0]))
	}
	if settled && waiting && !root {
		settled = x.rolloutExplains(n)
	}
	return settled
}

// heardOf: what the host is, it has said.
func (n *node) heardOf(h int) bool {
	return n.Boxes[h].Said == n.Boxes[h].Running && n.Boxes[h].Heard > 0
}

// tookHere: the host got what it runs in the rollout in force.
func (n *node) tookHere(s *spec, h int) bool {
	b := &n.Boxes[h]
	return b.Running == int8(n.content(s)) && b.Recalled != b.Running && b.Confirmed > 0 && b.Proven > 1 && b.Lease == 0 &&
		b.Acked[b.Running]
}

// What a host may be told for good: that it has arrived, that a person has to act, or that it waits for one of whom
// that is true.
var (
	arrived   = []string{rollout.CodeConverged, rollout.CodePinned}
	explained = []string{
		rollout.CodeFailed, rollout.CodeReverted, rollout.CodeTolerated, rollout.CodePaused, rollout.CodeCancelled,
		rollout.CodeHalted,
		rollout.CodeReverting, rollout.CodeQuarantined, rollout.CodeHeld, rollout.CodeCompliance, rollout.CodeStale,
	}
	behind = []string{
		rollout.CodeWave, rollout.CodeChannelEdge, rollout.CodeHostEdge, rollout.CodeSoaked, rollout.CodeOnTarget,
	}
)

// rolloutExplains: a rollout says that a person has to act.
func (x *search) rolloutExplains(n *node) bool {
	for _, v := range n.W.Rollouts(n.time()) {
		switch v.Reason.Code {
		case rollout.CodeWaveUnproven, rollout.CodePaused, rollout.CodeHalted, rollout.CodeReverting, rollout.CodeCancelled:
			return true
		}
		switch v.State {
		case rollout.Cancelled, rollout.RolloutReverted:
			return v.SupersededAt == nil
		}
	}
	return false
}

// everybodyArrives follows every state to where it ends when all faults stop.
func (x *search) everybodyArrives() *finding {
	const (
		fresh = iota
		onPath
		fine
	)
	state := make([]uint8, len(x.next))
	var path []uint32
	for i := range x.next {
		at := uint32(i)
		path = path[:0]
		for state[at] == fresh && x.next[at] != at && x.next[at] != nowhere {
			state[at] = onPath
			path = append(path, at)
			at = x.next[at]
		}
		// States that have one fingerprint may differ by milliseconds, so that a circle among these may be none.
		if x.next[at] != at && state[at] != fine && !(x.full && x.next[at] == nowhere) && !x.arrives(uint32(i)) {
			return &finding{
				what:  invArrives + ": when all faults stop here, somebody neither arrives nor says what a person has to do",
				state: uint32(i), fine: true, depth: len(x.path(uint32(i))),
			}
		}
		state[at] = fine
		for _, p := range path {
			state[p] = fine
		}
	}
	return nil
}

// patience is how many moves a fleet has to arrive, when nothing goes wrong any more.
const patience = 400

// arrives goes to a state and lets everybody do what they do when nothing goes wrong.
func (x *search) arrives(i uint32) bool {
	n := x.start()
	for _, m := range x.path(i) {
		x.apply(n, m)
	}
	x.walks++
	for range patience {
		if x.look(n) {
			return true
		}
		if n = x.calm(n); n == nil {
			return false
		}
	}
	return false
}

// calm makes the next move of a fleet in which nothing goes wrong; nil: there is none.
func (x *search) calm(n *node) *node {
	own := x.printer.print(n)
	x.buf = x.freezer.freeze(x.buf[:0], n)
	x.list = x.moves(n, x.list[:0])
	for _, m := range x.list {
		if m.kind() >= mCalm {
			break
		}
		n = x.freezer.thaw(x.buf)
		if x.apply(n, m) && (x.printer.print(n) != own || m.kind() == mTime) {
			x.tell("%s %s", x.clock(n), m)
			return n
		}
	}
	return nil
}

func (x *search) clock(n *node) time.Duration { return time.Duration(n.Now-began) * time.Millisecond }

// path is how a state is reached.
func (x *search) path(i uint32) (moves []move) {
	for ; x.parents[i] != nowhere; i = x.parents[i] {
		moves = append(moves, x.by[i])
	}
	slices.Reverse(moves)
	return moves
}

// story is how a finding is reached.
func (x *search) story(f *finding) []move {
	moves := x.path(f.state)
	if !f.fine {
		moves = append(moves, f.last)
	}
	return moves
}

func (x *search) String() string {
	how := "exhausted"
	if x.full {
		how = "not exhausted"
	}
	return fmt.Sprintf("%-28s %9d states, %9d moves, depth %2d, %s", x.spec.name, len(x.by), x.tried, x.depth, how)
}
