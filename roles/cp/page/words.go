package page

import (
	"fmt"
	"html/template"
	"maps"
	"net/url"
	"slices"
	"strings"
	"time"

	"nixfleet/pki"
	"nixfleet/roles/command"
	"nixfleet/roles/protocol"
)

// words are the functions of the templates.
func (p *Page) words() template.FuncMap {
	return template.FuncMap{
		"ago":    func(at any) *moment { return p.moment(at) },
		"short":  command.Short,
		"hash":   closureShort,
		"wave":   ordinal,
		"plural": command.Plural,
		"for":    func(secs uint32) string { return duration(time.Duration(secs) * time.Second) },
		"stands": func(e protocol.HostEntry) badge { return stands(&e) },
		"first":  firstWord,
		"label":  func(action string) string { return verbs[action].Label },
		"pages":  func() []entry { return entries },
	}
}

// entry is a page that every page links to. Views are the names of its templates.
type entry struct {
	Label, Place string
	Views        []string
}

// Is reports whether a view belongs to the entry.
func (e entry) Is(view string) bool { return slices.Contains(e.Views, view) }

var entries = []entry{
	{"Overview", "/", []string{"overview"}},
	{"Hosts", "/hosts", []string{"hosts", "host"}},
	{"Rollouts", "/rollouts", []string{"rollouts", "rollout"}},
	{"Releases", "/releases", []string{"releases", "release"}},
	{"Certificates", "/certificates", []string{"certificates"}},
	{"Events", "/events", []string{"event-log", "audit"}},
}

// moment is a time as the page shows it: relative, with the time itself for machines and for
// who looks closer.
type moment struct {
	At     time.Time
	Text   string
	Future bool
}

func (m *moment) Unix() int64   { return m.At.Unix() }
func (m *moment) Stamp() string { return m.At.UTC().Format(time.RFC3339) }

// moment takes any of the times of the API; nil for none.
func (p *Page) moment(at any) *moment {
	var t time.Time
	switch at := at.(type) {
	case time.Time:
		t = at
	case pki.Timestamp:
		t = at.Time
	case *pki.Timestamp:
		if at == nil {
			return nil
		}
		t = at.Time
	case protocol.OffsetTime:
		t = at.Time
	case *protocol.OffsetTime:
		if at == nil {
			return nil
		}
		t = at.Time
	case protocol.TraceTime:
		t = at.Time
	}
	if t.IsZero() {
		return nil
	}
	m := &moment{At: t}
	if left := t.Sub(p.now()); left > 0 {
		m.Text, m.Future = "in "+duration(left), true
	} else {
		m.Text = duration(-left) + " ago"
	}
	return m
}

// duration is a time in its two largest units, as live.js writes it.
func duration(d time.Duration) string {
	secs := int64(d.Round(time.Second) / time.Second)
	days, hours, minutes := secs/86400, secs/3600%24, secs/60%60
	two := func(a int64, unit string, b int64, smaller string) string {
		if b == 0 {
			return fmt.Sprintf("%d%s", a, unit)
		}
		return fmt.Sprintf("%d%s %d%s", a, unit, b, smaller)
	}
	switch {
	case days > 0:
		return two(days, "d", hours, "h")
	case hours > 0:
		return two(hours, "h", minutes, "m")
	case minutes > 0:
		return two(minutes, "m", secs%60, "s")
	}
	return fmt.Sprintf("%ds", secs)
}

// ordinal counts waves from 1.
func ordinal(wave any) uint32 {
	switch wave := wave.(type) {
	case uint32:
		return wave + 1
	case *uint32:
		return *wave + 1
	}
	return 0
}

// firstWord is the word that a text begins with.
func firstWord(text string) string {
	word, _, _ := strings.Cut(text, " ")
	return word
}

// closureShort is what tells two closures of a host apart.
func closureShort(closure any) string {
	var s string
	switch closure := closure.(type) {
	case string:
		s = closure
	case *string:
		if closure != nil {
			s = *closure
		}
	}
	if s == "" {
		return "–"
	}
	return s[:min(8, len(s))]
}

// find is the address of a list of hosts; its words are names and values in turn.
func find(words ...string) string {
	asked := url.Values{}
	for i := 0; i+1 < len(words); i += 2 {
		asked.Set(words[i], words[i+1])
	}
	return "/hosts?" + asked.Encode()
}

