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

	usage x509.KeyUsage // as requested; 0 when not requested
}

var (
	oidSubjectAltName = asn1.ObjectIdentifier{2, 5, 29, 17}
	oidKeyUsage       = asn1.ObjectIdentifier{2, 5, 29, 15}
	oidExtKeyUsage    = asn1.ObjectIdentifier{2, 5, 29, 37}
	oidCommonName     = asn1.ObjectIdentifier{2, 5, 4, 3}
)

// ParseCSR reads one PEM block CERTIFICATE REQUEST. Requested extensions other
// than alternative names, key usage and extended key usage are refused, and so
// is a request without exactly one common name.
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
	name, ok := onlyCommonName(raw.Subject)
	if !ok {
		return nil, fmt.Errorf("%w: it must have exactly one common name", ErrCSR)
	}
	if err := CheckKey(raw.PublicKey); err != nil {
		return nil, fmt.Errorf("%w: self-signature: %w", ErrCSR, err)
	}
	key, _ := raw.PublicKey.(ed25519.PublicKey)
	c := &CSR{CommonName: name, Key: key, Raw: raw}
	for _, e := range raw.Extensions {
		if err := c.readExtension(e); err != nil {
			return nil, err
		}
	}
	return c, nil
}

// readExtension keeps a wanted key usage. Wanted names and purposes are only
// looked at: the issuer decides them.
func (c *CSR) readExtension(e pkix.Extension) error {
	var rest []byte
	var err error
	switch {
	case e.Id.Equal(oidSubjectAltName): // x509 has read it
	case e.Id.Equal(oidExtKeyUsage):
		var purposes []asn1.ObjectIdentifier
		rest, err = asn1.Unmarshal(e.Value, &purposes)
	case e.Id.Equal(oidKeyUsage):
		var bits asn1.BitString
		rest, err = asn1.Unmarshal(e.Value, &bits)
		for i := range 9 {
			c.usage |= x509.KeyUsage(bits.At(i)) << i
		}
	default:
		return fmt.Errorf("%w: extension %s is not supported", ErrCSR, e.Id)
	}
	if err != nil || len(rest) > 0 {
		return fmt.Errorf("%w: extension %s is malformed", ErrCSR, e.Id)
	}
	return nil
}

// onlyCommonName is the common name of a subject that has exactly one. Of two,
// some readers take the first and others the last.
func onlyCommonName(subject pkix.Name) (string, bool) {
	count := 0
	for _, attribute := range subject.Names {
		if attribute.Type.Equal(oidCommonName) {
			count++
		}
	}
	return subject.CommonName, count == 1 && subject.CommonName != ""
}

// NewCSR makes the PEM request of a host: its bare name and nothing else.
func NewCSR(key crypto.Signer, hostname string) ([]byte, error) {
	subject, err := encodeName(nil, hostname)
	if err != nil {
		return nil, fmt.Errorf("make certificate request: %w", err)
	}
	der, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{RawSubject: subject}, key)
	if err != nil {
		return nil, fmt.Errorf("make certificate request: %w", err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: der}), nil
}

// encodeName is a subject with the attributes of other but its common names,
// each as it was encoded, and after them cn as UTF8String. other is a DER Name
// or nothing.
func encodeName(other []byte, cn string) ([]byte, error) {
	type attributeSET []struct {
		Type  asn1.ObjectIdentifier
		Value asn1.RawValue
	}
	var sets, kept []attributeSET
	if len(other) > 0 {
		if rest, err := asn1.Unmarshal(other, &sets); err != nil || len(rest) > 0 {
			return nil, fmt.Errorf("%w: malformed subject", ErrCSR)
		}
	}
	for _, set := range sets {
		var without attributeSET
		for _, attribute := range set {
			if !attribute.Type.Equal(oidCommonName) {
				without = append(without, attribute)
			}
		}
		if len(without) > 0 {
			kept = append(kept, without)
		}
	}
	name := attributeSET{{oidCommonName, asn1.RawValue{Tag: asn1.TagUTF8String, Bytes: []byte(cn)}}}
	return asn1.Marshal(append(kept, name))
}
