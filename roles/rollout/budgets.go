package rollout

import (
	"fmt"
	"slices"
	"strings"
	"time"

	"nixfleet/nixops/fleet"
)

// budget is one disruption budget, counted across all rollouts that name its selector.
type budget struct {
	key      string // canonical selector
	label    string // for people
	members  int
	limit    int
	soaks    bool // a slot is held until its host has soaked, and not only until it has confirmed
	used     int  // hosts that hold a slot
	stricter int  // limit of the release before, which counts while hosts of it are in flight
	before   int  // those hosts
	unheard  int  // members that have not reported since an empty start
	planned  int  // slots given away by the look-ahead that is running
	promised int  // slots for which the running call has woken hosts of the queue
	queue    []*host
}

// budgetLimit is maxInFlight or the percentage of members (rounded down, at least 1), whichever is smaller;
// -1 when neither is set.
func budgetLimit(maxInFlight, maxInFlightPct *uint32, members int) int {
	limit := -1
	if maxInFlight != nil {
		limit = int(*maxInFlight)
	}
	if maxInFlightPct != nil {
		pct := max(1, int(uint64(members)*uint64(*maxInFlightPct)/100))
		if limit < 0 || pct < limit {
			limit = pct
		}
	}
	return limit
}

// selectorKey is equal for equal selectors and only for them.
func selectorKey(s fleet.Selector) string {
	channel := ""
	if s.Channel != nil {
		channel = fmt.Sprintf("%q", *s.Channel)
	}
	return fmt.Sprintf("%q %q %q %s %t", s.Tags, s.TagsAny, s.Hosts, channel, s.All)
}

func selectorLabel(s fleet.Selector) string {
	var parts []string
	if len(s.Tags) > 0 {
		parts = append(parts, "tags "+strings.Join(s.Tags, "+"))
	}
	if len(s.TagsAny) > 0 {
		parts = append(parts, "any tag of "+strings.Join(s.TagsAny, ", "))
	}
	if len(s.Hosts) > 3 {
		parts = append(parts, fmt.Sprintf("%d named hosts", len(s.Hosts)))
	} else if len(s.Hosts) > 0 {
		parts = append(parts, "hosts "+strings.Join(s.Hosts, ", "))
	}
	if s.Channel != nil {
		parts = append(parts, "channel "+*s.Channel)
	}
	if s.All {
		parts = append(parts, "all hosts")
	}
	if len(parts) == 0 {
		return "no host"
	}
	return strings.Join(parts, " or ")
}

// bindBudgets reads the budgets that the manifests of a release froze, and counts the slots held now.
func (bs *budgets) bindBudgets(r *fleet.Release, now time.Time) {
	old := bs.bySelector
	bs.bySelector = map[string]*budget{}
	confirmed := confirmedBudgets(r.Fleet)
	for _, name := range sortedChannels(r) {
		for _, mb := range r.Channels[name].Manifest.DisruptionBudgets {
			bs.bindBudget(mb, confirmed)
		}
	}
	for _, h := range bs.w.hosts.all {
		bs.rebindSlots(h)
		if !h.slot.until.IsZero() {
			bs.w.hosts.arm(h, now)
		}
	}
	for key, b := range old {
		if n := bs.bySelector[key]; n != nil && b.most() < n.limit {
			n.stricter = b.most()
		}
	}
}

// most is how many hosts may be in flight. Of two releases that share a selector the stricter one counts.
func (b *budget) most() int {
	if b.before > 0 && b.stricter > 0 {
		return min(b.limit, b.stricter)
	}
	return b.limit
}

// confirmedBudgets are the selectors whose budgets all say that a slot is free at the confirm. Manifests do not have
// that.
func confirmedBudgets(f *fleet.Fleet) map[string]bool {
	said := map[string]bool{}
	for _, b := range f.DisruptionBudgets {
		key := selectorKey(b.Selector)
		until, again := said[key]
		said[key] = b.SlotUntil == fleet.SlotConfirmed && (until || !again)
	}
	return said
}

// bindBudget counts the members of one budget. Declared again, the stricter one counts.
func (bs *budgets) bindBudget(mb fleet.ManifestBudget, confirmed map[string]bool) {
	limit := budgetLimit(mb.MaxInFlight, mb.MaxInFlightPct, len(mb.Hosts))
	if limit < 0 || len(mb.Hosts) == 0 {
		return
	}
	key := selectorKey(mb.Selector)
	if b := bs.bySelector[key]; b != nil {
		b.limit = min(b.limit, limit)
		return
	}
	b := &budget{
		key: key, label: selectorLabel(mb.Selector), members: len(mb.Hosts), limit: limit, soaks: !confirmed[key],
	}
	bs.bySelector[key] = b
	for _, hostname := range mb.Hosts {
		if h := bs.w.hosts.byName[hostname]; h != nil {
			h.decl.budgets = append(h.decl.budgets, b)
			if !h.contact.reported {
				b.unheard++
			}
		}
	}
}

// rebindSlots counts a host in flight where it was counted when it got its slot, and where it belongs now.
func (bs *budgets) rebindSlots(h *host) {
	soaking := h.soaking()
	if h.slot.until.IsZero() && !soaking {
		h.slot.budgets = nil
		return
	}
	var slots []*budget
	for _, b := range h.slot.budgets {
		if n := bs.bySelector[b.key]; n != nil {
			slots = append(slots, n)
		}
	}
	for _, b := range h.decl.budgets {
		if !slices.Contains(slots, b) {
			slots = append(slots, b)
		}
	}
	if h.slot.until.IsZero() {
		slots = slices.DeleteFunc(slots, func(b *budget) bool { return !b.soaks })
	}
	h.slot.budgets = slots
	h.slot.before = h.lease != nil && h.lease.Intent != h.intent()
	for _, b := range slots {
		b.used++
		if h.slot.before {
			b.before++
		}
	}
}

