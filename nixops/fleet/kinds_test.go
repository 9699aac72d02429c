package fleet

import (
	"crypto/ed25519"
	"encoding/base64"
	"errors"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/go-json-experiment/json"

	"nixfleet/pki"
)

// verifiers are those of all documents that the release key signs.
var verifiers = map[string]func(slot *pki.KeySlot, body, sig []byte, now time.Time) error{
	KindFleet:       verifier(ParseFleet),
	KindManifest:    verifier(ParseManifest),
	KindHead:        verifier(ParseHead),
	KindRevocations: verifier(ParseRevocations),
	KindNonces:      verifier(ParseNonces),
}

func verifier[T any, P interface {
	*T
	Metadata() pki.Metadata
}](parse func([]byte) (P, error)) func(*pki.KeySlot, []byte, []byte, time.Time) error {
	return func(slot *pki.KeySlot, body, sig []byte, now time.Time) error {
		_, _, err := Verify(slot, body, sig, now, AnyAge, parse)
		return err
	}
}

// documents are the members of one good document of each kind.
func documents(t *testing.T) map[string]map[string]any {
	t.Helper()
	docs := map[string]map[string]any{}
	for kind, name := range map[string]string{
		KindFleet: "fleet.json", KindManifest: "manifest-stable.json", KindRevocations: "revocations.json",
		KindNonces: "nonces.json",
	} {
		doc, err := parseObject(vector(t, name))
		if err != nil {
			t.Fatal(err)
		}
		docs[kind] = doc
	}
	f, err := ParseFleet(vector(t, "fleet.json"))
	if err != nil {
		t.Fatal(err)
	}
	m, _, err := Project(f, strings.Repeat("0", 64), "stable")
	if err != nil {
		t.Fatal(err)
	}
	h, err := ProjectHead(f, m, strings.Repeat("1", 64), nil, time.Minute, time.Minute)
	if err != nil {
		t.Fatal(err)
	}
	body, err := pki.Marshal(h)
	if err != nil {
		t.Fatal(err)
	}
	if docs[KindHead], err = parseObject(body); err != nil {
		t.Fatal(err)
	}
	return docs
}

// A document is of one kind, for every verifier: with the mark of another kind, or with another kind's name, nobody
// believes it, whatever it is signed with.
func TestADocumentIsOneKind(t *testing.T) {
	key := ed25519.NewKeyFromSeed(make([]byte, 32))
	slot := &pki.KeySlot{Current: &pki.PublicKey{Algorithm: pki.AlgorithmEd25519,
		Public: base64.StdEncoding.EncodeToString(key.Public().(ed25519.PublicKey))}}
	now := time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)
	believes := func(kind string, doc map[string]any) error {
		t.Helper()
		body, err := pki.Marshal(doc)
		if err != nil {
			t.Fatal(err)
		}
		return verifiers[kind](slot, body, ed25519.Sign(key, body), now)
	}
	docs := documents(t)
	for kind, doc := range docs {
		for verifier := range verifiers {
			if err := believes(verifier, doc); (err == nil) != (kind == verifier) {
				t.Errorf("a %s, verified as %s: %v", kind, verifier, err)
			}
		}
		for other, mark := range marks {
			for _, value := range []any{docs[other][mark], nil, []any{}} {
				two := with(doc, mark, value)
				if err := believes(kind, two); other != kind && !errors.Is(err, pki.ErrShape) {
					t.Errorf("a %s that has %s, too (%T): %v", kind, mark, value, err)
				}
			}
			named := with(doc, "kind", other)
			if err := believes(kind, named); (err == nil) != (other == kind) {
				t.Errorf("a %s of kind %q: %v", kind, other, err)
			}
		}
		for _, value := range []any{nil, 7.0, map[string]any{}, "", strings.ToUpper(kind)} {
			if err := believes(kind, with(doc, "kind", value)); err == nil {
				t.Errorf("a %s of kind %v was believed", kind, value)
			}
		}
		// What else is not known is ignored, as in v1.
		if err := believes(kind, with(doc, "Hosts", map[string]any{"hostSet": nil})); err != nil {
			t.Errorf("a %s with an unknown member: %v", kind, err)
		}
	}
	all := map[string]any{}
	for _, doc := range docs {
		for name, value := range doc {
			all[name] = value
		}
	}
	for kind := range verifiers {
		if err := believes(kind, all); err == nil {
			t.Errorf("a document of all kinds was believed as %s", kind)
		}
	}
}

func with(doc map[string]any, name string, value any) map[string]any {
	changed := map[string]any{name: value}
	for n, v := range doc {
		if n != name {
			changed[n] = v
		}
	}
	return changed
}

// What is not known is left out of a declaration at every level, and named once for all places of one kind.
func TestDropUnknown(t *testing.T) {
	d, err := ParseDeclaration(vector(t, "fleet.json"))
	if err != nil {
		t.Fatal(err)
	}
	good, err := d.Bytes()
	if err != nil {
		t.Fatal(err)
	}
	if dropped := d.DropUnknown(); len(dropped) > 0 {
		t.Errorf("of the contract's example: %q", dropped)
	}
	if same, err := d.Bytes(); err != nil || string(same) != string(good) {
		t.Errorf("the contract's example changed: %s, %v", same, err)
	}
	bad := strings.NewReplacer(
		`"system":`, `"owner":{"hostSet":[]},"system":`,
		`"frameworks":["nis2"]`, `"frameworks":["nis2"],"strict":1`,
		`"soakMinutes":10}`, `"soakMinutes":10,"x/y":null}`,
		`"maxInFlight":1`, `"maxInFlight":1,"burst":2`,
		`"reason":"canary"`, `"reason":"canary","since":1`,
		`"reason":"schema freeze"`, `"reason":"schema freeze","by":"x"`,
		`"signatureAlgorithm":`, `"tool":"x","signatureAlgorithm":`,
	).Replace(string(good))
	bad = strings.TrimSuffix(bad, "}") + `,"hostSet":[],"bootstrapNonces":[],"kind":"head"}`
	if d, err = ParseDeclaration([]byte(bad)); err != nil {
		t.Fatal(err)
	}
	want := []string{"bootstrapNonces", "channelEdges[].since", "channels.*.compliance.strict",
		"disruptionBudgets[].burst", "hostSet", "hosts.*.owner (3 times)", "hosts.*.pin.by", "kind", "meta.tool",
		"rolloutPolicies.*.waves[].x/y", "waves.*[].x/y"}
	if dropped := d.DropUnknown(); !slices.Equal(dropped, want) {
		t.Errorf("dropped %q\nwant    %q", dropped, want)
	}
	if same, err := d.Bytes(); err != nil || string(same) != string(good) {
		t.Errorf("left %s, %v\nwant %s", same, err, good)
	}
	var list List
	if err := json.Unmarshal([]byte(`[{"hostname":"a","ticket":7},{"ticket":8},"x"]`), &list); err != nil {
		t.Fatal(err)
	}
	if dropped := DropUnknown[Revocation](list, "revocations"); !slices.Equal(dropped,
		[]string{"revocations[].ticket (2 times)"}) {
		t.Errorf("dropped %q of %v", dropped, list)
	}
}
