package fleet

import (
	"bytes"
	"encoding/base64"
	"math"
	"testing"
	"time"

	"nixfleet/pki"
)

// Hashes and signatures of the contract's own vectors (artifacts.md §11).
const (
	fleetVectorHash = "551036413ab6cf917848cfb23ec08349f26e7adf73bb9c1e7f4a0914a2a899fc"
	stableVectorID  = "3c5da1d73cca1c7f21990e857f1ce67ba1025443bffac40d135d6425798df95e"
	edgeVectorID    = "5e9cd0880e454084148e24c14513aba54f7b5529ed25daa4543e7a84d24c66e2"
)

func TestArtifactVectors(t *testing.T) {
	f, fleetHash := vectorFleet(t)
	projected := func(channel string) []byte {
		m, any, err := Project(f, fleetHash, channel)
		if err != nil || !any {
			t.Fatalf("project %s: %v, %v", channel, any, err)
		}
		_, canonical, err := RolloutID(m)
		if err != nil {
			t.Fatal(err)
		}
		return canonical
	}
	for _, v := range []struct {
		name      string
		canonical []byte
		length    int
		hash      string
		signature string
	}{
		{"fleet", vector(t, "fleet.json"), 2151, fleetVectorHash,
			"2lbeZiax/QZO7SdI4cJEwKkyFodKOkxDmpiEwAnAM9zZPuSNPdEnuHHdI8PCS1fxoUy6DQ6YEV5XaTyWWiNGCQ=="},
		{"manifest stable, projected", projected("stable"), 842, stableVectorID,
			"lS9HkdroTK9T0qclzEm4NAPCZOJMiHP+65MAr9UpM9d2svEiVQo6rM9VXyacKbPQl1AGbw+BBVZJZn+05ZiBCA=="},
		{"manifest edge, projected", projected("edge"), 691, edgeVectorID,
			"jCknBpHijco2v21ZELWoRNgpGaj5YSA6YX3gEFs+FdGLGjpHjWunAGj7/2tiseKjobfqBW6B1BTOGKtjFyssAA=="},
		{"revocations", vector(t, "revocations.json"), 278,
			"cf020f20ebee9b23a1407dda40a24046f39f1d859603e40de3af6c58040b148b",
			"20lV1uvsBE6975E/BtrQ9/lxh8jnAJve0ynvbOuYozTS4TozfIADrEpmFpu7yzHtDFxNYEW80aYnzVgD1zrdDQ=="},
		{"nonces", vector(t, "nonces.json"), 334, "4ee51148725921a2a4f71e3d0e767ab09d4d406e6a7d00cb3d5550be2857f8b4",
			"FVvcvElP4q/JW34eIau3SKC7YET5GVfi5ghXjqqevW04ensXS2oKR5SVhmHCiovd7fCQ78W3sa8n6ydgY1c5Bw=="},
	} {
		t.Run(v.name, func(t *testing.T) {
			if len(v.canonical) != v.length {
				t.Errorf("canonical length %d, the contract says %d", len(v.canonical), v.length)
			}
			if got := pki.HashHex(v.canonical); got != v.hash {
				t.Errorf("hash %s, the contract says %s", got, v.hash)
			}
			sig, err := ciKey(t).Sign(v.canonical)
			if err != nil {
				t.Fatal(err)
			}
			if got := base64.StdEncoding.EncodeToString(sig); got != v.signature {
				t.Errorf("signature %s, the contract says %s", got, v.signature)
			}
		})
	}
	if !bytes.Equal(projected("stable"), vector(t, "manifest-stable.json")) {
		t.Error("the projected manifest differs from the contract's example")
	}
}

// TestTypesRewriteVectors: reading and writing a document of v1 changes no byte,
// so nothing of it is lost to a type.
func TestTypesRewriteVectors(t *testing.T) {
	rewrite := func(v any, err error) []byte {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		doc, err := pki.Marshal(v)
		if err != nil {
			t.Fatal(err)
		}
		return doc
	}
	for name, parse := range map[string]func([]byte) (any, error){
		"revocations.json":     func(d []byte) (any, error) { return ParseRevocations(d) },
		"nonces.json":          func(d []byte) (any, error) { return ParseNonces(d) },
		"manifest-stable.json": func(d []byte) (any, error) { return ParseManifest(d) },
	} {
		doc := vector(t, name)
		if got := rewrite(parse(doc)); !bytes.Equal(got, doc) {
			t.Errorf("%s\nread    %s\nwritten %s", name, doc, got)
		}
	}
	f, _ := vectorFleet(t)
	again, err := ParseFleet(rewrite(f, nil))
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(rewrite(again, nil), rewrite(f, nil)) {
		t.Error("the fleet document changes when it is written twice")
	}
}

func TestLoadV1ReleaseOfVectors(t *testing.T) {
	d := newDraft(t)
	d.members, d.heads = false, false
	files := d.sign()
	for name, doc := range map[string][]byte{FleetName: vector(t, "fleet.json")} {
		sig, err := d.key.Sign(doc)
		if err != nil {
			t.Fatal(err)
		}
		files[name].Data, files[name+SignatureSuffix].Data = doc, sig
	}
	f, hash := vectorFleet(t)
	for _, channel := range []string{"stable", "edge"} {
		m, _, err := Project(f, hash, channel)
		if err != nil {
			t.Fatal(err)
		}
		id, _, err := RolloutID(m)
		if err != nil {
			t.Fatal(err)
		}
		d.put(files, ManifestName(id), m)
	}
	r, err := load(t, files)
	if err != nil {
		t.Fatal(err)
	}
	if r.FleetHash != fleetVectorHash || r.Channels["stable"].RolloutID != stableVectorID ||
		r.Channels["edge"].RolloutID != edgeVectorID {
		t.Errorf("fleet %s, stable %s, edge %s", r.FleetHash, r.Channels["stable"].RolloutID, r.Channels["edge"].RolloutID)
	}
	if c := r.Channels["stable"]; c.Head != nil || !c.OpenedAt.Equal(signingTime) || c.Index["web-02"] != 1 {
		t.Errorf("stable: head %v, opened %v, index %v", c.Head, c.OpenedAt, c.Index)
	}
	if r.Commit != "4f1c0a9be27d5538c6a1f09d3b7e2460d8a5c913" || !r.SignedAt.Equal(signingTime) {
		t.Errorf("commit %s signed at %s", r.Commit, r.SignedAt)
	}
}

func TestSoakSecondsWin(t *testing.T) {
	seconds := uint32(5)
	if got := (Wave{SoakMinutes: 1, SoakSeconds: &seconds}).Soak(); got != 5*time.Second {
		t.Errorf("soak %s", got)
	}
	if got := (Wave{SoakMinutes: 2}).Soak(); got != 2*time.Minute {
		t.Errorf("soak %s", got)
	}
	// The largest numbers are the longest times, not times that wrapped around.
	const longest = math.MaxUint32 * time.Second
	most := uint32(math.MaxUint32)
	for _, w := range []Wave{{SoakMinutes: most}, {SoakMinutes: most/60 + 1}, {SoakSeconds: &most}} {
		if got := w.Soak(); got != longest {
			t.Errorf("soak of %+v: %s", w, got)
		}
	}
	if got := Minutes(most / 60); got != time.Duration(most/60)*time.Minute {
		t.Errorf("window %s", got)
	}
}
