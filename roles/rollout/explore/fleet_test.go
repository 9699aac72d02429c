package explore

import (
	"cmp"
	"fmt"
	"slices"
	"time"

	"nixfleet/nixops/fleet"
	"nixfleet/roles/rollout"
)

const (
	maxHosts    = 4
	maxChannels = 2
	// began is when every story begins, in Unix milliseconds; no window of a fleet is near to that number.
	began = 1772366400000
)

// spec is a small fleet and what may happen to it. Its hosts are called a, b, c and d.
type spec struct {
	name     string
	about    string
	hosts    []place
	channels []channel
	budget   int      // hosts of the whole fleet that may be in flight; 0: no budget
	edges    [][2]int // hosts: first, then gated
	chained  bool     // channel 0 comes before channel 1
	contents []int    // of the releases, one after the other; equal numbers are equal intents
	fresh    time.Duration
	comply   bool          // compliance is enforced
	probes   bool          // hosts run a health probe
	skew     time.Duration // how far the clocks of hosts are ahead
	attempts int           // before a host counts as failed; 0: 2

	faults int // how many of these may happen in one story
	may    string
	acts   int // and of these, by operators
	people string

	size int // states that it has, when that is known
}

// place is where a host stands.
type place struct {
	channel, wave int
	v1            bool
	bad           bool // its closures may fail there
}

type channel struct {
	soaks  []time.Duration // one a wave
	revert bool
}

// What may happen to a fleet, as letters of spec.may.
const (
	lostAnswer   = 'a' // of a check-in, confirm or report, after it was acted upon
	lateRequest  = 'l' // a request arrives later, when its host has given it up
	hostFails    = 'f' // an activation fails by the release's fault
	localFails   = 'h' // by the host's
	powerCut     = 'p'
	cutOff       = 'g' // a held request ends without an answer
	edgeOfTime   = 't' // a moment before or after a deadline
	cpRestart    = 'r'
	cpWiped      = 'w'
	signAgain    = 's'
	sick         = 'i' // probes fail
	unfit        = 'c' // a compliance control fails
	byHand       = 'm' // root switches the host back
	stages       = 'd' // an activation is staged for the next boot
	reportLost   = 'x' // a v1 agent gives a report up
	pauseAct     = 'p'
	cancelAct    = 'c'
	retryAct     = 'r'
	resumeHalted = 'h'
)

func (s *spec) limits() rollout.Limits {
	l := rollout.DefaultLimits()
	l.MaxAttempts = max(s.attempts, 1)
	if s.attempts == 0 {
		l.MaxAttempts = 2
	}
	l.FetchLimit = 10 * time.Minute
	return l
}

// groups are the hosts that stand in equal places.
func (s *spec) groups() [][]int {
	var out [][]int
	edged := func(h int) bool {
		return slices.ContainsFunc(s.edges, func(e [2]int) bool { return e[0] == h || e[1] == h })
	}
	for h, p := range s.hosts {
		i := slices.IndexFunc(out, func(g []int) bool { return s.hosts[g[0]] == p && !edged(g[0]) && !edged(h) })
		if i < 0 {
			out = append(out, []int{h})
			continue
		}
		out[i] = append(out[i], h)
	}
	return slices.DeleteFunc(out, func(g []int) bool { return len(g) < 2 })
}

func hostName(h int) string { return string(rune('a' + h)) }

func channelName(c int) string { return []string{"stable", "edge"}[c] }

// closures are numbered: 0 is what ran before, n is what content n wants. A host that runs something by hand is
// back on 0.
var closureNames = []string{"old", "new1", "new2", "new3"}

func closureNumber(s string) int8 { return int8(slices.Index(closureNames, s)) }

// A rollout id is a content and a signing of it: content*8 + signing.
func rolloutID(channel int, id uint8) string {
	return fmt.Sprintf("%s-%d.%d", channelName(channel), id/8, id%8)
}

