package sim

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"time"

	"nixfleet/nixops/fleet"
)

// A scenario is all that is decided by chance, so that it can be run again and
// made smaller. Whatever is drawn while it runs comes from streams that are
// named after what draws, so that taking an event away moves no other.
type scenario struct {
	seed     uint64
	hosts    int
	channels []channelPlan
	budgets  []budgetPlan
	chained  bool          // the first channel goes before the second
	opening  bool          // and holds no more than the opening of its rollouts
	maybe    bool          // waves may be empty
	edged    bool          // the first host of each channel goes before its second
	probed   bool          // hosts run a health probe
	ill      bool          // what fails does so after its confirm only
	fetch    time.Duration // the longest that a download takes
	turn     time.Duration // and a switch, in whole seconds
	away     time.Duration // how long a host that vanishes may be gone; certificates end after 20 hours
	events   []event
}

// channelPlan says how a channel moves; its hosts are those whose number leaves
// its index as remainder.
type channelPlan struct {
	waves  int
	soak   []time.Duration
	recall bool   // rollback-and-halt
	least  uint32 // hosts that must have failed before it recalls; 0: it has no threshold
	comply string
}

// budgetPlan bounds the hosts of a tag, whatever their channel.
type budgetPlan struct {
	every    int // hosts whose number is a multiple of it
	max, pct uint32
	// confirmed says that a slot is held until the confirm only.
	confirmed bool
}

// event is one thing that happens to the fleet.
type event struct {
	at   time.Duration
	kind kind
	host int // its number; -1 for all
	last time.Duration
	n    int
}

type kind string

const (
	release     kind = "release"     // of good closures
	badRelease  kind = "bad release" // that fails on one host of n
	resign      kind = "resign"      // the same release, newly signed
	move        kind = "move"        // a host goes to the other channel, with the next release
	kill        kind = "kill"        // the control plane, for a while
	wipe        kind = "wipe"        // and its database
	cut         kind = "cut"         // nothing goes through
	cutUp       kind = "cut up"      // requests are lost
	cutDown     kind = "cut down"    // answers are lost
	lossy       kind = "lossy"       // requests are lost, doubled and delayed
	crash       kind = "crash"       // the agent dies at its n-th step from now
	powerCut    kind = "power cut"   // at its n-th step from now, and boots again
	vanish      kind = "vanish"      // switched off, for long
	reboot      kind = "reboot"      // by a person
	lie         kind = "lie"         // the control plane says what is not so
	slowDisk    kind = "slow disk"   // everything the host does takes longer
	skew        kind = "skew"        // the host's clock is wrong
	staged      kind = "staged"      // a release that one host of n takes only with a reboot
	pause       kind = "pause"       // a person holds a channel's rollout, for a while
	cancel      kind = "cancel"      // or ends it
	retry       kind = "retry"       // or lets a host try once more
	resume      kind = "resume"      // or goes on after a halt
	replayToken kind = "replay a token"
)

// stream is a source of chance of its own, named by its words.
func stream(seed uint64, words ...any) *rand.Rand {
	h := uint64(14695981039346656037)
	for _, b := range []byte(fmt.Sprint(words...)) {
		h = (h ^ uint64(b)) * 1099511628211
	}
	return rand.New(rand.NewPCG(seed, h))
}

// kinds are drawn in proportion to how often they are named.
var kinds = []kind{
	release, release, release, badRelease, badRelease, resign, move, kill, wipe, cut, cut, cutUp, cutDown, lossy, lossy,
	crash, crash, crash, powerCut, powerCut, vanish, reboot, lie, slowDisk, replayToken, skew, skew, staged, staged,
	pause, cancel, retry, resume,
}

