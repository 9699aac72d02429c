package pki

import (
	"encoding/base64"
	"errors"
	"regexp"
	"strings"
	"testing"
	"time"
)

func contractToken(t testing.TB) *Token {
	t.Helper()
	token, err := ParseToken(readFile(t, "contract", "token.json"))
	if err != nil {
		t.Fatal(err)
	}
	return token
}

// There is no slack on either side.
func TestTokenWindow(t *testing.T) {
	org := orgKey(t).Public()
	token := contractToken(t)
	issued, expires := token.Claims.IssuedAt.Time, token.Claims.ExpiresAt.Time
	for _, c := range []struct {
		name string
		now  time.Time
		want error
	}{
		{"a nanosecond early", issued.Add(-1), ErrTokenTime},
		{"when issued", issued, nil},
		{"a nanosecond left", expires.Add(-1), nil},
		{"when expired", expires, ErrTokenTime},
	} {
		if err := token.Verify(&KeySlot{Current: &org}, c.now); !errors.Is(err, c.want) {
			t.Errorf("%s: got %v, want %v", c.name, err, c.want)
		}
	}
}

func TestTokenTrust(t *testing.T) {
	org, other := orgKey(t).Public(), ciKey(t).Public()
	token := contractToken(t)
	now := token.Claims.IssuedAt.Time
	at := func(d time.Duration) *Timestamp { ts := At(now.Add(d)); return &ts }
	// The same bytes of key under another algorithm are another key.
	p256 := PublicKey{AlgorithmP256, org.Public}
	for _, c := range []struct {
		name string
		slot *KeySlot
		want error
	}{
		{"current", &KeySlot{Current: &org}, nil},
		{"previous, the grace window", &KeySlot{Current: &other, Previous: &org}, nil},
		{"successor in its time", &KeySlot{Current: &other, Successor: &org, RetireAt: at(1)}, nil},
		{"successor after its time", &KeySlot{Current: &other, Successor: &org, RetireAt: at(0)}, ErrTokenSignature},
		{"no slot", nil, ErrTokenTrust},
		{"empty slot", &KeySlot{}, ErrTokenTrust},
		{"other key", &KeySlot{Current: &other}, ErrTokenSignature},
		{"other algorithm", &KeySlot{Current: &p256}, ErrTokenSignature},
		{"issued when rejectBefore", &KeySlot{Current: &org, RejectBefore: at(0)}, nil},
		{"issued before rejectBefore", &KeySlot{Current: &org, RejectBefore: at(1)}, ErrTokenSignature},
	} {
		if err := token.Verify(c.slot, now); !errors.Is(err, c.want) {
			t.Errorf("%s: got %v, want %v", c.name, err, c.want)
		}
	}
}

func TestTokenForgery(t *testing.T) {
	org := orgKey(t).Public()
	slot := &KeySlot{Current: &org}
	now := contractToken(t).Claims.IssuedAt.Time
	for name, change := range map[string]func(*Token){
		"version 0":  func(k *Token) { k.Version = 0 },
		"version 2":  func(k *Token) { k.Version = 2 },
		"other host": func(k *Token) { k.Claims.Hostname = "db-02" },
		"other key": func(k *Token) {
			k.Claims.ExpectedPubkeyFingerprint = "A" +
				k.Claims.ExpectedPubkeyFingerprint[1:]
		},
		"earlier":        func(k *Token) { k.Claims.IssuedAt = At(k.Claims.IssuedAt.Add(-1)) },
		"longer":         func(k *Token) { k.Claims.ExpiresAt = At(k.Claims.ExpiresAt.Add(1)) },
		"other nonce":    func(k *Token) { k.Claims.Nonce = NewNonce() },
		"no signature":   func(k *Token) { k.Signature = "" },
		"no base64":      func(k *Token) { k.Signature = "*" + k.Signature[1:] },
		"line end":       func(k *Token) { k.Signature = k.Signature[:40] + "\n" + k.Signature[40:] },
		"no padding":     func(k *Token) { k.Signature = strings.TrimRight(k.Signature, "=") },
		"long signature": func(k *Token) { k.Signature = base64.StdEncoding.EncodeToString(make([]byte, 65)) },
	} {
		token := contractToken(t)
		change(token)
		if err := token.Verify(slot, now); !errors.Is(err, ErrTokenSignature) {
			t.Errorf("%s: %v", name, err)
		}
	}
	p256, err := GenerateKey(AlgorithmP256)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := MintToken(p256, Claims{}); !errors.Is(err, ErrKey) {
		t.Errorf("minted by a P-256 key: %v", err)
	}
	// Only ed25519 keys are tried, also when another kind stands in the slot.
	token := contractToken(t)
	claims, err := Marshal(token.Claims)
	if err != nil {
		t.Fatal(err)
	}
	sig, err := p256.Sign(claims)
	if err != nil {
		t.Fatal(err)
	}
	token.Signature = base64.StdEncoding.EncodeToString(sig)
	public := p256.Public()
	if err := token.Verify(&KeySlot{Current: &public}, now); !errors.Is(err, ErrTokenSignature) {
		t.Errorf("signed by a P-256 key: %v", err)
	}
}