// tone is the colour of a word; the word itself always stands beside it.
type tone string

const (
	bad   tone = "bad"
	quiet tone = "quiet"
	move  tone = "move"
	wait  tone = "wait"
	good  tone = "good"
)

// tones are those of standings, of states of hosts and of states of rollouts.
var tones = map[string]tone{
	string(protocol.StandsFailed): bad, string(protocol.StandsSilent): quiet, string(protocol.StandsMoving): move,
	string(protocol.StandsWaiting): wait, string(protocol.StandsConverged): good,
	string(protocol.HostFailed): bad, string(protocol.HostReverted): bad, string(protocol.HostQueued): wait,
	string(protocol.HostDispatched): move, string(protocol.HostActivating): move, string(protocol.HostConfirmWindow): move,
	string(protocol.HostDeferred): wait, string(protocol.HostHealthy): move, string(protocol.HostSoaked): good,
	string(protocol.HostConverged): good, string(protocol.HostSkipped): quiet,
	string(protocol.RolloutPlanning): wait, string(protocol.RolloutExecuting): move, string(protocol.RolloutHalted): bad,
	string(protocol.RolloutReverting): bad, string(protocol.RolloutCancelled): quiet,
	string(protocol.RolloutSuperseded): quiet, paused: wait,
}

// paused is the state of a rollout that goes on when somebody says so.
const paused = "Paused"

// badge is a word with its colour.
type badge struct {
	Word string
	Tone tone
}

func badgeOf(word string) badge {
	t, ok := tones[word]
	if !ok {
		t = quiet
	}
	return badge{word, t}
}

// stands is how a host stands, with the state that says more.
func stands(e *protocol.HostEntry) badge {
	if e.Revoked() {
		return badge{"revoked", bad}
	}
	return standing(e.Standing)
}

// counted are the standings in the order in which the page counts them.
var counted = []protocol.Standing{protocol.StandsConverged, protocol.StandsMoving, protocol.StandsWaiting,
	protocol.StandsSilent, protocol.StandsFailed}

// standing is a standing in the page's words.
func standing(s protocol.Standing) badge {
	word := string(s)
	if s == protocol.StandsConverged {
		word = protocol.AsDeclared
	}
	return badge{word, tones[string(s)]}
}

// share is one part of a bar: how many, from where to where in hundredths of its width.
type share struct {
	Badge       badge
	N           int
	From, Width float64
	Link        string
}

// bar is a stacked bar with the words that say the same.
type bar struct {
	Shares []share
	Of     int
}

// Label is the bar for who does not see it.
func (b bar) Label() string {
	var parts []string
	for _, s := range b.Shares {
		parts = append(parts, fmt.Sprintf("%d %s", s.N, s.Badge.Word))
	}
	return fmt.Sprintf("%s: %s", command.Plural(b.Of, "host"), command.OrNothing(parts))
}

func (b *bar) add(word badge, n int, link string) {
	if n > 0 {
		b.Shares = append(b.Shares, share{Badge: word, N: n, Link: link})
		b.Of += n
	}
}

// laid gives the parts their widths.
func (b *bar) laid() bar {
	from := 0.0
	for i := range b.Shares {
		s := &b.Shares[i]
		s.From, s.Width = from, 100*float64(s.N)/float64(b.Of)
		from += s.Width
	}
	return *b
}

// countsBar is how hosts stand, each part with the list of them; what are further words of
// that list's address.
func countsBar(c protocol.HostCounts, what ...string) bar {
	b := &bar{}
	for _, s := range counted {
		b.add(standing(s), c.Of(s), find(append([]string{"state", string(s)}, what...)...))
	}
	return b.laid()
}

// statesBar is how the hosts of a wave stand; the states are in the order of a host's life.
func statesBar(states map[string]int, what ...string) bar {
	b, left := &bar{}, maps.Clone(states)
	add := func(state string) {
		b.add(badgeOf(state), left[state], find(append([]string{"state", strings.ToLower(state)}, what...)...))
		delete(left, state)
	}
	for i := range protocol.HostStates {
		add(string(protocol.HostStates[len(protocol.HostStates)-1-i]))
	}
	for _, state := range slices.Sorted(maps.Keys(left)) {
		add(state)
	}
	return b.laid()
}
