package pki

import (
	"crypto"
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"net"
	"testing"
	"time"
)

// forge signs whatever leaf one likes, as a control plane in other hands could.
func forge(t *testing.T, ca *CA, now time.Time, cn string, change func(*x509.Certificate)) *x509.Certificate {
	t.Helper()
	template := &x509.Certificate{
		Subject: pkix.Name{CommonName: cn}, NotBefore: now, NotAfter: now.Add(time.Hour),
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth},
	}
	if change != nil {
		change(template)
	}
	_, cert, err := ca.issue(template, seedKey(t, 0x31).Crypto().Public(), nil)
	if err != nil {
		t.Fatal(err)
	}
	return cert
}

func withName(names ...string) func(*x509.Certificate) {
	return func(c *x509.Certificate) { c.DNSNames = names }
}

// Who is who, by certificate alone. An operator named like a host is not a host,
// and the issuing CA's holder can make no operator.
func TestIdentify_T3(t *testing.T) {
	f := newFleetCA(t)
	const db01 = "agent-db-01." + suffix
	// Another fleet's CA under the same root, whose holder wants to be db-01.
	neighbour, _, err := f.root.NewIssuingCA("other.example.com", f.now.Add(-day), 30*day)
	if err != nil {
		t.Fatal(err)
	}
	single := IdentityRules{Suffix: suffix, SingleCA: true}
	legacy := IdentityRules{Suffix: suffix, LegacyHosts: []string{"old-01"}}
	plain := IdentityRules{Suffix: suffix}
	twoNames := func(c *x509.Certificate) {
		c.Subject.ExtraNames = []pkix.AttributeTypeAndValue{{Type: oidCommonName, Value: db01},
			{Type: oidCommonName, Value: "jo"}}
	}
	for _, c := range []struct {
		name  string
		rules IdentityRules
		leaf  *x509.Certificate
		ca    *CA
		role  Role // "" when refused
		who   string
	}{
		{"agent", plain, f.agent(t, "db-01"), f.issuing, RoleAgent, "db-01"},
		{"agent with dots in its name", plain, f.agent(t, "db-01.eu"), f.issuing, RoleAgent, "db-01.eu"},
		{"operator", plain, forge(t, f.root, f.now, "jo", nil), f.root, RoleOperator, "jo"},
		{"operator named like a host", plain, forge(t, f.root, f.now, "db-01", nil), f.root, RoleOperator, "db-01"},
		{"bare name under the issuing CA", plain, forge(t, f.issuing, f.now, "jo", nil), f.issuing, "", ""},
		{"host name under the issuing CA", plain, forge(t, f.issuing, f.now, "db-01", nil), f.issuing, "", ""},
		{"canonical name under the root", plain, forge(t, f.root, f.now, db01, withName(db01)), f.root, "", ""},
		{"canonical name without an alternative one", plain, forge(t, f.issuing, f.now, db01, nil), f.issuing, "", ""},
		{"neighbour, name that no constraint is held against", plain, forge(t, neighbour, f.now, db01, nil), neighbour,
			"", ""},
		{"neighbour, its own alternative name", plain,
			forge(t, neighbour, f.now, db01, withName("agent-db-01.other.example.com")), neighbour, "", ""},
		{"two alternative names", plain, forge(t, f.issuing, f.now, db01, withName(db01, "agent-web-01."+suffix)), f.issuing,
			"", ""},
		{"address besides", plain, forge(t, f.issuing, f.now, db01, func(c *x509.Certificate) {
			c.DNSNames, c.IPAddresses = []string{db01}, []net.IP{net.IPv4(10, 0, 0, 1)}
		}), f.issuing, "", ""},
		{"two common names, operator", plain, forge(t, f.root, f.now, "", twoNames), f.root, "", ""},
		{"two common names, agent", plain,
			forge(t, f.issuing, f.now, "", func(c *x509.Certificate) { twoNames(c); c.DNSNames = []string{db01} }), f.issuing,
			"", ""},
		{"no common name", plain, forge(t, f.root, f.now, "", withName("x.example.com")), f.root, "", ""},
		{"empty host", plain, forge(t, f.issuing, f.now, "agent-."+suffix, withName("agent-."+suffix)), f.issuing, "", ""},
		{"other suffix", plain, forge(t, f.issuing, f.now, "agent-db-01.x", nil), f.issuing, "", ""},
		{"no suffix set", IdentityRules{}, f.agent(t, "db-01"), f.issuing, "", ""},
		{"CA as a client", plain, f.issuing.Cert, f.root, "", ""},
		{"declared legacy host", legacy, forge(t, f.issuing, f.now, "old-01", nil), f.issuing, RoleAgent, "old-01"},
		{"operator named like a legacy host", legacy, forge(t, f.root, f.now, "old-01", nil), f.root, "", ""},
		{"undeclared legacy host", legacy, forge(t, f.issuing, f.now, "old-02", nil), f.issuing, "", ""},
		{"single CA, agent", single, forge(t, f.root, f.now, db01, withName(db01)), f.root, RoleAgent, "db-01"},
		{"single CA, operator", single, forge(t, f.root, f.now, "jo", nil), f.root, RoleOperator, "jo"},
		{"single CA, half an agent", single, forge(t, f.root, f.now, db01, nil), f.root, "", ""},
	} {
		id, err := c.rules.Identify([][]*x509.Certificate{{c.leaf, c.ca.Cert}})
		if c.role == "" {
			if !errors.Is(err, ErrIdentity) {
				t.Errorf("%s: identified as %+v, %v", c.name, id, err)
			}
			continue
		}
		if err != nil || id.Role != c.role || id.Name != c.who || id.CommonName != c.leaf.Subject.CommonName ||
			!id.NotBefore.Equal(c.leaf.NotBefore) || !id.NotAfter.Equal(c.leaf.NotAfter) {
			t.Errorf("%s: got %+v, %v", c.name, id, err)
		}
		if key, ok := id.Key.(interface{ Equal(crypto.PublicKey) bool }); err == nil &&
			(!ok || !key.Equal(c.leaf.PublicKey)) {
			t.Errorf("%s: another key", c.name)
		}
	}
}

