package pki

import (
	"crypto"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"
	"net"
	"time"
)

// CA is a certificate authority: the fleet root, kept by operators, or the
// issuing CA of the control plane.
type CA struct {
	Cert   *x509.Certificate
	Signer crypto.Signer
}

// minValidity is the shortest life of an agent's certificate.
const minValidity = time.Minute

// operatorBackdate lets an operator's new certificate work at once on a control
// plane whose clock is behind.
const operatorBackdate = 5 * time.Minute

// newSerial is random and at most 20 bytes long, as RFC 5280 §4.1.2.2 wants.
func newSerial() *big.Int {
	var b [20]byte
	rand.Read(b[:])
	b[0] &= 0x7f
	return new(big.Int).SetBytes(b[:])
}

// keyID is the left 160 bits of SHA-256 over the key's bit string, method 1 of
// RFC 7093 §2.
func keyID(pub crypto.PublicKey) ([]byte, error) {
	der, err := x509.MarshalPKIXPublicKey(pub)
	if err != nil {
		return nil, err
	}
	var spki struct {
		Algorithm pkix.AlgorithmIdentifier
		Key       asn1.BitString
	}
	if _, err := asn1.Unmarshal(der, &spki); err != nil {
		return nil, err
	}
	sum := sha256.Sum256(spki.Key.Bytes)
	return sum[:20], nil
}

func certificatePEM(der []byte) []byte {
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
}

// issue signs template for pub. A nil CA signs itself.
func (ca *CA) issue(template *x509.Certificate, pub crypto.PublicKey,
	self crypto.Signer) ([]byte, *x509.Certificate, error) {
	if err := CheckKey(pub); err != nil {
		return nil, nil, fmt.Errorf("issue certificate: %w", err)
	}
	template.SerialNumber = newSerial()
	template.NotBefore = template.NotBefore.Truncate(time.Second)
	template.NotAfter = template.NotAfter.Truncate(time.Second)
	parent, signer := template, self
	if ca != nil {
		parent, signer = ca.Cert, ca.Signer
		if len(ca.Cert.SubjectKeyId) == 0 {
			// x509 takes over the CA's key id; one of an older set-up has none.
			id, err := keyID(ca.Cert.PublicKey)
			if err != nil {
				return nil, nil, fmt.Errorf("issue certificate: %w", err)
			}
			template.AuthorityKeyId = id
		}
	}
	der, err := x509.CreateCertificate(rand.Reader, template, parent, pub, signer)
	if err != nil {
		return nil, nil, fmt.Errorf("issue certificate: %w", err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		return nil, nil, fmt.Errorf("issue certificate: %w", err)
	}
	return certificatePEM(der), cert, nil
}

// NewFleetRoot makes the self-signed P-256 root of a fleet.
func NewFleetRoot(name string, now time.Time, validity time.Duration) (*CA, *PrivateKey, error) {
	key, err := GenerateKey(AlgorithmP256)
	if err != nil {
		return nil, nil, err
	}
	id, err := keyID(key.Crypto().Public())
	if err != nil {
		return nil, nil, fmt.Errorf("make fleet root: %w", err)
	}
	_, cert, err := (*CA)(nil).issue(&x509.Certificate{
		Subject:               pkix.Name{CommonName: name},
		NotBefore:             now,
		NotAfter:              now.Add(validity),
		IsCA:                  true,
		BasicConstraintsValid: true,
		MaxPathLen:            1,
		KeyUsage:              x509.KeyUsageCertSign | x509.KeyUsageCRLSign,
		SubjectKeyId:          id,
	}, key.Crypto().Public(), key.Crypto())
	if err != nil {
		return nil, nil, fmt.Errorf("make fleet root: %w", err)
	}
	return &CA{Cert: cert, Signer: key.Crypto()}, key, nil
}

// NewIssuingCA makes the P-256 CA that issues agents' certificates, with its key.
func (ca *CA) NewIssuingCA(suffix string, now time.Time, validity time.Duration) (*CA, *PrivateKey, error) {
	key, err := GenerateKey(AlgorithmP256)
	if err != nil {
		return nil, nil, err
	}
	cert, err := ca.CertifyIssuingCA(key.Crypto().Public(), suffix, now, validity)
	if err != nil {
		return nil, nil, err
	}
	return &CA{Cert: cert, Signer: key.Crypto()}, key, nil
}

// CertifyIssuingCA makes the certificate of a CA that issues agents' certificates and whose key is elsewhere: under
// this root, with no CA below it, for client certificates of names under suffix only.
func (ca *CA) CertifyIssuingCA(
	public crypto.PublicKey, suffix string, now time.Time, validity time.Duration,
) (*x509.Certificate, error) {
	id, err := keyID(public)
	if err != nil {
		return nil, fmt.Errorf("make issuing CA: %w", err)
	}
	_, cert, err := ca.issue(&x509.Certificate{
		Subject:                     pkix.Name{CommonName: "issuing-ca." + suffix},
		NotBefore:                   now,
		NotAfter:                    now.Add(validity),
		IsCA:                        true,
		BasicConstraintsValid:       true,
		MaxPathLenZero:              true,
		KeyUsage:                    x509.KeyUsageDigitalSignature | x509.KeyUsageCertSign | x509.KeyUsageCRLSign,
		ExtKeyUsage:                 []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth},
		PermittedDNSDomainsCritical: true,
		PermittedDNSDomains:         []string{suffix},
		SubjectKeyId:                id,
	}, public, nil)
	if err != nil {
		return nil, fmt.Errorf("make issuing CA: %w", err)
	}
	return cert, nil
}

