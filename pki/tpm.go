package pki

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/x509"
	"encoding/asn1"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"math/big"
	"os"
	"os/exec"
	"time"
)

// tpmTimeout is how long a signature by a TPM may take.
const tpmTimeout = 30 * time.Second

// tpmSigner signs by running a program that holds the key.
type tpmSigner struct {
	public  *ecdsa.PublicKey
	wrapper string
}

// NewTPMSigner is a P-256 key behind a program: `wrapper FILE` prints 64 raw
// bytes, R then S, of a signature over the SHA-256 of the file. publicRaw are X
// and Y, 64 bytes.
func NewTPMSigner(publicRaw []byte, wrapper string) (crypto.Signer, error) {
	public, err := p256FromRaw(publicRaw)
	if err != nil {
		return nil, fmt.Errorf("TPM key: %w", err)
	}
	return &tpmSigner{public, wrapper}, nil
}

// ParseP256 reads the public half of a P-256 key that lives elsewhere: 64 raw bytes X and Y, or PEM.
func ParseP256(data []byte) (*ecdsa.PublicKey, error) {
	block, _ := pem.Decode(data)
	if block == nil {
		return p256FromRaw(data)
	}
	if block.Type != "PUBLIC KEY" {
		return nil, fmt.Errorf("%w: PEM block %q instead of PUBLIC KEY", ErrKey, block.Type)
	}
	key, err := x509.ParsePKIXPublicKey(block.Bytes)
	if err != nil {
		return nil, fmt.Errorf("%w: damaged PUBLIC KEY block", ErrKey)
	}
	public, ok := key.(*ecdsa.PublicKey)
	if !ok || public.Curve != elliptic.P256() {
		return nil, fmt.Errorf("%w: not a key of the curve P-256", ErrKey)
	}
	return public, nil
}

func (t *tpmSigner) Public() crypto.PublicKey { return t.public }

// Sign is not possible: the program hashes by itself and wants the message.
func (t *tpmSigner) Sign(io.Reader, []byte, crypto.SignerOpts) ([]byte, error) {
	return nil, errors.New("TPM key: it signs messages, not digests")
}

// SignMessage hands message to the program in a file that only we can read and
// returns the DER form of what it printed, once that verifies.
func (t *tpmSigner) SignMessage(_ io.Reader, message []byte, opts crypto.SignerOpts) ([]byte, error) {
	if opts.HashFunc() != crypto.SHA256 {
		return nil, fmt.Errorf("TPM key: it signs SHA-256 only, not %v", opts.HashFunc())
	}
	file, err := os.CreateTemp("", "nixfleet-tpm-*")
	if err != nil {
		return nil, fmt.Errorf("TPM key: %w", err)
	}
	defer os.Remove(file.Name())
	_, err = file.Write(message)
	if err := errors.Join(err, file.Close()); err != nil {
		return nil, fmt.Errorf("TPM key: %w", err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), tpmTimeout)
	defer cancel()
	cmd := exec.CommandContext(ctx, t.wrapper, file.Name())
	cmd.WaitDelay = time.Second
	var out signatureOutput
	cmd.Stdout = &out
	if err := cmd.Run(); err != nil {
		return nil, fmt.Errorf("TPM key: run %s: %w", t.wrapper, err)
	}
	if len(out) != SignatureSize || !t.made(message, out) {
		return nil, fmt.Errorf("TPM key: what %s printed is not a signature by the declared key", t.wrapper)
	}
	return asn1.Marshal(struct{ R, S *big.Int }{
		new(big.Int).SetBytes(out[:32]), new(big.Int).SetBytes(out[32:]),
	})
}

// signatureOutput keeps one byte more than a signature has and drops the rest.
type signatureOutput []byte

func (o *signatureOutput) Write(p []byte) (int, error) {
	*o = append(*o, p[:min(len(p), SignatureSize+1-len(*o))]...)
	return len(p), nil
}

func (t *tpmSigner) made(message, sig []byte) bool {
	raw, err := t.public.Bytes()
	return err == nil && verifyP256(raw[1:], message, sig)
}
