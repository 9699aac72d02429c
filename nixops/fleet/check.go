package fleet

import (
	"fmt"
	"slices"
	"sort"
	"strings"
	"unicode"

	"nixfleet/pki"
)

// Problem is a mistake in a fleet document. What is not fatal is allowed and suspicious.
type Problem struct {
	Fatal   bool
	Subject string // host, channel, policy, edge or budget it is about
	Text    string // what is wrong
	Mend    string // what to do
}

func (p Problem) String() string { return fmt.Sprintf("%s: %s; %s", p.Subject, p.Text, p.Mend) }

type checker struct {
	f        *Fleet
	problems []Problem
}

// Check finds what the document's shape lets through, sorted by subject. It is
// the second line: mkFleet says the same while the fleet is evaluated.
func Check(f *Fleet) []Problem {
	c := &checker{f: f}
	c.hosts()
	c.channels()
	c.waves()
	c.edges()
	c.policies()
	c.budgets()
	slices.SortStableFunc(c.problems, func(a, b Problem) int { return strings.Compare(a.Subject, b.Subject) })
	return c.problems
}

func (c *checker) wrong(subject, mend, format string, args ...any) {
	c.problems = append(c.problems, Problem{Fatal: true, Subject: subject, Text: fmt.Sprintf(format, args...), Mend: mend})
}

func (c *checker) warn(subject, mend, format string, args ...any) {
	c.problems = append(c.problems, Problem{Subject: subject, Text: fmt.Sprintf(format, args...), Mend: mend})
}

func (c *checker) hosts() {
	owner := map[string]string{}
	for _, name := range sortedKeys(c.f.Hosts) {
		h, subject := c.f.Hosts[name], "host "+name
		if !ValidHostName(name) {
			c.wrong(subject, "use letters, digits, inner hyphens, and dots between them",
				"the name cannot stand in a certificate or a path")
		}
		if _, ok := c.f.Channels[h.Channel]; !ok {
			c.wrong(subject, "declare the channel or correct the name", "is on channel %q, which is not declared", h.Channel)
		}
		if h.ClosureHash != nil && !ValidClosure(*h.ClosureHash) {
			c.wrong(subject, "give the full base name of the store path", "closure %.80q is not a store base name",
				*h.ClosureHash)
		}
		if h.Pubkey == nil {
			c.warn(subject, "declare the line of /etc/ssh/ssh_host_ed25519_key.pub",
				"has no pubkey: it can neither enrol nor prove its reports")
			continue
		}
		key, err := pki.ParseHostKey(*h.Pubkey)
		if err != nil {
			c.wrong(subject, "declare the line of /etc/ssh/ssh_host_ed25519_key.pub", "pubkey: %v", err)
			continue
		}
		if other := owner[string(key)]; other != "" {
			c.wrong(subject, "give each host a key of its own",
				"has the same pubkey as host %s, so that one could act as the other", other)
		}
		owner[string(key)] = name
	}
}

func (c *checker) channels() {
	used := map[string]bool{}
	for _, h := range c.f.Hosts {
		used[h.Channel] = true
	}
	for _, name := range sortedKeys(c.f.Channels) {
		ch, subject := c.f.Channels[name], "channel "+name
		if _, ok := c.f.RolloutPolicies[ch.RolloutPolicy]; !ok {
			c.wrong(subject, "declare the policy or correct the name", "rollout policy %q is not declared", ch.RolloutPolicy)
		}
		switch ch.Compliance.Mode {
		case ModeDisabled, ModePermissive, ModeEnforce:
		default:
			c.wrong(subject, "use disabled, permissive or enforce", "compliance mode %q is unknown and would act as permissive",
				ch.Compliance.Mode)
		}
		if uint64(ch.FreshnessWindow) < 2*uint64(ch.SigningIntervalMinutes) {
			c.wrong(subject, "raise freshnessWindow or sign more often",
				"freshnessWindow %d is below twice signingIntervalMinutes %d", ch.FreshnessWindow, ch.SigningIntervalMinutes)
		}
		if _, err := ch.Maintenance.Read(); err != nil {
			c.wrong(subject, "write for example maintenance.windows = [ { opens = \"Sat 02:00\"; minutes = 240; } ]",
				"maintenance: %v", err)
		}
		if ch.Emergency != "" {
			c.warn(subject, "take it out with the release after this one",
				"declares an emergency (%.200s): it waits for neither a maintenance window nor the end of a freeze", ch.Emergency)
		}
		if !fileName(name) {
			c.wrong(subject, "use letters, digits, hyphens and underscores", "the name cannot be a file's name")
		}
		if !used[name] {
			c.warn(subject, "take it out or put hosts on it", "has no host")
		}
	}
}

