package fleet

import (
	"errors"
	"slices"
	"strings"
	"testing"

	"nixfleet/pki"
)

// TestShapeOfFleet: presence rules of artifacts.md §1 and §5, one change each.
func TestShapeOfFleet(t *testing.T) {
	doc := string(vector(t, "fleet.json"))
	for _, c := range []struct {
		name, old, with string
		ok              bool
	}{
		{"unknown member", `{"channelEdges"`, `{"aFutureMember":{"hosts":null},"channelEdges"`, true},
		{"other case is unknown", `{"channelEdges"`, `{"Hosts":null,"channelEdges"`, true},
		{"absent list D", `"disruptionBudgets"`, `"otherBudgets"`, true},
		{"absent reason N", `,"reason":"web first"`, ``, true},
		{"null reason N", `"reason":"web first"`, `"reason":null`, true},
		{"absent closure N", `"closureHash":"0a1b2c3d4f5g6h7i8j9k0l1m2n3p4q5r-nixos-system-web-01-25.11",`, ``, true},
		{"old names of channel edges", `"gated":"stable","gates":"edge"`, `"after":"stable","before":"edge"`, true},
		{"one old name of a channel edge", `"gated":"stable","gates":"edge"`, `"after":"stable","gates":"edge"`, true},
		{"both names of one end", `"gated":"stable","gates":"edge"`, `"after":"stable","gated":"stable","gates":"edge"`,
			false},
		{"both names, one null", `"gated":"stable","gates":"edge"`, `"after":null,"gated":"stable","gates":"edge"`, false},
		{"missing end", `"gated":"stable","gates":"edge"`, `"gates":"edge"`, false},
		{"number for an end", `"gated":"stable","gates":"edge"`, `"gated":1,"gates":"edge"`, false},
		{"null list D", `"edges":[{"gated":"db-01","gates":"web-02","reason":"web first"}]`, `"edges":null`, false},
		{"null in a list", `"tags":["db"],"tagsAny"`, `"tags":[null],"tagsAny"`, false},
		{"null host", `"web-01":{`, `"web-09":null,"web-01":{`, false},
		{"null channel", `"channels":{`, `"channels":{"beta":null,`, false},
		{"null policy", `"rolloutPolicies":{`, `"rolloutPolicies":{"none":null,`, false},
		{"null waves", `"waves":{"edge":[]`, `"waves":{"edge":null`, false},
		{"missing hosts R", `"hosts":{"db-01"`, `"hostz":{"db-01"`, false},
		{"missing channel of a host R", `"channel":"edge",`, ``, false},
		{"negative number", `"freshnessWindow":180`, `"freshnessWindow":-180`, false},
		{"fraction", `"freshnessWindow":180`, `"freshnessWindow":180.5`, false},
		{"more than 32 bits", `"freshnessWindow":180`, `"freshnessWindow":4294967296`, false},
		{"number as text", `"freshnessWindow":180`, `"freshnessWindow":"180"`, false},
		{"unknown failure policy", `"onHealthFailure":"halt"`, `"onHealthFailure":"Halt"`, false},
		{"unknown mode parses", `"mode":"enforce"`, `"mode":"enforced"`, true},
		{"repeated member", `{"channelEdges"`, `{"hosts":{},"channelEdges"`, false},
	} {
		changed := strings.Replace(doc, c.old, c.with, 1)
		if changed == doc {
			t.Fatalf("%s: nothing was changed", c.name)
		}
		_, err := ParseFleet([]byte(changed))
		if (err == nil) != c.ok {
			t.Errorf("%s: %v", c.name, err)
		}
		if err != nil && !errors.Is(err, pki.ErrShape) && !errors.Is(err, pki.ErrDuplicateKey) {
			t.Errorf("%s: %v is of no known kind", c.name, err)
		}
	}
}

