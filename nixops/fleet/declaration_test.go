package fleet

import (
	"bytes"
	"errors"
	"slices"
	"strings"
	"testing"
	"time"

	"nixfleet/pki"
)

// declared is a fleet of two channels as an evaluator may write it, with members that are not known here.
const declared = `{"schemaVersion":1,"hosts":{
"web-01":{"system":"x86_64-linux","tags":[],"channel":"stable","closureHash":null,"pubkey":null,
  "pin":{"commit":"9d3e7b5a1c0f2846e7d9b1350a6c8f2e4b7d9013","reason":"r","expiresAt":"2026-03-01T12:00:00Z"}},
"web-02":{"system":"x86_64-linux","tags":[],"channel":"edge","closureHash":null,"pubkey":null,
  "pin":{"commit":"9d3e7b5a1c0f2846e7d9b1350a6c8f2e4b7d9013","reason":"r"}},
"db-01":{"system":"x86_64-linux","tags":[],"channel":"stable","closureHash":null,"pubkey":null}},
"channels":{},"rolloutPolicies":{"p":{"strategy":"s","healthGate":{},"onHealthFailure":"halt",
  "waves":[{"selector":{"all":true},"soakMinutes":0,"soakSeconds":61}]}},
"waves":{"stable":[{"hosts":["web-02","web-01","ghost"],"soakMinutes":0,"soakSeconds":120},{"hosts":["db-01"],"soakMinutes":7}]},
"edges":[],"channelEdges":[],"disruptionBudgets":[],"later":{"kept":[1,2.5]},
"meta":{"schemaVersion":1,"signedAt":null,"ciCommit":null,"note":"kept"}}`

func parseDeclared(t *testing.T, text string) *Declaration {
	t.Helper()
	d, err := ParseDeclaration([]byte(text))
	if err != nil {
		t.Fatal(err)
	}
	return d
}

func TestDeclarationOfHosts(t *testing.T) {
	d := parseDeclared(t, declared)
	if names := d.HostNames(); !slices.Equal(names, []string{"db-01", "web-01", "web-02"}) || d.HasHost("ghost") {
		t.Errorf("hosts %v", names)
	}
	const closure = "2c3d4f5g6h7i8j9k0l1m2n3p4q5r6s7v-nixos"
	if err := d.SetClosure("db-01", closure); err != nil {
		t.Fatal(err)
	}
	for host, name := range map[string]string{"db-01": "not a closure", "ghost": closure} {
		if err := d.SetClosure(host, name); err == nil {
			t.Errorf("%s got %q", host, name)
		}
	}
	f, err := d.Fleet()
	if err != nil || f.Hosts["db-01"].ClosureHash == nil || *f.Hosts["db-01"].ClosureHash != closure {
		t.Errorf("%+v, %v", f, err)
	}
}

func TestExpiredPinsAreDropped(t *testing.T) {
	end := time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)
	for _, c := range []struct {
		at   time.Time
		want []string
	}{{end.Add(-time.Nanosecond), nil}, {end, []string{"web-01"}}} {
		d := parseDeclared(t, declared)
		got, err := d.DropExpired(c.at)
		if err != nil || !slices.Equal(got, c.want) {
			t.Errorf("at %s: %v, %v", c.at, got, err)
		}
		pin, err := d.Pin("web-01")
		if err != nil || (pin == nil) != (c.want != nil) {
			t.Errorf("at %s: pin %v, %v", c.at, pin, err)
		}
		if pin, err := d.Pin("web-02"); err != nil || pin == nil || pin.ExpiresAt != nil {
			t.Errorf("a pin without an end: %v, %v", pin, err)
		}
	}
	for _, commit := range []string{"main", "9d3e7b5", "9d3e7b5a1c0f2846e7d9b1350a6c8f2e4b7d9013&x=1", ""} {
		d := parseDeclared(t, strings.ReplaceAll(declared, "9d3e7b5a1c0f2846e7d9b1350a6c8f2e4b7d9013", commit))
		if _, err := d.DropExpired(end); !errors.Is(err, ErrPin) {
			t.Errorf("pinned to %q: %v", commit, err)
		}
	}
	d := parseDeclared(t, strings.ReplaceAll(declared, "2026-03-01T12:00:00Z", "tomorrow"))
	if _, err := d.DropExpired(end); err == nil {
		t.Error("a pin that ends tomorrow")
	}
}

func TestWavesKeepTheirOwnHosts(t *testing.T) {
	d := parseDeclared(t, declared)
	want := []Stranger{{Channel: "stable", Wave: 0, Host: "web-02", Own: "edge"}}
	if got := d.KeepOwnHosts(); !slices.Equal(got, want) {
		t.Errorf("%+v", got)
	}
	if again := d.KeepOwnHosts(); len(again) > 0 {
		t.Errorf("once more: %+v", again)
	}
	f, err := d.Fleet()
	// What the fleet does not declare is left to the check of the declaration.
	if err != nil || !slices.Equal(f.Waves["stable"][0].Hosts, []string{"web-01", "ghost"}) {
		t.Errorf("%+v, %v", f.Waves, err)
	}
}

func TestSoaksAreRoundedUp(t *testing.T) {
	d := parseDeclared(t, declared)
	d.RoundSoaks()
	f, err := d.Fleet()
	if err != nil {
		t.Fatal(err)
	}
	if w := f.Waves["stable"]; w[0].SoakMinutes != 2 || w[1].SoakMinutes != 7 ||
		f.RolloutPolicies["p"].Waves[0].SoakMinutes != 2 {
		t.Errorf("%+v, %+v", w, f.RolloutPolicies)
	}
}