// ValidChannel reports whether a name can be a channel's: names come from the network and
// become paths, so check first.
func ValidChannel(name string) bool { return fileName(name) }

// fileName tells whether a name can be that of a file: a channel's head is one, in a release directory and in git.
func fileName(name string) bool {
	unfit := func(r rune) bool { return r == '/' || r == '\\' || !unicode.IsPrint(r) }
	return name != "" && len(name) <= 200 && !strings.HasPrefix(name, ".") && !strings.ContainsFunc(name, unfit)
}

func (c *checker) waves() {
	for _, channel := range sortedKeys(c.f.Waves) {
		if _, ok := c.f.Channels[channel]; !ok {
			c.wrong("waves of "+channel, "declare the channel or take the waves out", "the channel is not declared")
		}
		for i, w := range c.f.Waves[channel] {
			subject := fmt.Sprintf("wave %d of %s", i, channel)
			for _, host := range w.Hosts {
				switch h := c.f.Hosts[host]; {
				case h == nil:
					c.wrong(subject, "take it out of the wave", "host %q is not declared", host)
				case h.Channel != channel:
					c.wrong(subject, "resolve waves over the channel's own hosts",
						"host %q is on channel %s and would never soak here", host, h.Channel)
				}
			}
		}
	}
}

func (c *checker) edges() {
	next := map[string][]string{}
	for i, e := range c.f.Edges {
		subject := fmt.Sprintf("edge %d", i)
		gated, gates := c.f.Hosts[e.Gated], c.f.Hosts[e.Gates]
		switch {
		case gated == nil || gates == nil:
			c.wrong(subject, "correct the name", "from %q to %q names a host that is not declared", e.Gates, e.Gated)
		case e.Gated == e.Gates:
			c.wrong(subject, "take it out", "host %q waits for itself", e.Gated)
		case gated.Channel != gates.Channel:
			c.wrong(subject, "use a channel edge", "%q and %q are on different channels", e.Gated, e.Gates)
		default:
			next[e.Gates] = append(next[e.Gates], e.Gated)
			if held, first := c.wave(e.Gated), c.wave(e.Gates); held < first {
				c.warn(subject, "turn the edge round, or put "+e.Gates+" into an earlier wave",
					"%s (wave %d) waits for %s (wave %d), whose wave waits for it: neither is ever updated", e.Gated, held,
					e.Gates, first)
			}
		}
	}
	c.ring("edges", next)
	next = map[string][]string{}
	for i, e := range c.f.ChannelEdges {
		subject := fmt.Sprintf("channel edge %d", i)
		if e.Holds != "" && e.Holds != HoldsActive && e.Holds != HoldsOpening {
			c.wrong(subject, "use active or opening", "holds %.40q is unknown and would act as active", e.Holds)
		}
		_, gates := c.f.Channels[e.Gates]
		_, gated := c.f.Channels[e.Gated]
		switch {
		case !gates || !gated:
			c.wrong(subject, "correct the name", "from %q to %q names a channel that is not declared", e.Gates, e.Gated)
		case e.Gates == e.Gated:
			c.wrong(subject, "take it out", "channel %q waits for itself", e.Gated)
		default:
			next[e.Gates] = append(next[e.Gates], e.Gated)
		}
	}
	c.ring("channel edges", next)
}

