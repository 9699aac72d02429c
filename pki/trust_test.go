package pki

import (
	"errors"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"
)

const trustKey = `{"algorithm":"ed25519","public":"0EqyMnQrtKs6E2i9RhXk5tAiSrcaAWuvhSCjMsl3hzc="}`

func trustDoc(members string) string {
	return `{"schemaVersion":1,"ciReleaseKey":{"current":` + trustKey + `}` + members + `}`
}

func TestParseTrustRefuses(t *testing.T) {
	for name, doc := range map[string]string{
		"empty":             ``,
		"schema 0":          strings.Replace(trustDoc(""), `:1,`, `:0,`, 1),
		"schema 2":          strings.Replace(trustDoc(""), `:1,`, `:2,`, 1),
		"schema as text":    strings.Replace(trustDoc(""), `:1,`, `:"1",`, 1),
		"no schema":         `{"ciReleaseKey":{}}`,
		"no release slot":   `{"schemaVersion":1}`,
		"release slot null": `{"schemaVersion":1,"ciReleaseKey":null}`,
		"key without half":  `{"schemaVersion":1,"ciReleaseKey":{"current":{"algorithm":"ed25519"}}}`,
		"key as text":       `{"schemaVersion":1,"ciReleaseKey":{"current":"0Eqy"}}`,
		"bad time":          `{"schemaVersion":1,"ciReleaseKey":{"retireAt":"soon"}}`,
		"cache keys null":   trustDoc(`,"cacheKeys":null`),
		"null in a list":    trustDoc(`,"cacheKeys":[null]`),
		"duplicate slot":    trustDoc(`,"ciReleaseKey":{}`),
		"truncated":         trustDoc("")[:40],
		"too deep":          trustDoc(`,"x":` + strings.Repeat("[", 200) + strings.Repeat("]", 200)),
	} {
		if trust, _, err := ParseTrust([]byte(doc)); err == nil {
			t.Errorf("%s: read as %+v", name, trust)
		}
	}
}

func TestTrustBothSpellings_T10(t *testing.T) {
	for _, c := range []struct {
		name, members string
		root          string
		issuers       []string
		refused       bool
	}{
		{name: "neither"},
		{name: "the binaries'", members: `,"rootCaPem":"R","issuanceCaPems":["I"]`, root: "R", issuers: []string{"I"}},
		{name: "the modules'", members: `,"rootCAPem":"R","issuanceCAPems":["I"]`, root: "R", issuers: []string{"I"}},
		{name: "both", members: `,"rootCaPem":"R","rootCAPem":"R","issuanceCaPems":["I"],"issuanceCAPems":["I"]`, root: "R",
			issuers: []string{"I"}},
		{name: "one null", members: `,"rootCaPem":null,"rootCAPem":"R"`, root: "R"},
		{name: "roots disagree", members: `,"rootCaPem":"R","rootCAPem":"S"`, refused: true},
		{name: "issuers disagree", members: `,"issuanceCaPems":["I"],"issuanceCAPems":["J"]`, refused: true},
		{name: "one list empty", members: `,"issuanceCaPems":[],"issuanceCAPems":["J"]`, refused: true},
		{name: "other list empty", members: `,"issuanceCaPems":["J"],"issuanceCAPems":[]`, refused: true},
		{name: "list null", members: `,"issuanceCAPems":null`, refused: true},
	} {
		trust, warnings, err := ParseTrust([]byte(trustDoc(c.members)))
		if c.refused {
			if err == nil {
				t.Errorf("%s: read as %+v", c.name, trust)
			}
			continue
		}
		if err != nil || len(warnings) > 0 {
			t.Errorf("%s: %v, %q", c.name, err, warnings)
			continue
		}
		root := ""
		if trust.RootCAPEM != nil {
			root = *trust.RootCAPEM
		}
		if root != c.root || strings.Join(trust.IssuanceCAPEMs, ",") != strings.Join(c.issuers, ",") {
			t.Errorf("%s: root %q, issuers %q", c.name, root, trust.IssuanceCAPEMs)
		}
		// What we write holds both spellings and reads as the same.
		doc, err := trust.Marshal()
		if err != nil {
			t.Fatal(err)
		}
		for _, name := range []string{`"rootCaPem"`, `"rootCAPem"`, `"issuanceCaPems"`, `"issuanceCAPems"`} {
			if strings.Count(string(doc), name) != 1 {
				t.Errorf("%s: %s is not written once in %s", c.name, name, doc)
			}
		}
		again, warnings, err := ParseTrust(doc)
		if err != nil || len(warnings) > 0 || !sameTrust(again, trust) {
			t.Errorf("%s: read back as %+v, %q, %v", c.name, again, warnings, err)
		}
	}
}

// sameTrust: no list and an empty list are the same.
func sameTrust(a, b *Trust) bool {
	x, y := *a, *b
	for _, list := range []*[]string{&x.CacheKeys, &x.IssuanceCAPEMs, &y.CacheKeys, &y.IssuanceCAPEMs} {
		if len(*list) == 0 {
			*list = nil
		}
	}
	return reflect.DeepEqual(x, y)
}