// LoadCA reads a CA's certificate and the key that belongs to it. Of several
// PEM blocks in keyPEM the first key counts.
func LoadCA(certPEM, keyPEM []byte) (*CA, error) {
	certs, err := ParseCertificates(certPEM)
	if err != nil {
		return nil, fmt.Errorf("load CA: %w", err)
	}
	for rest := keyPEM; ; {
		var block *pem.Block
		if block, rest = pem.Decode(rest); block == nil {
			return nil, fmt.Errorf("load CA: %w: no private key in PEM", ErrKey)
		}
		signer, err := caKey(block)
		if err != nil {
			return nil, fmt.Errorf("load CA: %w", err)
		}
		if signer == nil {
			continue
		}
		return newCA(certs[0], signer)
	}
}

// newCA makes sure that the halves belong together.
func newCA(cert *x509.Certificate, signer crypto.Signer) (*CA, error) {
	if pub, ok := signer.Public().(interface{ Equal(crypto.PublicKey) bool }); !ok || !pub.Equal(cert.PublicKey) {
		return nil, fmt.Errorf("load CA: %w: it does not belong to the certificate %q", ErrKey, cert.Subject.CommonName)
	}
	if !cert.IsCA {
		return nil, fmt.Errorf("load CA: certificate %q is not a CA certificate", cert.Subject.CommonName)
	}
	return &CA{Cert: cert, Signer: signer}, nil
}

// WithSigner is a CA whose key lives elsewhere, such as in a TPM.
func WithSigner(certPEM []byte, signer crypto.Signer) (*CA, error) {
	certs, err := ParseCertificates(certPEM)
	if err != nil {
		return nil, fmt.Errorf("load CA: %w", err)
	}
	return newCA(certs[0], signer)
}

// caKey is nil for a block that holds no private key.
func caKey(block *pem.Block) (crypto.Signer, error) {
	parse := pemKeys[block.Type]
	if parse == nil {
		return nil, nil
	}
	key, err := parse(block.Bytes)
	if err != nil {
		return nil, fmt.Errorf("%w: damaged %s block", ErrKey, block.Type)
	}
	signer, ok := key.(crypto.Signer)
	if !ok {
		return nil, fmt.Errorf("%w: it cannot sign", ErrKey)
	}
	return signer, nil
}

// ParseCertificates reads all PEM certificates of a bundle, at least one. A key that CheckKey refuses is refused.
func ParseCertificates(bundle []byte) ([]*x509.Certificate, error) {
	var certs []*x509.Certificate
	for rest := bundle; ; {
		var block *pem.Block
		if block, rest = pem.Decode(rest); block == nil {
			break
		}
		if block.Type != "CERTIFICATE" {
			continue
		}
		cert, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			return nil, fmt.Errorf("parse certificate %d of the bundle: %w", len(certs), err)
		}
		if err := CheckKey(cert.PublicKey); err != nil {
			return nil, fmt.Errorf("parse certificate %d of the bundle: %w", len(certs), err)
		}
		certs = append(certs, cert)
	}
	if len(certs) == 0 {
		return nil, errors.New("no PEM certificate")
	}
	return certs, nil
}

