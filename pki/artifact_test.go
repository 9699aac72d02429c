package pki

import (
	"bytes"
	"encoding/base64"
	"errors"
	"fmt"
	"math"
	"strings"
	"testing"
	"time"
)

type artifactShape struct {
	SchemaVersion uint32 `json:"schemaVersion" shape:"R"`
	Meta          struct {
		SchemaVersion uint32     `json:"schemaVersion" shape:"R"`
		SignedAt      *Timestamp `json:"signedAt" shape:"N"`
	} `json:"meta" shape:"R"`
}

func metaOf(canonical []byte) (Metadata, error) {
	var a artifactShape
	if err := Decode(canonical, &a); err != nil {
		return Metadata{}, err
	}
	return Metadata{a.SchemaVersion, a.Meta.SignedAt}, nil
}

func artifact(schema int, signedAt string) string {
	if signedAt != "null" {
		signedAt = `"` + signedAt + `"`
	}
	return fmt.Sprintf(`{"meta":{"schemaVersion":9,"signedAt":%s},"schemaVersion":%d}`, signedAt, schema)
}

const noon = "2026-03-01T12:00:00Z"

func reasonOf(err error) Reason {
	var v *VerifyError
	if errors.As(err, &v) {
		return v.Reason
	}
	if err != nil {
		return Reason("not a VerifyError: " + err.Error())
	}
	return ""
}

// verifySigned signs the canonical form of doc, or its bytes when it has none.
func verifySigned(t *testing.T, k *PrivateKey, slot *KeySlot, doc string, now time.Time, window time.Duration) error {
	t.Helper()
	message, err := Canonicalize([]byte(doc))
	if err != nil {
		message = []byte(doc)
	}
	sig, err := k.Sign(message)
	if err != nil {
		t.Fatal(err)
	}
	_, err = VerifyArtifact(slot, []byte(doc), sig, now, window, metaOf)
	return err
}

// The boundaries of artifacts.md §3, checks 8 to 10, on both sides.
func TestVerifyArtifactBoundaries_T8(t *testing.T) {
	k := ciKey(t)
	public := k.Public()
	now := mustTime(t, noon)
	const window = time.Hour
	for _, c := range []struct {
		name string
		age  time.Duration
		want Reason
	}{
		{"now", 0, ""},
		{"oldest", window + time.Minute, ""},
		{"too old by a nanosecond", window + time.Minute + 1, ReasonStale},
		{"newest", -time.Minute, ""},
		{"too new by a nanosecond", -time.Minute - 1, ReasonFutureDated},
	} {
		doc := artifact(1, At(now.Add(-c.age)).String())
		if got := reasonOf(verifySigned(t, k, &KeySlot{Current: &public}, doc, now, window)); got != c.want {
			t.Errorf("%s: got %q, want %q", c.name, got, c.want)
		}
	}
	// Ages that no Duration holds.
	for signedAt, want := range map[string]Reason{"9999-12-31T23:59:59Z": ReasonFutureDated,
		"0000-01-01T00:00:00Z": ReasonStale} {
		if got := reasonOf(verifySigned(t, k, &KeySlot{Current: &public}, artifact(1, signedAt), now, window)); got != want {
			t.Errorf("signed at %s: got %q, want %q", signedAt, got, want)
		}
	}
	if got := reasonOf(verifySigned(t, k, &KeySlot{Current: &public}, artifact(1, noon), now.Add(time.Hour),
		math.MaxInt64)); got != "" {
		t.Errorf("longest window: %q", got)
	}

	before := At(now)
	slot := &KeySlot{Current: &public, RejectBefore: &before}
	for signedAt, want := range map[string]Reason{noon: "", "2026-03-01T11:59:59.999999999Z": ReasonRejectBefore} {
		if got := reasonOf(verifySigned(t, k, slot, artifact(1, signedAt), now, window)); got != want {
			t.Errorf("signed at %s, rejectBefore %s: got %q, want %q", signedAt, before, got, want)
		}
	}
}