func intentOf(channel, content int) string {
	return fmt.Sprintf("%s-%d", channelName(channel), content)
}

// signing is one release as it was signed.
type signing struct {
	content int
	nth     uint8 // signing of this content
	at      int64
	opened  int64
}

// releases makes each once: worlds compare them by their place in memory.
type releases struct {
	spec *spec
	made map[signing]*fleet.Release
}

func (r *releases) get(s signing) *fleet.Release {
	rel := r.made[s]
	if rel == nil {
		rel = r.spec.release(s)
		r.made[s] = rel
	}
	return rel
}

// release is what fleet.LoadRelease would return, as far as decisions depend on it.
func (s *spec) release(g signing) *fleet.Release {
	signed := time.UnixMilli(g.at).UTC()
	f := &fleet.Fleet{
		Hosts: map[string]*fleet.Host{}, Channels: map[string]fleet.Channel{},
		RolloutPolicies: map[string]fleet.Policy{}, Waves: map[string][]fleet.Wave{},
	}
	r := &fleet.Release{Fleet: f, SignedAt: signed, FleetHash: fmt.Sprint(g), Channels: map[string]*fleet.ChannelRelease{}}
	var budgets []fleet.ManifestBudget
	if s.budget > 0 {
		n := uint32(s.budget)
		b := fleet.ManifestBudget{Selector: fleet.Selector{All: true}, MaxInFlight: &n}
		for h := range s.hosts {
			b.Hosts = append(b.Hosts, hostName(h))
		}
		budgets = append(budgets, b)
	}
	for c, ch := range s.channels {
		name := channelName(c)
		window := uint32(100000)
		if s.fresh > 0 {
			window = uint32(s.fresh / time.Minute)
		}
		declared := fleet.Channel{RolloutPolicy: name, FreshnessWindow: window}
		declared.Compliance.Mode = fleet.ModeDisabled
		if s.comply {
			declared.Compliance.Mode = fleet.ModeEnforce
		}
		f.Channels[name] = declared
		policy := fleet.Policy{OnHealthFailure: fleet.OnFailureHalt}
		if ch.revert {
			policy.OnHealthFailure = fleet.OnFailureRollback
		}
		f.RolloutPolicies[name] = policy
		id := rolloutID(c, uint8(g.content*8)+g.nth)
		m := &fleet.Manifest{
			Channel: name, DisplayName: name, ChannelRef: fmt.Sprint("commit-", g.content), DisruptionBudgets: budgets,
		}
		for w, soak := range ch.soaks {
			seconds := uint32(soak / time.Second)
			wave := fleet.Wave{SoakSeconds: &seconds}
			for h, p := range s.hosts {
				if p.channel != c || p.wave != w {
					continue
				}
				closure := closureNames[g.content]
				wave.Hosts = append(wave.Hosts, hostName(h))
				f.Hosts[hostName(h)] = &fleet.Host{Channel: name, ClosureHash: &closure}
				entry := fleet.HostEntry{Hostname: hostName(h), TargetClosure: closure, WaveIndex: uint32(w)}
				m.HostSet = append(m.HostSet, entry)
			}
			f.Waves[name] = append(f.Waves[name], wave)
		}
		slices.SortFunc(m.HostSet, func(a, b fleet.HostEntry) int { return cmp.Compare(a.Hostname, b.Hostname) })
		r.Channels[name] = &fleet.ChannelRelease{
			Channel: name, RolloutID: id, Manifest: m, Intent: intentOf(c, g.content), OpenedAt: time.UnixMilli(g.opened).UTC(),
		}
	}
	for _, e := range s.edges {
		f.Edges = append(f.Edges, fleet.Edge{Gates: hostName(e[0]), Gated: hostName(e[1])})
	}
	if s.chained {
		f.ChannelEdges = append(f.ChannelEdges, fleet.ChannelEdge{Gates: channelName(0), Gated: channelName(1)})
	}
	return r
}
