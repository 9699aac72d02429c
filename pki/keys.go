package pki

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/base64"
	"errors"
	"fmt"
	"math/big"
	"strings"

	"filippo.io/edwards25519"
)

// Signature algorithms of trust roots.
const (
	AlgorithmEd25519 = "ed25519"
	AlgorithmP256    = "ecdsa-p256"
)

// SignatureSize is the size of every signature, in bytes: R and S of 32 each.
const SignatureSize = 64

// ErrKey means that the bytes are not a key of a kind that is used here.
var ErrKey = errors.New("not a usable key")

// PublicKey is a key of a trust root: `ed25519` with base64 of its 32 bytes, or
// `ecdsa-p256` with base64 of X and Y, 64 bytes. An unknown algorithm is kept
// and never verifies.
type PublicKey struct {
	Algorithm string `json:"algorithm" shape:"R"`
	Public    string `json:"public" shape:"R"`
}

// Verify reports whether sig is k's signature of message. It is strict: S of an
// ed25519 signature below the group order, the cofactorless equation, no key
// and no R of small order or in a second encoding; R and S of a P-256 signature
// in 1..n-1, S above n/2 included, since a TPM makes such signatures half of
// the time. A malformed key or signature is a signature that does not verify.
func (k PublicKey) Verify(message, sig []byte) bool {
	raw, err := DecodeBase64(k.Public)
	if err != nil || len(sig) != SignatureSize {
		return false
	}
	switch k.Algorithm {
	case AlgorithmEd25519:
		return verifyEd25519(raw, message, sig)
	case AlgorithmP256:
		return verifyP256(raw, message, sig)
	}
	return false
}

// DecodeBase64 reads base64 as the contracts have it everywhere: the standard
// alphabet with padding, zero trailing bits and, other than encoding/base64 by
// itself, no line ends.
func DecodeBase64(s string) ([]byte, error) {
	if strings.ContainsAny(s, "\r\n") {
		return nil, base64.CorruptInputError(strings.IndexAny(s, "\r\n"))
	}
	return base64.StdEncoding.Strict().DecodeString(s)
}

// known tells whether Verify has the key's algorithm.
func (k PublicKey) known() bool {
	return k.Algorithm == AlgorithmEd25519 || k.Algorithm == AlgorithmP256
}

// Usable reports whether Verify could succeed with this key.
func (k PublicKey) Usable() bool {
	raw, err := DecodeBase64(k.Public)
	if err != nil {
		return false
	}
	if k.Algorithm == AlgorithmEd25519 {
		return len(raw) == ed25519.PublicKeySize && properPoint(raw)
	}
	_, err = p256FromRaw(raw)
	return k.Algorithm == AlgorithmP256 && err == nil
}

func verifyEd25519(public, message, sig []byte) bool {
	return len(public) == ed25519.PublicKeySize && properPoint(public) && properPoint(sig[:32]) &&
		ed25519.Verify(public, message, sig)
}

// CheckKey refuses, with ErrKey, a public key by which strangers could sign: an ed25519 key of small order, or in
// another encoding than its one. Points of P-256 cannot be either, once they are on the curve; those that were not read
// by crypto/x509 are looked at here. Other kinds of keys are left to crypto/x509.
func CheckKey(pub crypto.PublicKey) error {
	switch key := pub.(type) {
	case ed25519.PublicKey:
		if len(key) != ed25519.PublicKeySize || !properPoint(key) {
			return fmt.Errorf("%w: an ed25519 key of small order or in a second encoding", ErrKey)
		}
	case *ecdsa.PublicKey:
		if _, err := key.Bytes(); err != nil {
			return fmt.Errorf("%w: not on the curve %s", ErrKey, key.Params().Name)
		}
	}
	return nil
}

// properPoint tells whether bytes are the one encoding of a point that is not of small order.
func properPoint(encoded []byte) bool {
	p, err := new(edwards25519.Point).SetBytes(encoded)
	if err != nil || subtle.ConstantTimeCompare(p.Bytes(), encoded) != 1 {
		return false
	}
	return new(edwards25519.Point).MultByCofactor(p).Equal(edwards25519.NewIdentityPoint()) != 1
}

func verifyP256(public, message, sig []byte) bool {
	key, err := p256FromRaw(public)
	if err != nil {
		return false
	}
	digest := sha256.Sum256(message)
	return ecdsa.Verify(key, digest[:], new(big.Int).SetBytes(sig[:32]), new(big.Int).SetBytes(sig[32:]))
}

// p256FromRaw reads X and Y, 32 bytes each, of a point on the curve.
func p256FromRaw(raw []byte) (*ecdsa.PublicKey, error) {
	if len(raw) != 64 {
		return nil, fmt.Errorf("%w: a P-256 key has 64 bytes, this has %d", ErrKey, len(raw))
	}
	key, err := ecdsa.ParseUncompressedPublicKey(elliptic.P256(), append([]byte{4}, raw...))
	if err != nil {
		return nil, fmt.Errorf("%w: not on the curve P-256", ErrKey)
	}
	return key, nil
}