// A misspelt member is heard of instead of being an empty list for ever.
func TestTrustWarnings_T10(t *testing.T) {
	for _, c := range []struct{ doc, want string }{ // want "" for no warning
		{trustDoc(`,"cacheKey":["k"]`), `"cacheKey" is not read; did you mean "cacheKeys"?`},
		{trustDoc(`,"cachekeys":["k"]`), `did you mean "cacheKeys"?`},
		{trustDoc(`,"rootCAPEM":"R"`), `did you mean "rootCaPem"?`},
		{trustDoc(`,"orgRotoKey":{}`), `did you mean "orgRootKey"?`},
		{trustDoc(`,"comment":"hello"`), `"comment" is not read`},
		{trustDoc(`,"orgRootKey":{"rejectbefore":null}`),
			`"orgRootKey.rejectbefore" is not read; did you mean "rejectBefore"?`},
		{
			trustDoc(
				`,"orgRootKey":{"current":{"algorithm":"ed25519","public":"oJql9HpnWYAv+VX43C0qFKXJnSO+l/hkEn/5ODRVpPA=","comment":"x"}}`), `"orgRootKey.current.comment"`},
		{trustDoc(`,"orgRootKey":{"successor":` + trustKey + `}`), `"orgRootKey.successor" is ignored without retireAt`},
		{trustDoc(`,"orgRootKey":{"previous":{"algorithm":"ml-dsa-65","public":"AA=="}}`),
			`"orgRootKey.previous" verifies nothing`},
		{trustDoc(`,"orgRootKey":{"current":{"algorithm":"ed25519","public":"AA=="}}`),
			`"orgRootKey.current" verifies nothing`},
		{trustDoc(`,"orgRootKey":{"successor":` + trustKey + `,"retireAt":"2027-01-01T00:00:00Z"}`), ""},
		{trustDoc(`,"orgRootKey":null`), ""},
	} {
		_, warnings, err := ParseTrust([]byte(c.doc))
		if err != nil {
			t.Errorf("%s: %v", c.doc, err)
			continue
		}
		if c.want == "" && len(warnings) > 0 ||
			c.want != "" && (len(warnings) != 1 || !strings.Contains(warnings[0], c.want)) {
			t.Errorf("%s: got %q, want %q", c.doc, warnings, c.want)
		}
	}
}

func TestKeySlotRotation(t *testing.T) {
	now := mustTime(t, noon)
	key := ciKey(t).Public()
	at := func(d time.Duration) *Timestamp { ts := At(now.Add(d)); return &ts }
	for _, c := range []struct {
		name   string
		slot   *KeySlot
		due    bool
		active int
	}{
		{"nil", nil, false, 0},
		{"empty", &KeySlot{}, false, 0},
		{"before", &KeySlot{Current: &key, Successor: &key, RetireAt: at(1)}, false, 2},
		{"at", &KeySlot{Current: &key, Successor: &key, RetireAt: at(0)}, true, 1},
		{"after", &KeySlot{Current: &key, Successor: &key, RetireAt: at(-1)}, true, 1},
		{"no successor", &KeySlot{Current: &key, Previous: &key, RetireAt: at(-1)}, false, 2},
		{"no time", &KeySlot{Current: &key, Successor: &key}, false, 1},
	} {
		if c.slot.RotationDue(now) != c.due || len(c.slot.Active(now)) != c.active {
			t.Errorf("%s: due %v, %d keys", c.name, c.slot.RotationDue(now), len(c.slot.Active(now)))
		}
	}
}

func TestLoadTrust(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "trust.json")
	if _, _, err := LoadTrust(path); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("no file: %v", err)
	}
	if err := os.WriteFile(path, []byte(trustDoc("")), 0o644); err != nil {
		t.Fatal(err)
	}
	if _, _, err := LoadTrust(path); err != nil {
		t.Error(err)
	}
	if err := os.WriteFile(path, []byte(trustDoc(strings.Repeat(" ", maxSecret))), 0o644); err != nil {
		t.Fatal(err)
	}
	if _, _, err := LoadTrust(path); err == nil || !strings.Contains(err.Error(), path) {
		t.Errorf("oversized: %v", err)
	}
}

func FuzzParseTrust(f *testing.F) {
	f.Add([]byte(trustDoc("")))
	f.Add(readFile(f, "contract", "trust.json"))
	f.Add([]byte(trustDoc(`,"issuanceCaPems":["a"],"issuanceCAPems":["a"],"rootCAPem":"b","cacheKey":[]`)))
	f.Fuzz(func(t *testing.T, doc []byte) {
		trust, _, err := ParseTrust(doc)
		if err != nil {
			return
		}
		if trust.SchemaVersion != 1 {
			t.Fatalf("schema %d passed", trust.SchemaVersion)
		}
		written, err := trust.Marshal()
		if err != nil {
			t.Fatal(err)
		}
		again, _, err := ParseTrust(written)
		if err != nil || !sameTrust(again, trust) {
			t.Fatalf("%s\nwas written as\n%s: %v", doc, written, err)
		}
	})
}
