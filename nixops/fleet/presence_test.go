package fleet

import (
	"encoding/json"
	"slices"
	"strconv"
	"strings"
	"testing"

	"nixfleet/pki"
)

// member is one row of the contract's tables: where it is in an example, its
// code (artifacts.md §1) and what it holds.
type member struct{ path, code, holds string }

// wrong are values that no member of the kind may have.
var wrong = map[string][]string{
	"text":   {`5`, `true`, `[]`, `{}`},
	"time":   {`5`, `""`, `"soon"`, `"2026-03-01"`, `"2026-03-01T12:00:00"`},
	"number": {`"5"`, `-1`, `5.5`, `4294967296`, `1e10`, `true`, `[]`},
	"yes":    {`1`, `"true"`, `{}`},
	"list":   {`{}`, `"x"`, `5`, `[null]`},
	"map":    {`[]`, `"x"`, `5`},
	"object": {`[]`, `"x"`, `5`},
	"policy": {`5`, `""`, `"Halt"`, `"rollback"`},
}

// right are values that a signed member of the kind may have.
var right = map[string][]string{
	"text":   {`""`, `"\u0000\ud83d\ude00"`},
	"time":   {`"2026-03-01 12:00:00.1+02"`},
	"number": {`0`, `4294967295`, `5.0`, `5e0`, `-0`},
	"yes":    {`true`, `false`},
	"policy": {`"halt"`, `"rollback-and-halt"`},
}

