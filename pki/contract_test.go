package pki

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"encoding/base64"
	"encoding/json"
	"testing"
	"time"
)

// The throw-away keys of artifacts.md §11: one byte repeated 32 times.
func seedKey(t testing.TB, b byte) *PrivateKey {
	t.Helper()
	k, err := ParsePrivateKey(bytes.Repeat([]byte{b}, 32))
	if err != nil {
		t.Fatal(err)
	}
	return k
}

func ciKey(t testing.TB) *PrivateKey  { return seedKey(t, 0x11) }
func orgKey(t testing.TB) *PrivateKey { return seedKey(t, 0x22) }

func decode64(t testing.TB, s string) []byte {
	t.Helper()
	b, err := base64.StdEncoding.Strict().DecodeString(s)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func mustTime(t testing.TB, s string) time.Time {
	t.Helper()
	ts, err := ParseTimestamp(s)
	if err != nil {
		t.Fatal(err)
	}
	return ts.Time
}

// edgeManifest is the stable manifest changed as the contract's words say.
func edgeManifest(t testing.TB) []byte {
	t.Helper()
	var m map[string]any
	if err := json.Unmarshal(readFile(t, "contract", "manifest-stable.json"), &m); err != nil {
		t.Fatal(err)
	}
	m["displayName"], m["channel"] = "edge@4f1c0a9b", "edge"
	m["hostSet"] = []any{map[string]any{"hostname": "web-01", "waveIndex": 0,
		"targetClosure": "0a1b2c3d4f5g6h7i8j9k0l1m2n3p4q5r-nixos-system-web-01-25.11"}}
	m["healthGate"], m["complianceFrameworks"] = map[string]any{}, []any{}
	doc, err := Marshal(m)
	if err != nil {
		t.Fatal(err)
	}
	return doc
}

// contractArtifacts is the table of artifacts.md §11.
func contractArtifacts(t testing.TB) []struct {
	name      string
	doc       []byte
	length    int
	hash, sig string
} {
	return []struct {
		name      string
		doc       []byte
		length    int
		hash, sig string
	}{
		{"fleet", readFile(t, "contract", "fleet.json"), 2151,
			"551036413ab6cf917848cfb23ec08349f26e7adf73bb9c1e7f4a0914a2a899fc",
			"2lbeZiax/QZO7SdI4cJEwKkyFodKOkxDmpiEwAnAM9zZPuSNPdEnuHHdI8PCS1fxoUy6DQ6YEV5XaTyWWiNGCQ=="},
		{"manifest stable", readFile(t, "contract", "manifest-stable.json"), 842,
			"3c5da1d73cca1c7f21990e857f1ce67ba1025443bffac40d135d6425798df95e",
			"lS9HkdroTK9T0qclzEm4NAPCZOJMiHP+65MAr9UpM9d2svEiVQo6rM9VXyacKbPQl1AGbw+BBVZJZn+05ZiBCA=="},
		{"manifest edge", edgeManifest(t), 691,
			"5e9cd0880e454084148e24c14513aba54f7b5529ed25daa4543e7a84d24c66e2",
			"jCknBpHijco2v21ZELWoRNgpGaj5YSA6YX3gEFs+FdGLGjpHjWunAGj7/2tiseKjobfqBW6B1BTOGKtjFyssAA=="},
		{"revocations", readFile(t, "contract", "revocations.json"), 278,
			"cf020f20ebee9b23a1407dda40a24046f39f1d859603e40de3af6c58040b148b",
			"20lV1uvsBE6975E/BtrQ9/lxh8jnAJve0ynvbOuYozTS4TozfIADrEpmFpu7yzHtDFxNYEW80aYnzVgD1zrdDQ=="},
		{"nonces", readFile(t, "contract", "bootstrap-nonces.json"), 334,
			"4ee51148725921a2a4f71e3d0e767ab09d4d406e6a7d00cb3d5550be2857f8b4",
			"FVvcvElP4q/JW34eIau3SKC7YET5GVfi5ghXjqqevW04ensXS2oKR5SVhmHCiovd7fCQ78W3sa8n6ydgY1c5Bw=="},
	}
}

func TestContractArtifacts(t *testing.T) {
	ci := ciKey(t)
	public := ci.Public()
	slot := &KeySlot{Current: &public}
	for _, a := range contractArtifacts(t) {
		t.Run(a.name, func(t *testing.T) {
			canonical, err := Canonicalize(a.doc)
			if err != nil {
				t.Fatal(err)
			}
			if len(canonical) != a.length {
				t.Errorf("canonical length %d, want %d", len(canonical), a.length)
			}
			if got := HashHex(canonical); got != a.hash {
				t.Errorf("hash %s, want %s", got, a.hash)
			}
			if got, err := CanonicalHash(a.doc); err != nil || got != a.hash {
				t.Errorf("hash of the document %s, %v", got, err)
			}
			sig, err := ci.Sign(canonical)
			if err != nil || base64.StdEncoding.EncodeToString(sig) != a.sig {
				t.Errorf("signature %x, %v; want %s", sig, err, a.sig)
			}
			if !public.Verify(canonical, decode64(t, a.sig)) {
				t.Error("the contract's signature does not verify")
			}
			v, err := VerifyArtifact(slot, a.doc, sig, mustTime(t, "2026-03-01T12:30:00Z"), time.Hour, metaOf)
			if err != nil || v.Hash != a.hash || !bytes.Equal(v.Canonical, canonical) || v.Key != public {
				t.Errorf("verified as %+v, %v", v, err)
			}
		})
	}
}

func TestContractHashOfEmptyText(t *testing.T) {
	const want = "12ae32cb1ec02d01eda3581b127c1fee3b0dc53572ed6baf239721a03d82e126"
	if got, err := CanonicalHash([]byte(`""`)); err != nil || got != want {
		t.Errorf("got %s, %v", got, err)
	}
}

// A TPM signs with S above n/2 half of the time.
func TestContractHighS_T7(t *testing.T) {
	key := PublicKey{AlgorithmP256,
		"WzaJDay9fJqWu3Sh7iiz0tdbcuCaIO8lz45v2KnwNQ0OFL7Y1GgqNNg1OL3/W5bommZm7A21dF0C+hIQBy33Wg=="}
	sig := decode64(t, "sc8Yt9DFb4fbsLMUu4kCJSyscb9+Thh2of1h7Fk99qPWOlP3ALN5jFlIqETGlLeCuI4amVSM6U/GhnRTbDW6jg==")
	v, err := VerifyArtifact(&KeySlot{Current: &key}, readFile(t, "contract", "revocations.json"), sig,
		mustTime(t, "2026-03-01T12:00:00Z"), 0, metaOf)
	if err != nil || v.Hash != "cf020f20ebee9b23a1407dda40a24046f39f1d859603e40de3af6c58040b148b" {
		t.Errorf("got %+v, %v", v, err)
	}
	// It is the key of the scalar that the contract names.
	scalar, err := ecdsa.ParseRawPrivateKey(elliptic.P256(), bytes.Repeat([]byte{0x44}, 32))
	if err != nil {
		t.Fatal(err)
	}
	if got := (&PrivateKey{scalar}).Public(); got != key {
		t.Errorf("public half %+v", got)
	}
}

// The hosts' keys of the fleet example, and the fingerprint in the token.
func TestContractHostKeys(t *testing.T) {
	for _, c := range []struct {
		seed byte
		line string
	}{
		{0x31, "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIEgHWll+choVbi4Hmd5cwMUyTcbn6vHN1GJQho7FMhXd"},
		{0x32, "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIF4hLAmA5LOfwJchE0qgIQk3Tt/SYMDT0Dy1AcjWVFep"},
		{0x33, "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIBfLefsrQSDysexl5BmNbgiyjoE/6wHkpACDm4XhgIDO"},
	} {
		public := seedKey(t, c.seed).Crypto().Public().(ed25519.PublicKey)
		if got := FormatHostKey(public, ""); got != c.line {
			t.Errorf("got %s, want %s", got, c.line)
		}
		if got, err := ParseHostKey(c.line); err != nil || !SameKey(got, public) {
			t.Errorf("%s: got %x, %v", c.line, got, err)
		}
	}
	db := seedKey(t, 0x33).Crypto().Public().(ed25519.PublicKey)
	if got := Fingerprint(db); got != "bI+GB9vocHemKimQzgfZSq90nfdvh7mOt4am0Q8DB2U=" {
		t.Errorf("fingerprint %s", got)
	}
}

func TestContractTrust(t *testing.T) {
	trust, warnings, err := ParseTrust(readFile(t, "contract", "trust.json"))
	if err != nil || len(warnings) > 0 {
		t.Fatalf("%v, %q", err, warnings)
	}
	if *trust.CIReleaseKey.Current != ciKey(t).Public() || *trust.OrgRootKey.Current != orgKey(t).Public() {
		t.Error("not the keys of the seeds")
	}
	if len(trust.CacheKeys) != 1 || trust.RootCAPEM != nil || len(trust.IssuanceCAPEMs) != 0 {
		t.Errorf("got %+v", trust)
	}
}

func TestContractToken(t *testing.T) {
	doc := readFile(t, "contract", "token.json")
	want, err := ParseToken(doc)
	if err != nil {
		t.Fatal(err)
	}
	db := seedKey(t, 0x33).Crypto().Public().(ed25519.PublicKey)
	got, err := MintToken(orgKey(t), Claims{
		Hostname:                  "db-01",
		ExpectedPubkeyFingerprint: Fingerprint(db),
		IssuedAt:                  At(mustTime(t, "2026-03-01T11:00:00Z")),
		ExpiresAt:                 At(mustTime(t, "2026-03-02T11:00:00Z")),
		Nonce:                     "5f0c1e7a9b3d42868e6fa1c7d2b09e34",
	})
	if err != nil || *got != *want {
		t.Fatalf("minted %+v, %v\nwant %+v", got, err, want)
	}
	a, errA := Canonicalize(doc)
	b, errB := Marshal(got)
	if errA != nil || errB != nil || !bytes.Equal(a, b) {
		t.Errorf("written as %s, %v, %v", b, errA, errB)
	}
	org := orgKey(t).Public()
	if err := got.Verify(&KeySlot{Current: &org}, mustTime(t, "2026-03-01T12:00:00Z")); err != nil {
		t.Error(err)
	}
}

// wire.md §7: the two signed payloads of web-02.
func TestContractEvidence(t *testing.T) {
	const id = "3c5da1d73cca1c7f21990e857f1ce67ba1025443bffac40d135d6425798df95e"
	for payload, want := range map[string]string{
		`{"hostname":"web-02","lastConfirmedAt":"2026-03-01T12:20:05.120Z","rolloutId":"` + id +
			`"}`: "bz0fmTj0o8vANRuDjsR76J6OWWXX2D15wMoVbtc5hj7OaiWjreY5cxLwadJSV4eOO2xoHBZrw9SFzVMo9hYqCQ==",
		`{"exitCode":null,"hostname":"web-02","phase":"switch-poll-timeout","rollout":"` + id +
			`","stderrTailSha256":"12ae32cb1ec02d01eda3581b127c1fee3b0dc53572ed6baf239721a03d82e126"}`: "amgGVVXhK6F3QEf/VjmeBStG14HfsbX3q8GvJoADHsnIxtmm9ajNGflOTUe+Yl3ZWXDC0Kfl6r6MDT16y+yvBQ==",
	} {
		canonical, err := Canonicalize([]byte(payload))
		if err != nil || string(canonical) != payload {
			t.Fatalf("%s, %v", canonical, err)
		}
		if sig, err := seedKey(t, 0x32).Sign(canonical); err != nil || base64.StdEncoding.EncodeToString(sig) != want {
			t.Errorf("%s: %x, %v", payload, sig, err)
		}
	}
}
