package pki

import (
	"crypto"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"encoding/pem"
	"errors"
	"fmt"
)

// Why a certificate request is refused; test with errors.Is.
var (
	ErrCSR    = errors.New("certificate request refused")
	ErrCSRKey = errors.New("the request's key is not ed25519")
)

// CSR is a certificate request whose self-signature has been checked.
type CSR struct {
	CommonName string            // of the subject; what the requester claims to be
	Key        ed25519.PublicKey // nil when the key is of another kind
	Raw        *x509.CertificateRequest
}

var (
	oidSubjectAltName = asn1.ObjectIdentifier{2, 5, 29, 17}
	oidKeyUsage       = asn1.ObjectIdentifier{2, 5, 29, 15}
	oidExtKeyUsage    = asn1.ObjectIdentifier{2, 5, 29, 37}
	oidCommonName     = asn1.ObjectIdentifier{2, 5, 4, 3}
)

// ParseCSR reads one PEM block CERTIFICATE REQUEST. Requested extensions other
// than alternative names, key usage and extended key usage are refused, and so
// is a request without a common name.
func ParseCSR(text []byte) (*CSR, error) {
	if len(text) > maxSecret {
		return nil, fmt.Errorf("%w: %w", ErrCSR, ErrSize)
	}
	block, _ := pem.Decode(text)
	if block == nil || block.Type != "CERTIFICATE REQUEST" {
		return nil, fmt.Errorf("%w: no PEM block CERTIFICATE REQUEST", ErrCSR)
	}
	raw, err := x509.ParseCertificateRequest(block.Bytes)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrCSR, err)
	}
	if err := raw.CheckSignature(); err != nil {
		return nil, fmt.Errorf("%w: self-signature: %w", ErrCSR, err)
	}
	for _, e := range raw.Extensions {
		if !e.Id.Equal(oidSubjectAltName) && !e.Id.Equal(oidKeyUsage) && !e.Id.Equal(oidExtKeyUsage) {
			return nil, fmt.Errorf("%w: extension %s is not supported", ErrCSR, e.Id)
		}
	}
	if raw.Subject.CommonName == "" {
		return nil, fmt.Errorf("%w: no common name", ErrCSR)
	}
	key, _ := raw.PublicKey.(ed25519.PublicKey)
	return &CSR{CommonName: raw.Subject.CommonName, Key: key, Raw: raw}, nil
}

// NewCSR makes the PEM request of a host: its bare name and nothing else.
func NewCSR(key crypto.Signer, hostname string) ([]byte, error) {
	template := &x509.CertificateRequest{Subject: pkix.Name{CommonName: hostname}}
	der, err := x509.CreateCertificateRequest(rand.Reader, template, key)
	if err != nil {
		return nil, fmt.Errorf("make certificate request: %w", err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: der}), nil
}