// wave is the wave that a host is updated with; what no wave lists goes with the first.
func (c *checker) wave(host string) int {
	return max(0, slices.IndexFunc(c.f.Waves[c.f.Hosts[host].Channel],
		func(w Wave) bool { return slices.Contains(w.Hosts, host) }))
}

// ring reports one ring of a graph, by depth-first search with an explicit
// stack: edges come from documents that somebody else may have written.
func (c *checker) ring(subject string, next map[string][]string) {
	const open, done = 1, 2
	state := map[string]int{}
	for _, start := range sortedKeys(next) {
		stack := []string{start}
		for len(stack) > 0 {
			node := stack[len(stack)-1]
			if state[node] != 0 {
				stack = stack[:len(stack)-1]
				state[node] = done
				continue
			}
			state[node] = open
			for _, to := range next[node] {
				switch state[to] {
				case open:
					c.wrong(subject, "take one edge away", "%q and %q wait for each other in a ring", to, node)
					return
				case 0:
					stack = append(stack, to)
				}
			}
		}
	}
}

func (c *checker) policies() {
	for _, name := range sortedKeys(c.f.RolloutPolicies) {
		c.threshold("policy "+name, c.f.RolloutPolicies[name].FailureThreshold)
		for i, w := range c.f.RolloutPolicies[name].Waves {
			c.lowered(fmt.Sprintf("wave %d of policy %s", i, name), w.Selector)
		}
	}
}

func (c *checker) threshold(subject string, t *FailureThreshold) {
	switch {
	case t == nil:
	case t.MinHosts == nil && t.MinPercent == nil:
		c.wrong(subject, "give minHosts or minPercent", "failureThreshold says nothing")
	case t.MinHosts != nil && *t.MinHosts == 0:
		c.wrong(subject, "give at least 1", "failureThreshold.minHosts is 0, and the first failure counts anyway")
	case t.MinPercent != nil && (*t.MinPercent == 0 || *t.MinPercent > 100):
		c.wrong(subject, "give 1 to 100", "failureThreshold.minPercent %d is not a percentage that can be reached",
			*t.MinPercent)
	}
}

// lowered wants a selector in the five rules that a signed document carries. An
// evaluator that fills in what was not given says null for `not` and may say an
// empty list for `and`.
func (c *checker) lowered(subject string, s Selector) {
	if given(s.And) || given(s.Not) {
		c.wrong(subject, "lower the selector to a list of hosts",
			"uses `and` or `not`, which a signed document cannot carry: it would mean other hosts, or none")
	}
}

func (c *checker) budgets() {
	for i, b := range c.f.DisruptionBudgets {
		subject := fmt.Sprintf("disruption budget %d", i)
		c.lowered(subject, b.Selector)
		switch {
		case b.MaxInFlight == nil && b.MaxInFlightPct == nil:
			c.wrong(subject, "give maxInFlight or maxInFlightPct", "limits nothing")
		case b.MaxInFlight != nil && *b.MaxInFlight == 0:
			c.wrong(subject, "allow at least 1", "maxInFlight 0 would hold its hosts for ever")
		case b.MaxInFlightPct != nil && (*b.MaxInFlightPct == 0 || *b.MaxInFlightPct > 100):
			c.wrong(subject, "give 1 to 100", "maxInFlightPct %d is not a percentage that lets hosts through", *b.MaxInFlightPct)
		}
		if b.SlotUntil != "" && b.SlotUntil != SlotSoaked && b.SlotUntil != SlotConfirmed {
			c.wrong(subject, "use soaked or confirmed", "slotUntil %.40q is unknown and would act as soaked", b.SlotUntil)
		}
		if len(b.Selector.Select(c.f.Hosts)) == 0 {
			c.warn(subject, "correct its selector", "protects no host")
		}
	}
}

func sortedKeys[V any](m map[string]V) []string {
	keys := make([]string, 0, len(m))
	for k := range m {
		keys = append(keys, k)
	}
	sort.Strings(keys)
	return keys
}