// draw makes the scenario of a seed. Most are short and dense, for that finds more
// in a second; one in ten is longer or larger, and a few are very much so.
func draw(seed uint64) *scenario {
	r := stream(seed, "scenario")
	s := &scenario{seed: seed, hosts: 5 + r.IntN(4), away: 3 * time.Hour, fetch: 90 * time.Second, turn: 20 * time.Second}
	hours, upsets := 1+r.IntN(3), 6+r.IntN(10)
	switch {
	case seed%500 == 50:
		s.hosts, hours, upsets = 300, 2, 30
	case seed%100 == 99:
		s.hosts, s.away = 2, 21*24*time.Hour
	case seed%25 == 24:
		s.hosts, s.away = 3, 40*time.Hour
	case seed%10 == 9:
		s.hosts = 9 + r.IntN(12)
	case seed%10 == 3:
		hours, upsets = 3+r.IntN(4), 8+r.IntN(14)
	}
	for range 1 + r.IntN(2) {
		c := channelPlan{waves: 1 + r.IntN(3), recall: r.IntN(3) == 0}
		c.comply = []string{fleet.ModeDisabled, fleet.ModeDisabled, fleet.ModePermissive, fleet.ModeEnforce}[r.IntN(4)]
		for range c.waves {
			c.soak = append(c.soak, time.Duration(r.IntN(4))*150*time.Second)
		}
		s.channels = append(s.channels, c)
	}
	s.chained = len(s.channels) == 2 && r.IntN(2) == 0
	s.edged, s.probed = r.IntN(3) == 0, r.IntN(2) == 0
	for range r.IntN(3) {
		b := budgetPlan{every: 1 + r.IntN(2), max: uint32(1 + r.IntN(3))}
		if r.IntN(3) == 0 {
			b.max, b.pct = 0, uint32(10+r.IntN(50))
		}
		s.budgets = append(s.budgets, b)
	}
	s.declare(stream(seed, "declared"))
	for range upsets {
		e := event{at: time.Duration(r.IntN(hours*3600)) * time.Second, kind: kinds[r.IntN(len(kinds))],
			host: r.IntN(s.hosts), n: 1 + r.IntN(20)}
		e.last = time.Duration(30+r.IntN(1500)) * time.Second
		switch e.kind {
		case vanish:
			e.last = time.Duration(r.Int64N(int64(s.away)))
		case cut, cutUp, cutDown, lossy:
			if r.IntN(3) == 0 {
				e.host = -1
			}
		}
		s.events = append(s.events, e)
	}
	for h := range hours {
		s.events = append(s.events, event{at: time.Duration(h)*time.Hour + 17*time.Minute, kind: resign})
	}
	s.sort()
	return s
}

// declare draws what v1 does not have. A large fleet whose slots are held until each soak is over takes days.
func (s *scenario) declare(r *rand.Rand) {
	s.opening, s.maybe = r.IntN(3) == 0, r.IntN(2) == 0
	for i := range s.channels {
		if r.IntN(3) == 0 {
			s.channels[i].least = 2
		}
	}
	for i := range s.budgets {
		s.budgets[i].confirmed = r.IntN(3) == 0 || s.hosts > 50
	}
}

func (s *scenario) sort() {
	slices.SortStableFunc(s.events, func(a, b event) int { return int(a.at - b.at) })
}

// smaller are the scenarios to try in place of one that fails, the boldest
// first.
func (s *scenario) smaller() []*scenario {
	var out []*scenario
	for n := len(s.events) / 2; n > 0; n /= 2 {
		for from := 0; from < len(s.events); from += n {
			c := *s
			c.events = slices.Delete(slices.Clone(s.events), from, min(from+n, len(s.events)))
			out = append(out, &c)
		}
	}
	if s.hosts > 2 {
		c := *s
		c.hosts, c.events = s.hosts-1, slices.Clone(s.events)
		for i := range c.events {
			c.events[i].host = min(c.events[i].host, c.hosts-1)
		}
		out = append(out, &c)
	}
	return out
}

func (s *scenario) String() string {
	var b strings.Builder
	fmt.Fprintf(&b, "seed %d: %d hosts", s.seed, s.hosts)
	for i, c := range s.channels {
		fmt.Fprintf(&b, "; channel c%d, %d waves, soak %v, recall %v from %d, compliance %s",
			i, c.waves, c.soak, c.recall, c.least, c.comply)
	}
	for _, x := range s.budgets {
		fmt.Fprintf(&b, "; budget of every %d, max %d, %d %%, until confirmed %v", x.every, x.max, x.pct, x.confirmed)
	}
	fmt.Fprintf(&b, "; chained %v (opening %v), edged %v, probed %v, waves may be empty %v\n",
		s.chained, s.opening, s.edged, s.probed, s.maybe)
	for _, e := range s.events {
		fmt.Fprintf(&b, "  %8s  %s", e.at, e.kind)
		switch e.kind {
		case release, badRelease, resign, kill, wipe, pause, cancel, resume:
		default:
			fmt.Fprintf(&b, "  h%02d", e.host)
		}
		fmt.Fprintf(&b, "  n %d, for %s\n", e.n, e.last)
	}
	return b.String()
}