func TestStamp(t *testing.T) {
	d := parseDeclared(t, declared)
	before, err := d.Bytes()
	if err != nil {
		t.Fatal(err)
	}
	at, err := pki.ParseTimestamp("2026-03-01T12:00:00Z")
	if err != nil {
		t.Fatal(err)
	}
	nonces, err := ParseList([]byte(`[{"nonce":"an old one of any form","hostname":"web-01","expiresAt":"2026-03-01T11:59:59Z"},
		{"nonce":"bbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbb","hostname":"web-01","expiresAt":"2026-03-01T12:00:00Z"}]`))
	if err != nil {
		t.Fatal(err)
	}
	commit := "9d3e7b5a1c0f2846e7d9b1350a6c8f2e4b7d9013"
	s, err := d.Stamp(Stamp{SignedAt: at, Algorithm: pki.AlgorithmEd25519, CICommit: &commit}, nil, nonces)
	if err != nil {
		t.Fatal(err)
	}
	f, err := ParseFleet(s.Fleet)
	if err != nil || s.Revocations != nil || !slices.Equal(s.Pruned, []string{"web-01"}) {
		t.Fatalf("%+v, %v", s, err)
	}
	n, err := ParseNonces(s.Nonces)
	if err != nil || len(n.BootstrapNonces) != 1 || n.BootstrapNonces[0].Nonce != strings.Repeat("b", 32) {
		t.Errorf("nonces %+v, %v", n, err)
	}
	if f.Members == nil || f.Members.Revocations != nil || *f.Members.BootstrapNonces != pki.HashHex(s.Nonces) {
		t.Errorf("members %+v", f.Members)
	}
	// What is not known is not signed.
	if *f.Meta.CICommit != commit || !f.Meta.SignedAt.Equal(at.Time) || strings.Contains(string(s.Fleet), "note") ||
		strings.Contains(string(s.Fleet), "later") {
		t.Errorf("%s", s.Fleet)
	}
	if after, err := d.Bytes(); err != nil || string(after) != string(before) {
		t.Errorf("stamping changed the declaration: %s, %v", after, err)
	}
	if list, err := ListIn(s.Nonces, "bootstrapNonces"); err != nil || len(list) != 1 {
		t.Errorf("%v, %v", list, err)
	}
	for _, nonce := range []string{"", "b", strings.Repeat("B", 32), strings.Repeat("b", 33)} {
		list := List{map[string]any{"nonce": nonce, "hostname": "web-01", "expiresAt": "2026-03-01T12:00:00Z"}}
		if _, err := d.Stamp(Stamp{SignedAt: at, Algorithm: pki.AlgorithmEd25519}, nil, list); !errors.Is(err,
			pki.ErrNonce) {
			t.Errorf("nonce %q: %v", nonce, err)
		}
	}
	for _, text := range []string{"null", "{}", "[", `"x"`} {
		if list, err := ParseList([]byte(text)); err == nil {
			t.Errorf("list %s: %v", text, list)
		}
	}
	for _, text := range []string{"null", "[]", "{"} {
		if _, err := ParseDeclaration([]byte(text)); err == nil {
			t.Errorf("declaration %s", text)
		}
	}
}

// FuzzDeclaration hands over what an evaluator or an attacker may write: it becomes a document that can be stamped, or
// is refused.
func FuzzDeclaration(f *testing.F) {
	f.Add([]byte(`{"hosts":{"a":{"closureHash":null,"pin":{"commit":"x","expiresAt":"2020-01-01T00:00:00Z"}}},"meta":{}}`))
	f.Add(vector(f, "fleet.json"))
	f.Add([]byte(`{"hosts":[],"meta":null}`))
	f.Add([]byte(`{"hosts":{"a":null,"b":{"pin":7}},"waves":{"x":[7,{"hosts":[1]}]}}`))
	f.Add([]byte(`null`))
	stamp := Stamp{SignedAt: pki.At(time.Unix(1772366400, 0)), Algorithm: pki.AlgorithmEd25519}
	f.Fuzz(func(t *testing.T, raw []byte) {
		d, err := ParseDeclaration(raw)
		if err != nil {
			return
		}
		// Whatever they say, they leave a declaration behind.
		_, _ = d.DropExpired(stamp.SignedAt.Time)
		d.KeepOwnHosts()
		d.RoundSoaks()
		if _, err := d.Stamp(stamp, nil, List{map[string]any{"expiresAt": 7}, "x"}); err == nil {
			t.Fatal("a list of nonsense was stamped")
		}
		stamped, err := d.Stamp(stamp, nil, nil)
		if err != nil {
			return
		}
		if again, err := pki.Canonicalize(stamped.Fleet); err != nil || !bytes.Equal(again, stamped.Fleet) {
			t.Fatalf("not canonical: %s (%v)", stamped.Fleet, err)
		}
		if d, err = ParseDeclaration(stamped.Fleet); err != nil {
			t.Fatal(err)
		}
		if again, err := d.Stamp(stamp, nil, nil); err != nil || !bytes.Equal(again.Fleet, stamped.Fleet) {
			t.Fatalf("%s is stamped again as %s (%v)", stamped.Fleet, again.Fleet, err)
		}
	})
}