func TestDocumentsThatAreNone(t *testing.T) {
	for name, parse := range map[string]func([]byte) error{
		"fleet":       func(d []byte) error { _, err := ParseFleet(d); return err },
		"manifest":    func(d []byte) error { _, err := ParseManifest(d); return err },
		"head":        func(d []byte) error { _, err := ParseHead(d); return err },
		"revocations": func(d []byte) error { _, err := ParseRevocations(d); return err },
		"nonces":      func(d []byte) error { _, err := ParseNonces(d); return err },
	} {
		for _, doc := range []string{"", "null", " null ", "[]", "{}", `"x"`, "1", "{", "{}{}", "\xff", "\xef\xbb\xbf{}"} {
			if parse([]byte(doc)) == nil {
				t.Errorf("%s: %q was accepted", name, doc)
			}
		}
	}
}

func TestSelector(t *testing.T) {
	hosts := map[string]*Host{
		"a": {Channel: "edge", Tags: []string{"web", "eu"}},
		"b": {Channel: "edge", Tags: []string{"web"}},
		"c": {Channel: "stable", Tags: []string{"db", "eu"}},
		"d": {Channel: "stable", Tags: []string{}},
	}
	edge := "edge"
	for _, c := range []struct {
		name string
		s    Selector
		want []string
	}{
		{"empty matches nothing", Selector{}, []string{}},
		{"all tags", Selector{Tags: []string{"web", "eu"}}, []string{"a"}},
		{"any tag", Selector{TagsAny: []string{"db", "web"}}, []string{"a", "b", "c"}},
		{"names, undeclared and repeated ones", Selector{Hosts: []string{"d", "x", "b", "d"}}, []string{"b", "d"}},
		{"channel", Selector{Channel: &edge}, []string{"a", "b"}},
		{"all", Selector{All: true}, []string{"a", "b", "c", "d"}},
		{"any one rule is enough", Selector{Tags: []string{"db"}, Hosts: []string{"a"}}, []string{"a", "c"}},
	} {
		if got := c.s.Select(hosts); !slices.Equal(got, c.want) {
			t.Errorf("%s: %v, want %v", c.name, got, c.want)
		}
		for name, h := range hosts {
			if c.s.Matches(name, h) != slices.Contains(c.want, name) {
				t.Errorf("%s: Matches and Select differ about %s", c.name, name)
			}
		}
	}
	other := "edge"
	if !(Selector{Channel: &edge}).Equal(Selector{Channel: &other, Tags: []string{}}) ||
		(Selector{}).Equal(Selector{All: true}) ||
		(Selector{Tags: []string{"x"}}).Equal(Selector{TagsAny: []string{"x"}}) ||
		(Selector{Channel: &edge}).Equal(Selector{}) {
		t.Error("equality of selectors")
	}
}

