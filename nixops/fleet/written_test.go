package fleet

import (
	"strings"
	"testing"

	"nixfleet/pki"
)

// The contract's examples are written already: not a byte changes.
func TestWrittenIsTheContractsForm(t *testing.T) {
	for _, c := range []struct{ name, hash string }{
		{"fleet.json", "551036413ab6cf917848cfb23ec08349f26e7adf73bb9c1e7f4a0914a2a899fc"},
		{"revocations.json", "cf020f20ebee9b23a1407dda40a24046f39f1d859603e40de3af6c58040b148b"},
		{"nonces.json", "4ee51148725921a2a4f71e3d0e767ab09d4d406e6a7d00cb3d5550be2857f8b4"},
	} {
		doc, err := parseObject(vector(t, c.name))
		if err != nil {
			t.Fatal(err)
		}
		var got []byte
		switch c.name {
		case "fleet.json":
			got, err = written(doc, ParseFleet)
		case "revocations.json":
			got, err = written(doc, ParseRevocations)
		case "nonces.json":
			got, err = written(doc, ParseNonces)
		}
		if err != nil || pki.HashHex(got) != c.hash {
			t.Errorf("%s: %s, %v", c.name, got, err)
		}
	}
}

// Each code of artifacts.md §1 as a writer has it, from a declaration that leaves
// out all that may be left out, and from one that says null instead. What is not
// known is not written.
func TestWrittenFillsIn(t *testing.T) {
	const sparse = `{"schemaVersion":1,"hosts":{"pin":{"system":"x","tags":[],"channel":"gates"EXTRA}},` +
		`"channels":{},"waves":{"gates":[{"hosts":[],"soakMinutes":1WAVE}]},` +
		`"rolloutPolicies":{"p":{"strategy":"s","waves":[{"selector":{SELECTOR},"soakMinutes":0}],"onHealthFailure":"halt"GATE}},` +
		`"channelEdges":[{"before":"a","after":"b","since":null}],"unknown":{"pin":1,"later":null},"meta":{"schemaVersion":1ALGORITHM}}`
	const want = `{"channelEdges":[{"gated":"b","gates":"a","reason":null}],"channels":{},"disruptionBudgets":[],"edges":[],` +
		`"hosts":{"pin":{"channel":"gates","closureHash":null,"pubkey":null,"system":"x","tags":[]}},` +
		`"meta":{"ciCommit":null,"schemaVersion":1,"signedAt":null},` +
		`"rolloutPolicies":{"p":{"healthGate":{},"onHealthFailure":"halt","strategy":"s","waves":[{"selector":{"all":false,"channel":null,"hosts":[],"tags":[],"tagsAny":[]},"soakMinutes":0}]}},` +
		`"schemaVersion":1,"waves":{"gates":[{"hosts":[],"soakMinutes":1}]}}`
	for name, with := range map[string][]string{
		"absent": {"EXTRA", "", "WAVE", "", "SELECTOR", "", "GATE", "", "ALGORITHM", ""},
		"null": {"EXTRA", `,"pin":null,"closureHash":null,"healthChecks":null,"rebootPolicy":null`, "WAVE",
			`,"soakSeconds":null`,
			"SELECTOR", `"channel":null,"and":[],"not":null`, "GATE", `,"healthGate":{"systemdFailedUnits":null}`, "ALGORITHM",
			`,"signatureAlgorithm":null`},
	} {
		doc, err := parseObject([]byte(strings.NewReplacer(with...).Replace(sparse)))
		if err != nil {
			t.Fatal(err)
		}
		got, err := written(doc, ParseFleet)
		if err != nil || string(got) != want {
			t.Errorf("%s: %v\ngot  %s\nwant %s", name, err, got, want)
		}
	}
	doc := map[string]any{"schemaVersion": 1,
		"revocations": []any{map[string]any{"hostname": "a", "notBefore": "2026-03-01 13:00:00.5+01", "ticket": 7}},
		"meta":        map[string]any{"schemaVersion": 1}}
	got, err := written(doc, ParseRevocations)
	if list := `"revocations":[{"hostname":"a","notBefore":"2026-03-01T12:00:00.500Z","reason":null,"revokedBy":null}]`; err != nil || !strings.Contains(string(got), list) {
		t.Errorf("got %s, %v", got, err)
	}
}
