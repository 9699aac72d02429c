package fleet

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/go-json-experiment/json"
)

// v1's mkFleet leaves `and` and `not` in the policies, whose waves nobody reads, and leaves both words empty everywhere
// else: such a document is signed with the hosts that they mean. A budget is read, and is refused.
func TestPoliciesAreLowered_C14(t *testing.T) {
	// The first of the two waves of the policy `staged`.
	const plain = `"waves":[{"selector":{"all":false,"channel":null,"hosts":[],"tags":["web"],"tagsAny":[]},` +
		`"soakMinutes":10}`
	wave := func(selector string) map[string]any {
		t.Helper()
		text := string(vector(t, "fleet.json"))
		if strings.Count(text, plain) != 1 {
			t.Fatal("the vector has another policy")
		}
		var doc map[string]any
		text = strings.Replace(text, plain, `"waves":[{"selector":`+selector+`,"soakMinutes":10}`, 1)
		if err := json.Unmarshal([]byte(text), &doc); err != nil {
			t.Fatal(err)
		}
		return doc
	}
	for _, c := range [][2]string{
		{`{"and":[],"not":null,"tags":["web"],"tagsAny":[],"hosts":[],"channel":null,"all":false}`, ""},
		{`{"not":{"tags":["web"]},"tags":[],"tagsAny":[],"hosts":[],"channel":null,"all":true}`, "[db-01]"},
		{`{"and":[{"tags":["web"]},{"not":{"channel":"edge"}}],"tags":["db"]}`, "[web-02]"},
		{`{"and":[{"tags":["web"]},{"and":[],"not":{"hosts":["web-02"],"and":[{"all":true},{"tags":["db"]}]}}]}`,
			"[web-01 web-02]"},
		{`{"not":{"all":true}}`, "[]"},
	} {
		given, want := c[0], c[1]
		doc := wave(given)
		lowered, err := (&Declaration{doc}).LowerPolicies()
		if err != nil {
			t.Fatalf("%s: %v", given, err)
		}
		text, err := json.Marshal(doc)
		if err != nil {
			t.Fatal(err)
		}
		f, err := ParseFleet(text)
		if err != nil {
			t.Fatalf("%s: %v", given, err)
		}
		if fatal := slices.ContainsFunc(Check(f), func(p Problem) bool { return p.Fatal }); fatal {
			t.Errorf("%s: %v", given, Check(f))
		}
		got := f.RolloutPolicies["staged"].Waves[0].Selector
		if want == "" {
			if len(lowered) != 0 {
				t.Errorf("%s: lowered %v", given, lowered)
			}
			continue
		}
		if fmt.Sprint(got.Hosts) != want || got.And != nil || got.Not != nil {
			t.Errorf("%s: signed as %+v, want %s", given, got, want)
		}
		if len(lowered) != 1 || lowered[0].Hosts != len(got.Hosts) {
			t.Errorf("%s: lowered %v", given, lowered)
		}
	}
	for _, wrong := range []string{`{"not":[1]}`, `{"and":[{"tags":"web"}]}`} {
		if lowered, err := (&Declaration{wave(wrong)}).LowerPolicies(); err == nil {
			t.Errorf("%s: lowered %v", wrong, lowered)
		}
	}
}