// Each document has every fault from its own on; the first must be named.
func TestVerifyArtifactOrder(t *testing.T) {
	k, stranger := ciKey(t), orgKey(t)
	public := k.Public()
	now := mustTime(t, "2026-03-02T12:00:00Z")
	reject := At(now.Add(-time.Hour))
	slot := &KeySlot{Current: &public, RejectBefore: &reject}
	unknown := PublicKey{"ml-dsa-65", public.Public}
	for _, c := range []struct {
		name   string
		signer *PrivateKey
		slot   *KeySlot
		doc    string
		want   Reason
	}{
		{"no slot", stranger, nil, "\xff", ReasonNoTrustRoots},
		{"empty slot", stranger, &KeySlot{}, "\xff", ReasonNoTrustRoots},
		{"no UTF-8", stranger, slot, "{\"\xff\"", ReasonParse},
		{"no JSON", stranger, slot, `{"a":`, ReasonParse},
		{"empty", stranger, slot, ``, ReasonParse},
		{"duplicate keys", stranger, slot, `{"a":1,"a":1}`, ReasonCanonicalize},
		{"big integer", stranger, slot, `[9007199254740993]`, ReasonCanonicalize},
		{"lone surrogate", stranger, slot, `["\ud800"]`, ReasonCanonicalize},
		{"overflow", stranger, slot, `[1e400]`, ReasonCanonicalize},
		{"no JSON after duplicate keys", stranger, slot, `{"a":1,"a":1`, ReasonParse},
		{"no JSON after a big integer", stranger, slot, `[9007199254740993]]`, ReasonParse},
		{"no JSON after a lone surrogate", stranger, slot, `["\ud800",]`, ReasonParse},
		{"depth", stranger, slot, strings.Repeat("[", 128) + strings.Repeat("]", 128), ReasonCanonicalize},
		{"unknown algorithm only", stranger, &KeySlot{Current: &unknown}, `[]`, ReasonUnsupportedAlgorithm},
		{"unknown algorithm beside a known one", stranger, &KeySlot{Current: &unknown, Previous: &public}, `[]`,
			ReasonBadSignature},
		{"foreign signature", stranger, slot, `[]`, ReasonBadSignature},
		{"shape", k, slot, `{"meta":{"schemaVersion":1,"signedAt":null}}`, ReasonParse},
		{"signedAt absent", k, slot, `{"meta":{"schemaVersion":1},"schemaVersion":2}`, ReasonSchemaVersion},
		{"schema 2", k, slot, artifact(2, "null"), ReasonSchemaVersion},
		{"schema 0", k, slot, artifact(0, "null"), ReasonSchemaVersion},
		{"unsigned", k, slot, artifact(1, "null"), ReasonUnsigned},
		{"before rejectBefore and stale", k, slot, artifact(1, "2026-03-01T00:00:00Z"), ReasonRejectBefore},
		{"stale", k, &KeySlot{Current: &public}, artifact(1, "2026-03-01T00:00:00Z"), ReasonStale},
		{"future", k, slot, artifact(1, "2026-03-03T00:00:00Z"), ReasonFutureDated},
		{"good", k, slot, artifact(1, "2026-03-02T11:00:00Z"), ""},
		{"5.0 is 5 once canonical", k, slot,
			strings.Replace(artifact(1, "2026-03-02T11:00:00Z"), `"schemaVersion":1}`, `"schemaVersion":1.0}`, 1), ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			err := verifySigned(t, c.signer, c.slot, c.doc, now, 2*time.Hour)
			if got := reasonOf(err); got != c.want {
				t.Errorf("got %q (%v), want %q", got, err, c.want)
			}
		})
	}
}

// Only a callback that was handed verified bytes may have a say.
func TestDecodeIsNotCalledBeforeTheSignature(t *testing.T) {
	public := ciKey(t).Public()
	called := false
	_, err := VerifyArtifact(&KeySlot{Current: &public}, []byte(artifact(1, noon)), make([]byte, 64), mustTime(t, noon),
		time.Hour,
		func([]byte) (Metadata, error) { called = true; return Metadata{}, nil })
	if called || reasonOf(err) != ReasonBadSignature {
		t.Errorf("called %v, %v", called, err)
	}
}