// hold takes a slot in each budget of the host, or keeps those it has for longer.
func (bs *budgets) hold(h *host, until time.Time) {
	if len(h.slot.budgets) == 0 {
		h.slot.budgets = slices.Clip(h.decl.budgets)
		for _, b := range h.slot.budgets {
			b.used++
		}
	} else if h.slot.until.IsZero() {
		for _, b := range h.decl.budgets {
			bs.take(h, b)
		}
	}
	h.slot.until = later(h.slot.until, until)
}

func (bs *budgets) take(h *host, b *budget) {
	if !h.holds(b) {
		h.slot.budgets = append(slices.Clip(h.slot.budgets), b)
		b.used++
	}
}

// release ends what the lease of a host holds. It keeps what it holds until it has soaked.
func (bs *budgets) release(h *host, now time.Time) {
	if h.slot.until.IsZero() || broken(ruleSlotsComeBack) {
		return
	}
	if h.slot.before {
		h.slot.before = false
		for _, b := range h.slot.budgets {
			b.before--
		}
	}
	h.slot.until, h.past.ended = time.Time{}, nil
	bs.settle(h, now)
}

// settle gives back the slots that a host without a lease need not hold any more, and wakes the hosts that may take
// them. One that is found soaking takes those of its budgets that count it.
func (bs *budgets) settle(h *host, now time.Time) {
	soaking := h.soaking()
	if !h.slot.until.IsZero() || !soaking && len(h.slot.budgets) == 0 || broken(ruleSlotsComeBack) {
		return
	}
	held, freed := h.slot.budgets, []*budget(nil)
	h.slot.budgets = nil
	for _, b := range held {
		if soaking && b.soaks {
			h.slot.budgets = append(h.slot.budgets, b)
		} else {
			b.used--
			freed = append(freed, b)
		}
	}
	if soaking {
		for _, b := range h.decl.budgets {
			if b.soaks {
				bs.take(h, b)
			}
		}
	}
	for _, b := range freed {
		bs.wakeQueue(b, now)
	}
}

// soaking reports whether the host took its target in this rollout and has not soaked. One that falls silent meanwhile
// still counts: nobody knows what became of it.
func (h *host) soaking() bool {
	if h.run == nil || h.rec == nil || h.rec.Attempt == 0 || h.rec.HealthySince == nil || broken(ruleSoakHoldsSlot) {
		return false
	}
	switch h.rec.State {
	case Healthy:
		return true
	case Skipped:
		return h.rec.Reason != CodeTolerated
	}
	return false
}

// wakeQueue wakes as many waiting hosts as the budget has room for. Those that the same call has woken before count:
// else a thousand slots that come back one by one would wake half a million hosts for them.
func (bs *budgets) wakeQueue(b *budget, now time.Time) {
	bs.wakeHolders(b, now)
	for room := b.most() - b.inFlight(bs.w, now) - b.promised; room > 0 && len(b.queue) > 0; {
		h := b.queue[0]
		b.queue[0] = nil
		b.queue = b.queue[1:]
		if h.slot.waitsFor != b {
			continue
		}
		h.slot.waitsFor = nil
		if h.run == nil || !h.offerable() {
			continue
		}
		switch why := bs.w.about(h, now).blocked(offer); {
		case why == nil:
			bs.w.changes.wake(h)
			if b.promised++; b.promised == 1 {
				bs.w.changes.promised = append(bs.w.changes.promised, b)
			}
			room--
		case why.code == CodeBudget || why.code == CodeBudgetUnheard:
			bs.queueUp(h, now) // at another one
		default:
			bs.w.timers.lookAgain(&h.timer, why, now)
		}
	}
}

// wakeHolders wakes hosts that hold a slot of the budget already, and waited for others that were not heard of.
func (bs *budgets) wakeHolders(b *budget, now time.Time) {
	for _, h := range b.queue {
		if h == nil || !h.holds(b) {
			return
		}
		waits := h.slot.waitsFor == b && h.run != nil && h.offerable()
		if waits && bs.w.about(h, now).blocked(offer) == nil {
			h.slot.waitsFor = nil
			bs.w.changes.wake(h)
		}
	}
}

// enqueue lets a host wait for a budget. A host that holds a slot of it needs no other one, so that it comes first.
func (bs *budgets) enqueue(h *host, b *budget) {
	if h.slot.waitsFor == b {
		return
	}
	h.slot.waitsFor = b
	if h.holds(b) {
		b.queue = slices.Insert(b.queue, 0, h)
		return
	}
	b.queue = append(b.queue, h)
}

// inFlight counts the hosts that hold a slot, and after an empty start those that might.
func (b *budget) inFlight(w *World, now time.Time) int {
	n := b.used
	if now.Before(w.budgets.unheard) && !broken(ruleUnheardCount) {
		n += b.unheard
	}
	return n
}

// holds reports whether the host holds a slot of the budget.
func (h *host) holds(b *budget) bool {
	return slices.Contains(h.slot.budgets, b)
}

// full reports whether one more host may not start. A host that holds its slot already does not count twice.
func (b *budget) full(w *World, h *host, now time.Time) bool {
	n := b.inFlight(w, now) + b.planned
	if h.holds(b) {
		n--
	}
	if !h.contact.reported && now.Before(w.budgets.unheard) {
		n--
	}
	return n >= b.most()
}
