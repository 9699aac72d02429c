package pki

import (
	"crypto/rand"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"
	"time"
)

// Why a bootstrap token is refused; test with errors.Is.
var (
	ErrTokenTime      = errors.New("token is not valid at this time")
	ErrTokenTrust     = errors.New("no organisation root key is trusted")
	ErrTokenSignature = errors.New("token is not signed by a trusted organisation root key")
)

// Claims are what the organisation's root key says of one host: the CSR's
// common name, the fingerprint of the CSR's key, when the token may be used,
// and a nonce of 32 lower-case hexadecimal digits that is used once.
type Claims struct {
	Hostname                  string    `json:"hostname" shape:"R"`
	ExpectedPubkeyFingerprint string    `json:"expectedPubkeyFingerprint" shape:"R"`
	IssuedAt                  Timestamp `json:"issuedAt" shape:"R"`
	ExpiresAt                 Timestamp `json:"expiresAt" shape:"R"`
	Nonce                     string    `json:"nonce" shape:"R"`
}

// Token admits one host once. Signature is base64 of an ed25519 signature over
// the canonical claims.
type Token struct {
	Version   uint32 `json:"version" shape:"R"`
	Claims    Claims `json:"claims" shape:"R"`
	Signature string `json:"signature" shape:"R"`
}

// NewNonce is 16 random bytes in hex.
func NewNonce() string {
	var b [16]byte
	rand.Read(b[:])
	return hex.EncodeToString(b[:])
}

// MintToken signs claims with the organisation's root key, an ed25519 key.
func MintToken(org *PrivateKey, c Claims) (*Token, error) {
	if org.Algorithm() != AlgorithmEd25519 {
		return nil, fmt.Errorf("mint token: %w: the organisation's root key must be ed25519", ErrKey)
	}
	if !ValidNonce(c.Nonce) {
		return nil, fmt.Errorf("mint token: %q is %w", c.Nonce, ErrNonce)
	}
	canonical, err := Marshal(c)
	if err != nil {
		return nil, fmt.Errorf("mint token: %w", err)
	}
	sig, err := org.Sign(canonical)
	if err != nil {
		return nil, fmt.Errorf("mint token: %w", err)
	}
	return &Token{Version: 1, Claims: c, Signature: base64.StdEncoding.EncodeToString(sig)}, nil
}

// ParseToken reads a token of at most 1 MiB.
func ParseToken(data []byte) (*Token, error) {
	if len(data) > maxSecret {
		return nil, fmt.Errorf("token: %w", ErrSize)
	}
	var t Token
	if err := Decode(data, &t); err != nil {
		return nil, fmt.Errorf("token: %w", err)
	}
	if !ValidNonce(t.Claims.Nonce) {
		return nil, fmt.Errorf("token: %.80q is %w", t.Claims.Nonce, ErrNonce)
	}
	return &t, nil
}

// VerifyTime refuses a token before its issuedAt and from its expiresAt on;
// there is no slack.
func (t *Token) VerifyTime(now time.Time) error {
	if now.Before(t.Claims.IssuedAt.Time) || !now.Before(t.Claims.ExpiresAt.Time) {
		return fmt.Errorf("%w: from %s until %s", ErrTokenTime, t.Claims.IssuedAt, t.Claims.ExpiresAt)
	}
	return nil
}

// VerifySignature wants version 1, a nonce of its form, an issuedAt not before the slot's
// rejectBefore, and a signature by one of its ed25519 keys. Without any active
// key the error is ErrTokenTrust.
func (t *Token) VerifySignature(slot *KeySlot, now time.Time) error {
	keys := slot.Active(now)
	if len(keys) == 0 {
		return ErrTokenTrust
	}
	if t.Version != 1 {
		return fmt.Errorf("%w: version %d, only 1 is known", ErrTokenSignature, t.Version)
	}
	if !ValidNonce(t.Claims.Nonce) {
		return fmt.Errorf("%w: %.80q is %w", ErrTokenSignature, t.Claims.Nonce, ErrNonce)
	}
	if slot.RejectBefore != nil && t.Claims.IssuedAt.Before(slot.RejectBefore.Time) {
		return fmt.Errorf("%w: issued at %s, before rejectBefore %s", ErrTokenSignature, t.Claims.IssuedAt,
			*slot.RejectBefore)
	}
	sig, err := DecodeBase64(t.Signature)
	if err != nil {
		return fmt.Errorf("%w: damaged base64", ErrTokenSignature)
	}
	// Signed are exactly the five claims in their written form. Other
	// implementations re-encode them before they verify, so a token with more
	// claims, or with times in another form, is refused by all alike.
	canonical, err := Marshal(t.Claims)
	if err != nil {
		return fmt.Errorf("%w: %w", ErrTokenSignature, err)
	}
	for _, k := range keys {
		if k.Algorithm == AlgorithmEd25519 && k.Verify(canonical, sig) {
			return nil
		}
	}
	return ErrTokenSignature
}

// Verify is VerifyTime, then VerifySignature.
func (t *Token) Verify(slot *KeySlot, now time.Time) error {
	if err := t.VerifyTime(now); err != nil {
		return err
	}
	return t.VerifySignature(slot, now)
}