// anywhere changes the value at a path of map keys and list places; nil takes
// the member out.
func anywhere(t *testing.T, doc []byte, path string, value *string) []byte {
	t.Helper()
	var root any
	if err := json.Unmarshal(doc, &root); err != nil {
		t.Fatal(err)
	}
	at := root
	steps := strings.Split(path, "/")
	for _, step := range steps[:len(steps)-1] {
		switch v := at.(type) {
		case map[string]any:
			at = v[step]
		case []any:
			i, err := strconv.Atoi(step)
			if err != nil {
				t.Fatal(err)
			}
			at = v[i]
		}
	}
	last, parent := steps[len(steps)-1], at.(map[string]any)
	if _, there := parent[last]; !there {
		t.Fatalf("%s is not in the example", path)
	}
	if delete(parent, last); value != nil {
		parent[last] = json.RawMessage(*value)
	}
	out, err := json.Marshal(root)
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// Every member of every signed artifact: absent, null, of another type, at the
// ends of its range, as a verifier reads it (canonical form first).
func TestPresenceOfEveryMember(t *testing.T) {
	meta := []member{
		{"meta", "R", "object"}, {"meta/schemaVersion", "R", "number"}, {"meta/signedAt", "N", "time"},
		{"meta/ciCommit", "N", "text"}, {"meta/signatureAlgorithm", "O", "text"}, {"schemaVersion", "R", "number"},
	}
	selector := func(at string) []member {
		return []member{
			{at, "R", "object"}, {at + "/tags", "D", "list"}, {at + "/tagsAny", "D", "list"}, {at + "/hosts", "D", "list"},
			{at + "/channel", "N", "text"}, {at + "/all", "D", "yes"},
		}
	}
	for _, a := range []struct {
		name    string
		doc     []byte
		parse   func([]byte) error
		members [][]member
	}{
		{"fleet", wholeFleet(t), func(d []byte) error { _, err := ParseFleet(d); return err }, [][]member{meta, {
			{"hosts", "R", "map"}, {"channels", "R", "map"}, {"rolloutPolicies", "D", "map"}, {"waves", "R", "map"},
			{"edges", "D", "list"}, {"channelEdges", "D", "list"}, {"disruptionBudgets", "D", "list"},
			{"hosts/db-01/system", "R", "text"}, {"hosts/db-01/tags", "R", "list"}, {"hosts/db-01/channel", "R", "text"},
			{"hosts/db-01/closureHash", "N", "text"}, {"hosts/db-01/pubkey", "N", "text"}, {"hosts/db-01/pin", "O", "object"},
			{"hosts/db-01/pin/commit", "R", "text"}, {"hosts/db-01/pin/reason", "R", "text"},
			{"hosts/db-01/pin/expiresAt", "O", "time"},
			{"channels/stable/rolloutPolicy", "R", "text"}, {"channels/stable/reconcileIntervalMinutes", "R", "number"},
			{"channels/stable/freshnessWindow", "R", "number"}, {"channels/stable/signingIntervalMinutes", "R", "number"},
			{"channels/stable/compliance", "R", "object"}, {"channels/stable/compliance/frameworks", "R", "list"},
			{"channels/stable/compliance/mode", "R", "text"},
			{"rolloutPolicies/staged/strategy", "R", "text"}, {"rolloutPolicies/staged/waves", "R", "list"},
			{"rolloutPolicies/staged/waves/0/soakMinutes", "R", "number"},
			{"rolloutPolicies/staged/waves/0/soakSeconds", "O", "number"},
			{"rolloutPolicies/staged/healthGate", "D", "object"}, {"rolloutPolicies/staged/onHealthFailure", "R", "policy"},
			{"rolloutPolicies/staged/healthGate/systemdFailedUnits", "O", "object"},
			{"rolloutPolicies/staged/healthGate/systemdFailedUnits/max", "R", "number"},
			{"rolloutPolicies/staged/healthGate/complianceProbes", "O", "object"},
			{"rolloutPolicies/staged/healthGate/complianceProbes/required", "R", "yes"},
			{"waves/stable", "", "list"}, {"waves/stable/0/hosts", "R", "list"}, {"waves/stable/0/soakMinutes", "R", "number"},
			{"waves/stable/0/soakSeconds", "O", "number"},
			{"edges/0/gated", "R", "text"}, {"edges/0/gates", "R", "text"}, {"edges/0/reason", "N", "text"},
			{"channelEdges/0/gates", "R", "text"}, {"channelEdges/0/gated", "R", "text"}, {"channelEdges/0/reason", "N", "text"},
			{"disruptionBudgets/0/maxInFlight", "N", "number"}, {"disruptionBudgets/0/maxInFlightPct", "N", "number"},
			{"members", "O", "object"}, {"members/revocations", "N", "text"}, {"members/bootstrapNonces", "N", "text"},
			{"members/heads", "O", "list"},
		}, selector("rolloutPolicies/staged/waves/0/selector"), selector("disruptionBudgets/0/selector")}},
		{"manifest", vector(t, "manifest-stable.json"), func(d []byte) error { _, err := ParseManifest(d); return err },
			[][]member{meta, {
				{"displayName", "R", "text"}, {"channel", "R", "text"}, {"channelRef", "R", "text"},
				{"fleetResolvedHash", "R", "text"},
				{"hostSet", "R", "list"}, {"hostSet/0/hostname", "R", "text"}, {"hostSet/0/targetClosure", "R", "text"},
				{"hostSet/0/waveIndex", "R", "number"}, {"healthGate", "R", "object"}, {"complianceFrameworks", "R", "list"},
				{"disruptionBudgets", "D", "list"}, {"disruptionBudgets/0/hosts", "R", "list"},
				{"disruptionBudgets/0/maxInFlight", "N", "number"}, {"disruptionBudgets/0/maxInFlightPct", "N", "number"},
			}, selector("disruptionBudgets/0/selector")}},
		{"head", wholeHead(t), func(d []byte) error { _, err := ParseHead(d); return err }, [][]member{meta, {
			{"channel", "R", "text"}, {"rolloutId", "R", "text"}, {"channelRef", "R", "text"}, {"displayName", "R", "text"},
			{"fleetResolvedHash", "R", "text"}, {"intent", "R", "text"}, {"openedAt", "R", "time"},
			{"freshnessWindow", "R", "number"},
			{"confirmWindowSecs", "R", "number"}, {"leaseSecs", "R", "number"}, {"onHealthFailure", "R", "policy"},
			{"complianceMode", "R", "text"}, {"hostSetRoot", "R", "text"}, {"hostCount", "R", "number"},
		}}},
		{"revocations", vector(t, "revocations.json"), func(d []byte) error { _, err := ParseRevocations(d); return err },
			[][]member{meta, {
				{"revocations", "R", "list"}, {"revocations/0/hostname", "R", "text"}, {"revocations/0/notBefore", "R", "time"},
				{"revocations/0/reason", "N", "text"}, {"revocations/0/revokedBy", "N", "text"},
			}}},
		{"nonces", vector(t, "nonces.json"), func(d []byte) error { _, err := ParseNonces(d); return err }, [][]member{meta, {
			{"bootstrapNonces", "R", "list"}, {"bootstrapNonces/0/nonce", "R", "text"},
			{"bootstrapNonces/0/hostname", "R", "text"},
			{"bootstrapNonces/0/expiresAt", "R", "time"}, {"bootstrapNonces/0/mintedAt", "N", "time"},
			{"bootstrapNonces/0/mintedBy", "N", "text"},
		}}},
	} {
		check := func(m member, what string, value *string, want bool) {
			t.Helper()
			canonical, err := pki.Canonicalize(anywhere(t, a.doc, m.path, value))
			if err != nil {
				t.Fatal(err)
			}
			if err := a.parse(canonical); (err == nil) != want {
				t.Errorf("%s: %s (%s) %s: %v", a.name, m.path, m.code, what, err)
			}
		}
		for _, m := range slices.Concat(a.members...) {
			null := "null"
			check(m, "absent", nil, m.code != "R")
			check(m, "null", &null, m.code == "N" || m.code == "O")
			for _, value := range wrong[m.holds] {
				check(m, "is "+value, &value, false)
			}
			for _, value := range right[m.holds] {
				check(m, "is "+value, &value, true)
			}
		}
	}
}

// wholeFleet is the contract's example with a value for what it leaves out.
func wholeFleet(t *testing.T) []byte {
	t.Helper()
	f, _ := vectorFleet(t)
	seconds := uint32(600)
	f.Waves["stable"][0].SoakSeconds = &seconds
	p := f.RolloutPolicies["staged"]
	p.Waves[0].SoakSeconds = &seconds
	p.HealthGate.ComplianceProbes = &ComplianceProbes{Required: true}
	f.RolloutPolicies["staged"] = p
	f.Members = &Members{Heads: []string{"stable"}}
	doc, err := pki.Marshal(f)
	if err != nil {
		t.Fatal(err)
	}
	return doc
}

func wholeHead(t *testing.T) []byte {
	t.Helper()
	f, _ := vectorFleet(t)
	h, err := ProjectHead(f, mustProject(t, f, "stable"), stableVectorID, nil, 360e9, 300e9)
	if err != nil {
		t.Fatal(err)
	}
	doc, err := pki.Marshal(h)
	if err != nil {
		t.Fatal(err)
	}
	return doc
}
