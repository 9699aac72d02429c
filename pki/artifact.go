package pki

import (
	"errors"
	"fmt"
	"math"
	"time"
	"unicode/utf8"
)

// ClockSlack is how far two clocks may be apart before an artifact counts as
// stale or future-dated.
const ClockSlack = 60 * time.Second

// Reason is why an artifact was not believed, in the words that the tick prints.
type Reason string

// The reasons, in the order in which they are looked for.
const (
	ReasonNoTrustRoots         Reason = "no-trust-roots"
	ReasonParse                Reason = "parse"
	ReasonCanonicalize         Reason = "canonicalize"
	ReasonBadSignature         Reason = "bad-signature"
	ReasonUnsupportedAlgorithm Reason = "unsupported-algorithm"
	ReasonSchemaVersion        Reason = "schema-version"
	ReasonUnsigned             Reason = "unsigned"
	ReasonRejectBefore         Reason = "reject-before"
	ReasonStale                Reason = "stale"
	ReasonFutureDated          Reason = "future-dated"
	// ReasonMismatch is for callers that know which hash the bytes must have.
	ReasonMismatch Reason = "mismatch"
)

// VerifyError is an artifact that was not believed.
type VerifyError struct {
	Reason Reason
	Err    error
}

func (e *VerifyError) Error() string {
	if e.Err == nil {
		return string(e.Reason)
	}
	return fmt.Sprintf("%s: %v", e.Reason, e.Err)
}

func (e *VerifyError) Unwrap() error { return e.Err }

func refused(r Reason, format string, args ...any) error {
	return &VerifyError{Reason: r, Err: fmt.Errorf(format, args...)}
}

// Metadata is what pki must know of a decoded artifact: its top-level
// schemaVersion and meta.signedAt.
type Metadata struct {
	SchemaVersion uint32
	SignedAt      *Timestamp
}

// Verified is an artifact that was believed.
type Verified struct {
	Canonical []byte    // canonical form of the received bytes
	Hash      string    // lower-case hex SHA-256 of Canonical
	SignedAt  time.Time // meta.signedAt
	Key       PublicKey // the key that verified
}

// VerifyArtifact believes body when a key of slot that is active at now signed
// its canonical form, its schema is 1, and it was signed no longer ago than
// window and not in the future, both within ClockSlack. decode reads the
// canonical text. The checks run in the order of the contract and the first
// failure ends them with a *VerifyError.
func VerifyArtifact(slot *KeySlot, body, sig []byte, now time.Time, window time.Duration,
	decode func(canonical []byte) (Metadata, error)) (Verified, error) {
	keys := slot.Active(now)
	if len(keys) == 0 {
		return Verified{}, refused(ReasonNoTrustRoots, "no key is trusted for this")
	}
	if !utf8.Valid(body) {
		return Verified{}, refused(ReasonParse, "%w", ErrEncoding)
	}
	canonical, err := Canonicalize(body)
	switch {
	case err == nil:
	case errors.Is(err, ErrSyntax) || !errors.Is(err, ErrDepth) && !isJSON(body):
		return Verified{}, &VerifyError{ReasonParse, err}
	default:
		return Verified{}, &VerifyError{ReasonCanonicalize, err}
	}
	key, err := signedBy(keys, canonical, sig)
	if err != nil {
		return Verified{}, err
	}
	meta, err := decode(canonical)
	if err != nil {
		return Verified{}, &VerifyError{ReasonParse, err}
	}
	if meta.SchemaVersion != 1 {
		return Verified{}, refused(ReasonSchemaVersion, "schemaVersion %d, only 1 is known", meta.SchemaVersion)
	}
	if meta.SignedAt == nil {
		return Verified{}, refused(ReasonUnsigned, "meta.signedAt is null")
	}
	signedAt := meta.SignedAt.Time
	switch age := now.Sub(signedAt); {
	case slot.RejectBefore != nil && signedAt.Before(slot.RejectBefore.Time):
		return Verified{}, refused(ReasonRejectBefore, "signed at %s, before rejectBefore %s", At(signedAt),
			*slot.RejectBefore)
	case age > within(window):
		return Verified{}, refused(ReasonStale, "signed at %s, longer than %s ago", At(signedAt), window)
	case age < -ClockSlack: // never -age: the age of the year 9999 saturates at the least Duration
		return Verified{}, refused(ReasonFutureDated, "signed at %s, which is in the future", At(signedAt))
	}
	return Verified{Canonical: canonical, Hash: HashHex(canonical), SignedAt: signedAt, Key: key}, nil
}

// within is window and the slack, at most the longest Duration.
func within(window time.Duration) time.Duration {
	return min(window, math.MaxInt64-ClockSlack) + ClockSlack
}

func signedBy(keys []PublicKey, canonical, sig []byte) (PublicKey, error) {
	known := false
	for _, k := range keys {
		known = known || k.known()
		if k.Verify(canonical, sig) {
			return k, nil
		}
	}
	if !known {
		return PublicKey{}, refused(ReasonUnsupportedAlgorithm, "no trusted key has an algorithm that this nixfleet knows")
	}
	return PublicKey{}, refused(ReasonBadSignature, "no trusted key made this signature")
}
