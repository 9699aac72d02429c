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

// ErrIdentity: a certificate of this fleet that is neither an agent's nor an
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

// Identify decides role and name from verified chains, and is the one place
// that does. An operator's leaf hangs directly under a self-signed root; an
// agent's hangs under an issuing CA, has a canonical common name, and its only
// DNS name, if it has one, is the same. A bare name, such as an operator's that
// equals a host's, is no host unless it is declared.
func (r IdentityRules) Identify(chains [][]*x509.Certificate) (Identity, error) {
	if len(chains) == 0 || len(chains[0]) < 2 {
		return Identity{}, fmt.Errorf("%w: no verified chain", ErrIdentity)
	}
	leaf, issuer := chains[0][0], chains[0][1]
	id := Identity{
		Name:       leaf.Subject.CommonName,
		CommonName: leaf.Subject.CommonName,
		NotBefore:  leaf.NotBefore,
		NotAfter:   leaf.NotAfter,
		Key:        leaf.PublicKey,
	}
	host, isHost := r.hostname(leaf)
	underRoot := bytes.Equal(issuer.RawSubject, issuer.RawIssuer)
	switch {
	case id.CommonName == "" || leaf.IsCA:
		return Identity{}, fmt.Errorf("%w: %q", ErrIdentity, id.CommonName)
	case isHost && (!underRoot || r.SingleCA):
		id.Role, id.Name = RoleAgent, host
	case !isHost && (underRoot || r.SingleCA) && !r.canonical(id.CommonName):
		id.Role = RoleOperator
	default:
		return Identity{}, fmt.Errorf("%w: %q under %q", ErrIdentity, id.CommonName, issuer.Subject.CommonName)
	}
	return id, nil
}

// canonical: the name has the form of an agent's.
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
	if len(leaf.DNSNames) > 1 || len(leaf.DNSNames) == 1 && leaf.DNSNames[0] != cn {
		return "", false
	}
	return cn[len("agent-") : len(cn)-len(r.Suffix)-1], true
}