func TestCheck(t *testing.T) {
	f, _ := vectorFleet(t)
	if problems := Check(f); len(problems) != 0 {
		t.Fatalf("the contract's example has problems: %v", problems)
	}
	line := f.Hosts["web-01"].Pubkey
	number := func(n uint32) *uint32 { return &n }
	text := func(s string) *string { return &s }
	channel := func(f *Fleet, name string, change func(*Channel)) {
		c := f.Channels[name]
		change(&c)
		f.Channels[name] = c
	}
	for _, c := range []struct {
		name   string
		change func(*Fleet)
		want   string // in the problem
		fatal  bool
	}{
		{"unknown channel", func(f *Fleet) { f.Hosts["web-01"].Channel = "egde" }, `"egde"`, true},
		{"host that is a path", func(f *Fleet) { f.Hosts["../x"] = f.Hosts["web-01"] }, "host ../x", true},
		{"host without a name", func(f *Fleet) { f.Hosts[""] = f.Hosts["web-01"] }, "cannot stand", true},
		{"short closure C3", func(f *Fleet) { f.Hosts["web-01"].ClosureHash = text("0a1b2c3d4f5g6h7i8j9k0l1m2n3p4q5r") },
			"full base name", true},
		{"no pubkey", func(f *Fleet) { f.Hosts["web-01"].Pubkey = nil }, "neither enrol", false},
		{"bad pubkey", func(f *Fleet) { f.Hosts["web-01"].Pubkey = text("ssh-ed25519 AAAA") }, "host web-01", true},
		{"shared pubkey", func(f *Fleet) { f.Hosts["web-02"].Pubkey = line }, "host web-01", true},
		{"unknown policy", func(f *Fleet) { channel(f, "edge", func(c *Channel) { c.RolloutPolicy = "fats" }) },
			`"fats"`, true},
		{"misspelt mode", func(f *Fleet) { channel(f, "stable", func(c *Channel) { c.Compliance.Mode = "enforced" }) },
			`"enforced"`, true},
		{"window too short", func(f *Fleet) { channel(f, "edge", func(c *Channel) { c.FreshnessWindow = 119 }) },
			"119", true},
		{"window too short for an interval that wraps around",
			func(f *Fleet) { channel(f, "edge", func(c *Channel) { c.SigningIntervalMinutes = 1 << 31 }) }, "2147483648", true},
		{"windows that cannot be read", func(f *Fleet) {
			channel(f, "edge", func(c *Channel) {
				c.Maintenance = &Maintenance{Windows: []MaintenanceWindow{{"whenever", 60}}}
			})
		}, `"whenever"`, true},
		{"emergency", func(f *Fleet) { channel(f, "edge", func(c *Channel) { c.Emergency = "CVE-2026-0001" }) },
			"neither a maintenance window nor the end of a freeze", false},
		{"empty channel", func(f *Fleet) { f.Channels["beta"] = f.Channels["edge"] }, "has no host", false},
		{"channel without a name", func(f *Fleet) { f.Channels[""] = f.Channels["edge"] }, "cannot be a file's name", true},
		{"channel that is a path", func(f *Fleet) { f.Channels["../x"] = f.Channels["edge"] }, "channel ../x", true},
		{"channel of two lines", func(f *Fleet) { f.Channels["a\nb"] = f.Channels["edge"] }, "channel a\nb", true},
		{"wave with a foreign host C11", func(f *Fleet) { f.Waves["edge"] = []Wave{{Hosts: []string{"db-01"}}} },
			"never soak", true},
		{"wave with an unknown host", func(f *Fleet) { f.Waves["edge"] = []Wave{{Hosts: []string{"db-9"}}} }, `"db-9"`, true},
		{"waves of an unknown channel", func(f *Fleet) { f.Waves["egde"] = []Wave{} }, "waves of egde", true},
		{"edge to an unknown host", func(f *Fleet) { f.Edges[0].Gates = "web-9" }, `"web-9"`, true},
		{"edge to itself", func(f *Fleet) { f.Edges[0].Gates = "db-01" }, "waits for itself", true},
		{"edge across channels", func(f *Fleet) { f.Edges[0].Gates = "web-01" }, "different channels", true},
		{"edge against the waves", func(f *Fleet) { f.Edges[0].Gated, f.Edges[0].Gates = f.Edges[0].Gates, f.Edges[0].Gated },
			"web-02 (wave 0) waits for db-01 (wave 1)", false},
		{"ring of hosts", func(f *Fleet) { f.Edges = append(f.Edges, Edge{Gated: "web-02", Gates: "db-01"}) }, "ring", true},
		{"channel edge to an unknown one", func(f *Fleet) { f.ChannelEdges[0].Gates = "egde" }, `"egde"`, true},
		{"channel edge to itself", func(f *Fleet) { f.ChannelEdges[0].Gates = "stable" }, "waits for itself", true},
		{"ring of channels", func(f *Fleet) {
			f.ChannelEdges = append(f.ChannelEdges, ChannelEdge{Gates: "stable", Gated: "edge"})
		}, "ring", true},
		{"channel edge that holds another thing", func(f *Fleet) { f.ChannelEdges[0].Holds = "all" }, `"all"`, true},
		{"threshold of nothing", func(f *Fleet) {
			p := f.RolloutPolicies["staged"]
			p.FailureThreshold = &FailureThreshold{}
			f.RolloutPolicies["staged"] = p
		}, "says nothing", true},
		{"threshold of 101 %", func(f *Fleet) {
			p := f.RolloutPolicies["staged"]
			p.FailureThreshold = &FailureThreshold{MinPercent: number(101)}
			f.RolloutPolicies["staged"] = p
		}, "101", true},
		{"slot until another time", func(f *Fleet) { f.DisruptionBudgets[0].SlotUntil = "healthy" }, `"healthy"`, true},
		{"budget without limit", func(f *Fleet) { f.DisruptionBudgets[0].MaxInFlight = nil }, "limits nothing", true},
		{"budget of none", func(f *Fleet) { f.DisruptionBudgets[0].MaxInFlight = number(0) }, "for ever", true},
		{"budget of 101 %", func(f *Fleet) { f.DisruptionBudgets[0].MaxInFlightPct = number(101) }, "101", true},
		{"budget that protects nobody C14", func(f *Fleet) { f.DisruptionBudgets[0].Selector = Selector{} },
			"protects no host", false},
		{"budget with not C14", func(f *Fleet) { f.DisruptionBudgets[0].Selector.Not = []byte(`{"all":true}`) },
			"lower the selector", true},
		{"policy wave with and C14", func(f *Fleet) {
			f.RolloutPolicies["staged"].Waves[1].Selector.And = []byte(`[{"all":true}]`)
		}, "wave 1 of policy staged", true},
	} {
		f, _ := vectorFleet(t)
		c.change(f)
		found := slices.ContainsFunc(Check(f), func(p Problem) bool {
			return strings.Contains(p.String(), c.want) && p.Fatal == c.fatal && p.Mend != ""
		})
		if !found {
			t.Errorf("%s: not found in %v", c.name, Check(f))
		}
	}
}