func TestIdentifyByVerifiedChains(t *testing.T) {
	f := newFleetCA(t)
	rules := IdentityRules{Suffix: suffix}
	// The agent sends its leaf alone; both CAs are known to the server.
	chains, err := VerifyChain([]*x509.Certificate{f.agent(t, "db-01")}, f.pool(), x509.ExtKeyUsageClientAuth, f.now)
	if err != nil {
		t.Fatal(err)
	}
	if id, err := rules.Identify(chains); err != nil || id.Role != RoleAgent || id.Name != "db-01" {
		t.Errorf("got %+v, %v", id, err)
	}
	// It does not verify outside its time, nor under a root alone.
	leaf := []*x509.Certificate{f.agent(t, "db-01")}
	onlyRoot := x509.NewCertPool()
	onlyRoot.AddCert(f.root.Cert)
	for name, verify := range map[string]func() error{
		"before": func() error {
			_, err := VerifyChain(leaf, f.pool(), x509.ExtKeyUsageClientAuth, f.now.Add(-time.Second))
			return err
		},
		"after": func() error {
			_, err := VerifyChain(leaf, f.pool(), x509.ExtKeyUsageClientAuth, f.now.Add(31*day))
			return err
		},
		"root only": func() error { _, err := VerifyChain(leaf, onlyRoot, x509.ExtKeyUsageClientAuth, f.now); return err },
		"other fleet": func() error {
			_, err := VerifyChain(leaf, newFleetCA(t).pool(), x509.ExtKeyUsageClientAuth, f.now)
			return err
		},
		"as a server": func() error {
			_, err := VerifyChain(leaf, f.pool(), x509.ExtKeyUsageServerAuth, f.now)
			return err
		},
	} {
		if verify() == nil {
			t.Errorf("%s: verified", name)
		}
	}
}

// What looks self-signed by its names only is not a root, and chains that tell two
// stories tell none.
func TestIdentifyAmbiguousChains(t *testing.T) {
	f := newFleetCA(t)
	rules := IdentityRules{Suffix: suffix}
	leaf := forge(t, f.issuing, f.now, "jo", nil)
	// The issuing CA's own key under a certificate that it signed for itself.
	selfIssued := &x509.Certificate{
		RawSubject: f.issuing.Cert.RawSubject, NotBefore: f.now.Add(-day), NotAfter: f.now.Add(day),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
	}
	_, self, err := (*CA)(nil).issue(selfIssued, f.issuing.Signer.Public(), f.issuing.Signer)
	if err != nil {
		t.Fatal(err)
	}
	twin, _, err := NewFleetRoot("twin", f.now.Add(-day), 30*day)
	if err != nil {
		t.Fatal(err)
	}
	namesake := *twin.Cert // names of one, signature of the other
	namesake.RawSubject, namesake.RawIssuer = f.root.Cert.RawSubject, f.root.Cert.RawSubject
	namesake.PublicKey = f.issuing.Cert.PublicKey
	for name, chains := range map[string][][]*x509.Certificate{
		"none":           nil,
		"no issuer":      {{leaf}},
		"empty chain":    {{}},
		"two kinds":      {{leaf, f.issuing.Cert, f.root.Cert}, {leaf, self}},
		"two leaves":     {{leaf, f.issuing.Cert}, {f.agent(t, "db-01"), f.issuing.Cert}},
		"self by name":   {{leaf, &namesake}},
		"issuing, twice": {{leaf, f.issuing.Cert}, {leaf, f.issuing.Cert, f.root.Cert}},
	} {
		if id, err := rules.Identify(chains); !errors.Is(err, ErrIdentity) {
			t.Errorf("%s: identified as %+v, %v", name, id, err)
		}
	}
	agent := f.agent(t, "db-01")
	if id, err := rules.Identify([][]*x509.Certificate{{agent, f.issuing.Cert},
		{agent, f.issuing.Cert, f.root.Cert}}); err != nil || id.Name != "db-01" {
		t.Errorf("two chains of one kind: %+v, %v", id, err)
	}
}