// Other implementations sign and verify the re-encoded five claims: a claim
// more in the text makes no difference, a claim more under the signature does.
func TestTokenSignsFiveClaims(t *testing.T) {
	doc := string(readFile(t, "contract", "token.json"))
	org := orgKey(t)
	public := org.Public()
	slot := &KeySlot{Current: &public}
	extended := strings.Replace(doc, `"claims":{`, `"claims":{"role":"host",`, 1)
	token, err := ParseToken([]byte(extended))
	if err != nil {
		t.Fatal(err)
	}
	now := token.Claims.IssuedAt.Time
	if err := token.Verify(slot, now); err != nil {
		t.Error(err)
	}
	claims, err := Marshal(token.Claims)
	if err != nil {
		t.Fatal(err)
	}
	canonical, err := Canonicalize([]byte(strings.Replace(string(claims), "{", `{"role":"host",`, 1)))
	if err != nil {
		t.Fatal(err)
	}
	sig, err := org.Sign(canonical)
	if err != nil {
		t.Fatal(err)
	}
	token.Signature = base64.StdEncoding.EncodeToString(sig)
	if err := token.Verify(slot, now); !errors.Is(err, ErrTokenSignature) {
		t.Errorf("six signed claims: %v", err)
	}
}

func TestParseTokenRefuses(t *testing.T) {
	doc := string(readFile(t, "contract", "token.json"))
	for name, bad := range map[string]string{
		"empty":          "",
		"truncated":      doc[:100],
		"oversized":      doc + strings.Repeat(" ", maxSecret),
		"no claims":      `{"version":1,"signature":"x"}`,
		"no nonce":       regexp.MustCompile(`,"nonce":"[0-9a-f]*"`).ReplaceAllString(doc, ""),
		"time as number": strings.Replace(doc, `"2026-03-01T11:00:00Z"`, `1772362800`, 1),
		"two hostnames":  strings.Replace(doc, `"hostname":"db-01"`, `"hostname":"db-01","hostname":"db-02"`, 1),
		"two tokens":     doc + doc,
	} {
		if token, err := ParseToken([]byte(bad)); err == nil {
			t.Errorf("%s: read as %+v", name, token)
		}
	}
}

func TestNewNonce(t *testing.T) {
	a, b := NewNonce(), NewNonce()
	if a == b || !regexp.MustCompile(`^[0-9a-f]{32}$`).MatchString(a) {
		t.Errorf("%s, %s", a, b)
	}
}

func FuzzParseToken(f *testing.F) {
	doc := readFile(f, "contract", "token.json")
	f.Add(doc)
	f.Add(doc[:50])
	f.Add([]byte(strings.Replace(string(doc), `"version":1`, `"version":4294967296`, 1)))
	org := orgKey(f).Public()
	genuine := contractToken(f)
	f.Fuzz(func(t *testing.T, data []byte) {
		token, err := ParseToken(data)
		if err != nil {
			return
		}
		if err := token.Verify(&KeySlot{Current: &org}, genuine.Claims.IssuedAt.Time); err == nil && *token != *genuine {
			t.Fatalf("forged: %+v", token)
		}
	})
}
