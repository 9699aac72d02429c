package fleet

import (
	"bytes"
	"os"
	"testing"

	"nixfleet/pki"
)

// fuzzParser feeds a parser with documents of all kinds: it never panics, and
// what it accepts can be written and read again without a change.
func fuzzParser[T any](f *testing.F, parse func([]byte) (T, error), check func(T)) {
	for _, name := range []string{"fleet.json", "manifest-stable.json", "revocations.json", "nonces.json"} {
		doc, err := os.ReadFile("testdata/" + name)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(doc)
	}
	f.Add([]byte(`{"schemaVersion":1,"kind":"head","hosts":{"a":null},"waves":{"x":[{"hosts":[null]}]},"meta":{}}`))
	f.Add([]byte(`{"hosts":{"a":{"tags":[],"closureHash":"\ud800"}},"hosts":{}}`))
	f.Fuzz(func(t *testing.T, doc []byte) {
		v, err := parse(doc)
		if err != nil {
			return
		}
		if check != nil {
			check(v)
		}
		once, err := pki.Marshal(v)
		if err != nil {
			t.Fatalf("accepted and cannot be written: %v", err)
		}
		again, err := parse(once)
		if err != nil {
			t.Fatalf("written and cannot be read: %v\n%s", err, once)
		}
		if twice, err := pki.Marshal(again); err != nil || !bytes.Equal(once, twice) {
			t.Fatalf("changes when written twice: %v\n%s\n%s", err, once, twice)
		}
	})
}

func FuzzParseFleet(f *testing.F) {
	fuzzParser(f, ParseFleet, func(v *Fleet) {
		Check(v)
		for channel := range v.Channels {
			if m, any, err := Project(v, fleetVectorHash, channel); err == nil && any {
				HostTree(m)
				Intent(v, m)
			}
		}
	})
}

func FuzzParseManifest(f *testing.F)    { fuzzParser(f, ParseManifest, nil) }
func FuzzParseHead(f *testing.F)        { fuzzParser(f, ParseHead, nil) }
func FuzzParseRevocations(f *testing.F) { fuzzParser(f, ParseRevocations, nil) }
func FuzzParseNonces(f *testing.F)      { fuzzParser(f, ParseNonces, nil) }
