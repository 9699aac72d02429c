package pki

import (
	"bytes"
	"crypto"
	"crypto/x509"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"
)

// Role is what the holder of a client certificate may be.
type Role string

const (
	RoleAgent    Role = "agent"    // one host; Identity.Name is its name
	RoleOperator Role = "operator" // a person; Identity.Name is the common name
)

// ErrIdentity means that a certificate of this fleet is neither an agent's nor an
// operator's.
var ErrIdentity = errors.New("certificate names neither a host nor an operator")

// Identity is who is at the other end of a connection.
type Identity struct {
	Role       Role
	Name       string // host name, or an operator's common name
	CommonName string
	NotBefore  time.Time
	NotAfter   time.Time
	Key        crypto.PublicKey
	Scope      *Scope // of an operator; nil for everything
}

// IdentityRules say how this fleet names its certificates.
type IdentityRules struct {
	// Suffix of the canonical agent name agent-<host>.<suffix>.
	Suffix string
	// SingleCA declares that agents' and operators' certificates hang under one
	// CA, so that only the form of the name can tell them apart.
	SingleCA bool
	// LegacyHosts may still use their bare name as common name.
	LegacyHosts []string
}

// maxIntermediates bounds what a peer may make us verify. Ours sends one at most.
const maxIntermediates = 8

// VerifyChain finds the chains from the first certificate of peer to one of
// roots, for a purpose, at a time. The others of peer are intermediates.
func VerifyChain(peer []*x509.Certificate, roots *x509.CertPool, purpose x509.ExtKeyUsage,
	now time.Time) ([][]*x509.Certificate, error) {
	if len(peer) == 0 || len(peer) > 1+maxIntermediates {
		return nil, fmt.Errorf("verify certificate: %d certificates were sent, 1 to %d are allowed", len(peer),
			1+maxIntermediates)
	}
	intermediates := x509.NewCertPool()
	for _, c := range peer[1:] {
		intermediates.AddCert(c)
	}
	chains, err := peer[0].Verify(x509.VerifyOptions{
		Roots: roots, Intermediates: intermediates, CurrentTime: now, KeyUsages: []x509.ExtKeyUsage{purpose},
	})
	if err != nil {
		return nil, fmt.Errorf("verify certificate: %w", err)
	}
	return chains, nil
}

// Identify decides role and name from verified chains, and is the one place
// that does. An operator's leaf hangs directly under a self-signed root; an
// agent's hangs under an issuing CA, has a canonical common name and that name
// as its only alternative name, which the issuing CA's name constraint has been
// held against. A bare name, such as an operator's that equals a host's, is no
// host unless it is declared.
func (r IdentityRules) Identify(chains [][]*x509.Certificate) (Identity, error) {
	leaf, underRoot, err := oneIssuer(chains)
	if err != nil {
		return Identity{}, err
	}
	cn, one := onlyCommonName(leaf.Subject)
	id := Identity{
		Name:       cn,
		CommonName: cn,
		NotBefore:  leaf.NotBefore,
		NotAfter:   leaf.NotAfter,
		Key:        leaf.PublicKey,
	}
	host, isHost := r.hostname(leaf)
	// A certificate of X.509 v1 has no extensions, so none that limits it to clients.
	if leaf.Version != 3 {
		return Identity{}, fmt.Errorf("%w: %q is in an X.509 v%d certificate, not v3", ErrIdentity, cn, leaf.Version)
	}
	if err := CheckKey(leaf.PublicKey); err != nil {
		return Identity{}, fmt.Errorf("%w: %q: %w", ErrIdentity, cn, err)
	}
	scope, err := ScopeOf(leaf)
	if err != nil {
		return Identity{}, fmt.Errorf("%w: %q: %w", ErrIdentity, cn, err)
	}
	switch {
	case !one || leaf.IsCA:
		return Identity{}, fmt.Errorf("%w: %q", ErrIdentity, cn)
	case isHost && (!underRoot || r.SingleCA):
		id.Role, id.Name = RoleAgent, host
	case !isHost && (underRoot || r.SingleCA) && !r.canonical(id.CommonName):
		id.Role, id.Scope = RoleOperator, scope
	default:
		return Identity{}, fmt.Errorf("%w: %q under %q", ErrIdentity, cn, leaf.Issuer.CommonName)
	}
	return id, nil
}

// oneIssuer is the leaf of all chains and whether a self-signed root issued
// it. Chains that differ in that, as a cross-signed CA makes them, decide
// nothing.
func oneIssuer(chains [][]*x509.Certificate) (leaf *x509.Certificate, underRoot bool, err error) {
	for i, chain := range chains {
		if len(chain) < 2 {
			return nil, false, fmt.Errorf("%w: no issuer", ErrIdentity)
		}
		under := selfSigned(chain[1])
		if i > 0 && (under != underRoot || !chain[0].Equal(leaf)) {
			return nil, false, fmt.Errorf("%w: chains of different kinds", ErrIdentity)
		}
		leaf, underRoot = chain[0], under
	}
	if leaf == nil {
		return nil, false, fmt.Errorf("%w: no verified chain", ErrIdentity)
	}
	return leaf, underRoot, nil
}

// selfSigned compares the names first, since checking a signature costs more.
func selfSigned(c *x509.Certificate) bool {
	return bytes.Equal(c.RawSubject, c.RawIssuer) && c.CheckSignatureFrom(c) == nil
}

// canonical tells whether a name has the form of an agent's.
func (r IdentityRules) canonical(cn string) bool {
	return strings.HasPrefix(cn, "agent-") && strings.HasSuffix(cn, "."+r.Suffix)
}

// hostname is the host that a leaf speaks for.
func (r IdentityRules) hostname(leaf *x509.Certificate) (string, bool) {
	cn := leaf.Subject.CommonName
	if slices.Contains(r.LegacyHosts, cn) {
		return cn, true
	}
	if r.Suffix == "" || !r.canonical(cn) || len(cn) <= len("agent-.")+len(r.Suffix) {
		return "", false
	}
	if len(leaf.DNSNames) != 1 || leaf.DNSNames[0] != cn ||
		len(leaf.IPAddresses)+len(leaf.EmailAddresses)+len(leaf.URIs) > 0 {
		return "", false
	}
	return cn[len("agent-") : len(cn)-len(r.Suffix)-1], true
}
