package agent

import (
	"bytes"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"nixfleet/pki"
	"nixfleet/roles/command"
)

// A certificate is what a control plane says that outlives the conversation longest: an
// answer that is wrong locks the host out until root comes by. It is looked at here before
// it is kept.

// errEarly means that a certificate is right but for its beginning, which lies in the
// future by this host's clock.
var errEarly = errors.New("certificate is not valid yet by this host's clock")

// check parses a certificate that a control plane answered and says what is wrong with it.
// inUse is the certificate that it is to replace; nil at an enrolment, which may come from
// another CA and another suffix.
func (i *identity) check(text string, inUse *x509.Certificate) (*x509.Certificate, error) {
	cert, err := oneCertificate(text)
	if err != nil {
		return nil, err
	}
	if !i.isOurs(cert) {
		return nil, errors.New("the control plane answered a certificate for another key")
	}
	if err := i.named(cert, inUse); err != nil {
		return nil, err
	}
	if cert.IsCA || len(cert.ExtKeyUsage)+len(cert.UnknownExtKeyUsage) > 0 &&
		!slices.Contains(cert.ExtKeyUsage, x509.ExtKeyUsageClientAuth) {
		return nil, errors.New("the control plane answered a certificate that is not for a client")
	}
	if err := i.issued(cert, inUse); err != nil {
		return nil, err
	}
	now := i.now()
	switch {
	case !cert.NotBefore.Before(cert.NotAfter), !now.Before(cert.NotAfter):
		return nil, fmt.Errorf("the control plane answered a certificate that expired at %s", pki.At(cert.NotAfter))
	case i.early(cert):
		return cert, i.tooEarly(cert)
	}
	return cert, nil
}

func (i *identity) tooEarly(cert *x509.Certificate) error {
	return fmt.Errorf("%w: it begins at %s, this host's clock says %s", errEarly, pki.At(cert.NotBefore),
		pki.At(i.now().Truncate(time.Second)))
}

// waitsForClock is why the certificate of an enrolment is not used yet; nil when none waits.
func (i *identity) waitsForClock() error {
	cert, err := i.read(i.nextPath())
	if err != nil || cert == nil || !i.isOurs(cert.Leaf) || !i.early(cert.Leaf) {
		return nil
	}
	return &command.Error{Err: i.tooEarly(cert.Leaf), Hint: clockHint}
}

// oneCertificate wants one PEM block and nothing around it.
func oneCertificate(text string) (*x509.Certificate, error) {
	text = strings.TrimSpace(text)
	if len(text) > certificateRoom {
		return nil, fmt.Errorf("the control plane answered a certificate of %d bytes", len(text))
	}
	block, rest := pem.Decode([]byte(text))
	if block == nil || block.Type != "CERTIFICATE" || !strings.HasPrefix(text, "-----BEGIN CERTIFICATE-----") ||
		len(block.Headers) > 0 {
		return nil, errors.New("the control plane answered without a certificate")
	}
	if len(bytes.TrimSpace(rest)) > 0 {
		return nil, errors.New("the control plane answered more than one certificate")
	}
	cert, err := x509.ParseCertificate(block.Bytes)
	if err != nil {
		return nil, fmt.Errorf("the control plane answered a damaged certificate: %w", err)
	}
	return cert, nil
}

// named wants the canonical name of this host as the only name, with the suffix of the
// certificate in use.
func (i *identity) named(cert, inUse *x509.Certificate) error {
	name, bare := cert.Subject.CommonName, pki.AgentName(i.hostname, "")
	switch {
	case !strings.HasPrefix(name, bare) || len(name) == len(bare):
		return fmt.Errorf("the control plane answered a certificate for %.80q, not for %q", name, bare+"…")
	case inUse != nil && strings.HasPrefix(inUse.Subject.CommonName, bare) && name != inUse.Subject.CommonName:
		return fmt.Errorf("the control plane answered a certificate for %.80q, but the one in use is for %q", name,
			inUse.Subject.CommonName)
	case len(cert.DNSNames) != 1 || cert.DNSNames[0] != name ||
		len(cert.IPAddresses)+len(cert.EmailAddresses)+len(cert.URIs) > 0:
		return fmt.Errorf("the control plane answered a certificate with other names besides %.80q", name)
	}
	return nil
}

// issued wants a chain to an issuing CA of the trust file. A trust file that names none
// leaves the issuer's name and key identifier to compare, which prove nothing:
// --check-config says so.
func (i *identity) issued(cert, inUse *x509.Certificate) error {
	pinned, err := i.pinned()
	if err != nil {
		return err
	}
	if pinned != nil {
		return i.chained(cert, pinned)
	}
	if inUse == nil {
		return nil
	}
	if !bytes.Equal(cert.RawIssuer, inUse.RawIssuer) {
		return fmt.Errorf("the control plane answered a certificate of issuer %.80q, but the one in use is of %.80q; "+
			"trust.json names no issuing CA to check it with", cert.Issuer, inUse.Issuer)
	}
	// Certificates of a v1 control plane bear no key identifier.
	missing := len(inUse.AuthorityKeyId) == 0 || len(cert.AuthorityKeyId) == 0 && i.allowV1
	if !missing && !bytes.Equal(cert.AuthorityKeyId, inUse.AuthorityKeyId) {
		return errors.New("the control plane answered a certificate of another issuing key than the one in use; " +
			"trust.json names no issuing CA to check it with")
	}
	return nil
}

// pinned are the issuing CAs that the trust file names; nil when it names none.
func (i *identity) pinned() (*x509.CertPool, error) {
	trust, err := i.trust()
	if err != nil {
		return nil, err
	}
	return issuingCAs(trust)
}

func issuingCAs(trust *pki.Trust) (*x509.CertPool, error) {
	var pool *x509.CertPool
	for n, text := range trust.IssuanceCAPEMs {
		if strings.TrimSpace(text) == "" {
			continue
		}
		certs, err := pki.ParseCertificates([]byte(text))
		if err != nil {
			return nil, fmt.Errorf("trust file: issuing CA %d: %w", n, err)
		}
		if pool == nil {
			pool = x509.NewCertPool()
		}
		for _, c := range certs {
			pool.AddCert(c)
		}
	}
	return pool, nil
}

// chained verifies as of the beginning of the certificate: whether that is now is looked
// at besides, and this host's clock need not be set yet.
func (i *identity) chained(cert *x509.Certificate, pinned *x509.CertPool) error {
	if _, err := pki.VerifyChain([]*x509.Certificate{cert}, pinned, x509.ExtKeyUsageClientAuth,
		cert.NotBefore); err != nil {
		return fmt.Errorf("the control plane answered a certificate that no issuing CA of trust.json has issued: %w", err)
	}
	return nil
}

// knownStart is the beginning of the certificate in use where an issuing CA of the trust
// file vouches for it; zero otherwise. No other certificate says what time it is.
func (i *identity) knownStart() time.Time {
	cert, err := i.certificate()
	if err != nil || cert == nil {
		return time.Time{}
	}
	if pinned, err := i.pinned(); err != nil || pinned == nil || i.chained(cert.Leaf, pinned) != nil {
		return time.Time{}
	}
	return cert.Leaf.NotBefore
}

// mayBe reports whether a time that a control plane tells can be the present one: it has just
// accepted our certificate.
func (i *identity) mayBe(told time.Time) bool {
	cert := i.usable()
	return cert != nil && !told.After(cert.Leaf.NotAfter)
}