// TestSelectorLanguageIsDropped_C14: `and` and `not` of a hand-made document are
// seen by Check and reach no manifest; null and an empty `and` are as good as absent.
func TestSelectorLanguageIsDropped_C14(t *testing.T) {
	doc := strings.Replace(string(vector(t, "fleet.json")), `"maxInFlightPct":null,"selector":{"all":false`,
		`"maxInFlightPct":null,"selector":{"not":{"tags":["db"]},"and":[ ],"all":false`, 1)
	f, err := ParseFleet([]byte(doc))
	if err != nil {
		t.Fatal(err)
	}
	if problems := Check(f); len(problems) != 1 || !problems[0].Fatal {
		t.Errorf("problems %v", problems)
	}
	f.DisruptionBudgets[0].Selector.Not = []byte("null")
	if problems := Check(f); len(problems) != 0 {
		t.Errorf("what was not given: problems %v", problems)
	}
	id, _, err := RolloutID(mustProject(t, f, "stable"))
	if err != nil || id != stableVectorID {
		t.Errorf("the manifest is %s, %v", id, err)
	}
}

func TestRingOfManyHosts(t *testing.T) {
	f := largeFleet(t, 300)
	// A dense graph without a ring, whose nodes are reached on many ways.
	for i := 1; i < 100; i++ {
		for j := max(0, i-9); j < i; j++ {
			f.Edges = append(f.Edges, Edge{Gated: hostName(i), Gates: hostName(j)})
		}
	}
	ring := func() bool {
		return slices.ContainsFunc(Check(f), func(p Problem) bool { return p.Subject == "edges" })
	}
	if ring() {
		t.Error("a ring where there is none")
	}
	f.Edges = append(f.Edges, Edge{Gated: hostName(3), Gates: hostName(99)})
	if !ring() {
		t.Error("the ring was not found")
	}
}
