package pki

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"encoding/hex"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"math/big"
	"strings"

	"github.com/rs/zerolog"
	"golang.org/x/crypto/ssh"
)

// PrivateKey is an ed25519 or P-256 key that signs. It never prints its secret.
type PrivateKey struct {
	signer crypto.Signer
}

// String does not show the secret.
func (k PrivateKey) String() string { return "private " + k.Algorithm() + " key" }

// Format does not show the secret, whatever the verb.
func (k PrivateKey) Format(s fmt.State, _ rune) { io.WriteString(s, k.String()) }

// MarshalZerologObject does not show the secret.
func (k PrivateKey) MarshalZerologObject(e *zerolog.Event) { e.Str("algorithm", k.Algorithm()) }

// GenerateKey makes a key of AlgorithmEd25519 or AlgorithmP256.
func GenerateKey(algorithm string) (*PrivateKey, error) {
	switch algorithm {
	case AlgorithmEd25519:
		_, key, err := ed25519.GenerateKey(rand.Reader)
		if err != nil {
			return nil, fmt.Errorf("generate key: %w", err)
		}
		return &PrivateKey{key}, nil
	case AlgorithmP256:
		key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
		if err != nil {
			return nil, fmt.Errorf("generate key: %w", err)
		}
		return &PrivateKey{key}, nil
	}
	return nil, fmt.Errorf("%w: unknown algorithm %q", ErrKey, algorithm)
}

// ParsePrivateKey reads a key as 32 raw bytes of an ed25519 seed, the same as
// 64 hexadecimal digits, PEM (PKCS#8, or SEC 1 for P-256), or unencrypted
// OpenSSH. Raw bytes are taken as they are, white space included.
func ParsePrivateKey(data []byte) (*PrivateKey, error) {
	if len(data) == ed25519.SeedSize {
		return &PrivateKey{ed25519.NewKeyFromSeed(data)}, nil
	}
	block, rest := pem.Decode(data)
	for block != nil && block.Type == "EC PARAMETERS" { // openssl writes it before the key
		block, rest = pem.Decode(rest)
	}
	if block != nil {
		return privateFromPEM(block)
	}
	if seed, err := hex.DecodeString(strings.TrimSpace(string(data))); err == nil && len(seed) == ed25519.SeedSize {
		return &PrivateKey{ed25519.NewKeyFromSeed(seed)}, nil
	}
	return nil, fmt.Errorf("%w: neither PEM, OpenSSH, 32 raw bytes nor 64 hexadecimal digits", ErrKey)
}

// pemKeys read what is in a PEM block of a private key, by its type.
var pemKeys = map[string]func(der []byte) (any, error){
	"PRIVATE KEY":     x509.ParsePKCS8PrivateKey,
	"EC PRIVATE KEY":  func(der []byte) (any, error) { return x509.ParseECPrivateKey(der) },
	"RSA PRIVATE KEY": func(der []byte) (any, error) { return x509.ParsePKCS1PrivateKey(der) },
}

func privateFromPEM(block *pem.Block) (*PrivateKey, error) {
	parse := pemKeys[block.Type]
	switch block.Type {
	case "OPENSSH PRIVATE KEY":
		parse = func([]byte) (any, error) { return ssh.ParseRawPrivateKey(pem.EncodeToMemory(block)) }
	case "RSA PRIVATE KEY":
		parse = nil
	}
	if parse == nil {
		return nil, fmt.Errorf("%w: PEM block %q", ErrKey, block.Type)
	}
	key, err := parse(block.Bytes)
	if missing := (*ssh.PassphraseMissingError)(nil); errors.As(err, &missing) {
		return nil, fmt.Errorf("%w: the OpenSSH key has a passphrase", ErrKey)
	}
	if err != nil {
		// The parser's own words may quote what it read.
		return nil, fmt.Errorf("%w: damaged %s", ErrKey, strings.ToLower(block.Type))
	}
	if pointer, ok := key.(*ed25519.PrivateKey); ok {
		key = *pointer
	}
	switch key := key.(type) {
	case ed25519.PrivateKey:
		// An OpenSSH file says both halves. Signatures under a public half that
		// is not the seed's own give the seed away.
		if whole := ed25519.NewKeyFromSeed(key.Seed()); whole.Equal(key) {
			return &PrivateKey{whole}, nil
		}
		return nil, fmt.Errorf("%w: its public half belongs to another key", ErrKey)
	case *ecdsa.PrivateKey:
		if key.Curve == elliptic.P256() {
			return &PrivateKey{key}, nil
		}
	}
	return nil, fmt.Errorf("%w: only ed25519 and P-256 keys are used here", ErrKey)
}

// Algorithm is AlgorithmEd25519 or AlgorithmP256.
func (k PrivateKey) Algorithm() string {
	if _, ok := k.signer.(ed25519.PrivateKey); ok {
		return AlgorithmEd25519
	}
	return AlgorithmP256
}

// Sign returns the 64 raw bytes of a signature of message, which is hashed
// with SHA-256 first for P-256. S is in the lower half.
func (k *PrivateKey) Sign(message []byte) ([]byte, error) {
	switch key := k.signer.(type) {
	case ed25519.PrivateKey:
		return ed25519.Sign(key, message), nil
	case *ecdsa.PrivateKey:
		digest := sha256.Sum256(message)
		r, s, err := ecdsa.Sign(rand.Reader, key, digest[:])
		if err != nil {
			return nil, fmt.Errorf("sign: %w", err)
		}
		n := key.Params().N
		if s.Cmp(new(big.Int).Rsh(n, 1)) > 0 {
			s.Sub(n, s)
		}
		sig := make([]byte, SignatureSize)
		r.FillBytes(sig[:32])
		s.FillBytes(sig[32:])
		return sig, nil
	}
	return nil, fmt.Errorf("sign: %w", ErrKey)
}

// Public is the half that goes into trust.json.
func (k *PrivateKey) Public() PublicKey {
	switch key := k.signer.Public().(type) {
	case ed25519.PublicKey:
		return PublicKey{AlgorithmEd25519, base64.StdEncoding.EncodeToString(key)}
	case *ecdsa.PublicKey:
		if raw, err := key.Bytes(); err == nil {
			return PublicKey{AlgorithmP256, base64.StdEncoding.EncodeToString(raw[1:])}
		}
	}
	return PublicKey{}
}

// Crypto is the key for TLS and certificates.
func (k *PrivateKey) Crypto() crypto.Signer { return k.signer }

// MarshalPEM is the key as PKCS#8 PEM.
func (k *PrivateKey) MarshalPEM() ([]byte, error) {
	der, err := x509.MarshalPKCS8PrivateKey(k.signer)
	if err != nil {
		return nil, fmt.Errorf("encode key: %w", err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}), nil
}

// MarshalOpenSSH is the key as an unencrypted OpenSSH file.
func (k *PrivateKey) MarshalOpenSSH(comment string) ([]byte, error) {
	block, err := ssh.MarshalPrivateKey(k.signer, comment)
	if err != nil {
		return nil, fmt.Errorf("encode key: %w", err)
	}
	return pem.EncodeToMemory(block), nil
}