func TestVerifyArtifactKeys(t *testing.T) {
	now := mustTime(t, noon)
	a, b, c := seedKey(t, 1), seedKey(t, 2), seedKey(t, 3)
	pa, pb, pc := a.Public(), b.Public(), c.Public()
	at := func(d time.Duration) *Timestamp { ts := At(now.Add(d)); return &ts }
	damaged := PublicKey{AlgorithmEd25519, "AAAA"}
	for _, s := range []struct {
		name   string
		slot   KeySlot
		signer *PrivateKey
		want   Reason
	}{
		{"current", KeySlot{Current: &pa, Previous: &pb}, a, ""},
		{"previous", KeySlot{Current: &pa, Previous: &pb}, b, ""},
		{"previous beside a damaged current", KeySlot{Current: &damaged, Previous: &pb}, b, ""},
		{"successor before its time", KeySlot{Current: &pa, Successor: &pc, RetireAt: at(1)}, c, ""},
		{"successor at its time", KeySlot{Current: &pa, Successor: &pc, RetireAt: at(0)}, c, ReasonBadSignature},
		{"successor without a time", KeySlot{Current: &pa, Successor: &pc}, c, ReasonBadSignature},
		{"successor alone without a time", KeySlot{Successor: &pc}, c, ReasonNoTrustRoots},
		{"key that left the slot", KeySlot{Current: &pb}, a, ReasonBadSignature},
	} {
		if got := reasonOf(verifySigned(t, s.signer, &s.slot, artifact(1, noon), now, time.Hour)); got != s.want {
			t.Errorf("%s: got %q, want %q", s.name, got, s.want)
		}
	}
}

// The signature holds for the bytes and for nothing else: neither changed
// bytes under an old signature (T5) nor a struct that forgot a member (T6).
func TestSignatureIsOverReceivedBytes_T5_T6(t *testing.T) {
	k := ciKey(t)
	public := k.Public()
	slot := &KeySlot{Current: &public}
	now := mustTime(t, noon)
	plain := artifact(1, noon)
	extended := strings.Replace(plain, `{"meta"`, `{"addedLater":{"closure":"same"},"meta"`, 1)
	canonical, err := Canonicalize([]byte(extended))
	if err != nil {
		t.Fatal(err)
	}
	sig, err := k.Sign(canonical)
	if err != nil {
		t.Fatal(err)
	}
	v, err := VerifyArtifact(slot, []byte(" "+extended+"\n"), sig, now, time.Hour, metaOf)
	if err != nil || !bytes.Equal(v.Canonical, canonical) || v.Hash != HashHex(canonical) {
		t.Errorf("with a member that we do not know: %+v, %v", v, err)
	}
	if _, err := VerifyArtifact(slot, []byte(plain), sig, now, time.Hour, metaOf); reasonOf(err) != ReasonBadSignature {
		t.Errorf("old signature over other bytes: %v", err)
	}
	for i := range canonical {
		changed := bytes.Clone(canonical)
		changed[i] ^= 1
		if _, err := VerifyArtifact(slot, changed, sig, now, time.Hour, metaOf); err == nil {
			t.Fatalf("accepted with byte %d changed", i)
		}
	}
	for _, wrong := range [][]byte{nil, sig[:63], append(bytes.Clone(sig), 0), append(bytes.Clone(sig), '\n'),
		[]byte(base64.StdEncoding.EncodeToString(sig))} {
		if _, err := VerifyArtifact(slot, canonical, wrong, now, time.Hour, metaOf); reasonOf(err) != ReasonBadSignature {
			t.Errorf("signature of %d bytes: %v", len(wrong), err)
		}
	}
}

func TestVerifyErrorUnwraps(t *testing.T) {
	public := ciKey(t).Public()
	_, err := VerifyArtifact(&KeySlot{Current: &public}, []byte(`{"a":1,"a":1}`), nil, mustTime(t, noon), 0, metaOf)
	if !errors.Is(err, ErrDuplicateKey) || !strings.HasPrefix(err.Error(), "canonicalize: ") {
		t.Errorf("got %v", err)
	}
}