// AgentName is the canonical name of a host's certificate.
func AgentName(hostname, suffix string) string { return "agent-" + hostname + "." + suffix }

// IssueAgent issues the certificate of hostname for the request's key. The
// name comes from the caller, who knows who is asking; of the request only the
// key, the other subject attributes and a wanted key usage are taken, without
// the usages of a CA. The certificate does not outlive the CA, so that its
// holder renews in time, and is not handed out unless it verifies under it: a
// name outside the CA's name constraint is an error here and not at the next
// connection.
func (ca *CA) IssueAgent(csr *CSR, hostname, suffix string, now time.Time,
	validity time.Duration) ([]byte, *x509.Certificate, error) {
	if csr.Key == nil {
		return nil, nil, ErrCSRKey
	}
	if validity < minValidity {
		return nil, nil, fmt.Errorf("issue certificate of %s: validity %s is below %s", hostname, validity, minValidity)
	}
	name := AgentName(hostname, suffix)
	subject, err := encodeName(csr.Raw.RawSubject, name)
	if err != nil {
		return nil, nil, fmt.Errorf("%s: %w", name, err)
	}
	notBefore := now.Truncate(time.Second)
	notAfter := notBefore.Add(validity)
	if notAfter.After(ca.Cert.NotAfter) {
		notAfter = ca.Cert.NotAfter
	}
	text, cert, err := ca.issue(&x509.Certificate{
		RawSubject:  subject,
		NotBefore:   notBefore,
		NotAfter:    notAfter,
		DNSNames:    []string{name},
		KeyUsage:    csr.usage &^ (x509.KeyUsageCertSign | x509.KeyUsageCRLSign),
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth},
	}, csr.Key, nil)
	if err != nil {
		return nil, nil, fmt.Errorf("%s: %w", name, err)
	}
	roots := x509.NewCertPool()
	roots.AddCert(ca.Cert)
	if _, err := VerifyChain([]*x509.Certificate{cert}, roots, x509.ExtKeyUsageClientAuth, now); err != nil {
		return nil, nil, fmt.Errorf("issue certificate of %s: it would not verify: %w", name, err)
	}
	return text, cert, nil
}

// IssueOperator issues a person's client certificate. It must hang directly
// under the fleet root to count as an operator's.
func (ca *CA) IssueOperator(cn string, pub crypto.PublicKey, now time.Time, validity time.Duration) ([]byte, error) {
	return ca.IssueScopedOperator(cn, nil, pub, now, validity)
}

// IssueScopedOperator issues a person's client certificate that may do what the scope
// has; nil is everything.
func (ca *CA) IssueScopedOperator(cn string, scope *Scope, pub crypto.PublicKey, now time.Time,
	validity time.Duration) ([]byte, error) {
	if cn == "" {
		return nil, errors.New("issue operator certificate: no name")
	}
	var extensions []pkix.Extension
	if scope != nil {
		extension, err := scope.extension()
		if err != nil {
			return nil, fmt.Errorf("issue operator certificate: %w", err)
		}
		extensions = append(extensions, extension)
	}
	text, _, err := ca.issue(&x509.Certificate{
		Subject:               pkix.Name{CommonName: cn},
		NotBefore:             now.Add(-operatorBackdate),
		NotAfter:              now.Add(validity),
		BasicConstraintsValid: true,
		KeyUsage:              x509.KeyUsageDigitalSignature,
		ExtKeyUsage:           []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth},
		ExtraExtensions:       extensions,
	}, pub, nil)
	return text, err
}

// IssueServer issues a server certificate for DNS names and addresses.
func (ca *CA) IssueServer(names []string, pub crypto.PublicKey, now time.Time, validity time.Duration) ([]byte, error) {
	if len(names) == 0 {
		return nil, errors.New("issue server certificate: no name")
	}
	template := &x509.Certificate{
		Subject:               pkix.Name{CommonName: names[0]},
		NotBefore:             now.Add(-operatorBackdate),
		NotAfter:              now.Add(validity),
		BasicConstraintsValid: true,
		KeyUsage:              x509.KeyUsageDigitalSignature,
		ExtKeyUsage:           []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
	}
	for _, name := range names {
		if ip := net.ParseIP(name); ip != nil {
			template.IPAddresses = append(template.IPAddresses, ip)
		} else {
			template.DNSNames = append(template.DNSNames, name)
		}
	}
	text, _, err := ca.issue(template, pub, nil)
	return text, err
}
