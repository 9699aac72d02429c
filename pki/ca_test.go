package pki

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"encoding/pem"
	"errors"
	"io"
	"strings"
	"testing"
	"time"
)

const (
	suffix = "fleet.example.com"
	day    = 24 * time.Hour
)

// fleetCA is a root and its issuing CA, made a day before noon.
type fleetCA struct {
	root, issuing       *CA
	rootKey, issuingKey *PrivateKey
	now                 time.Time
}

func newFleetCA(t testing.TB) fleetCA {
	t.Helper()
	f := fleetCA{now: mustTime(t, noon)}
	var err error
	if f.root, f.rootKey, err = NewFleetRoot("example fleet root", f.now.Add(-day), 3650*day); err != nil {
		t.Fatal(err)
	}
	if f.issuing, f.issuingKey, err = f.root.NewIssuingCA(suffix, f.now.Add(-day), 365*day); err != nil {
		t.Fatal(err)
	}
	return f
}

// pool is what a control plane is given as client CAs.
func (f fleetCA) pool() *x509.CertPool {
	pool := x509.NewCertPool()
	pool.AddCert(f.root.Cert)
	pool.AddCert(f.issuing.Cert)
	return pool
}

func hostCSR(t testing.TB, key *PrivateKey, hostname string) *CSR {
	t.Helper()
	text, err := NewCSR(key.Crypto(), hostname)
	if err != nil {
		t.Fatal(err)
	}
	csr, err := ParseCSR(text)
	if err != nil {
		t.Fatal(err)
	}
	return csr
}

func (f fleetCA) agent(t testing.TB, hostname string) *x509.Certificate {
	t.Helper()
	_, cert, err := f.issuing.IssueAgent(hostCSR(t, seedKey(t, 0x33), hostname), hostname, suffix, f.now, 30*day)
	if err != nil {
		t.Fatal(err)
	}
	return cert
}

func parseOne(t testing.TB, text []byte, err error) *x509.Certificate {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
	certs, err := ParseCertificates(text)
	if err != nil || len(certs) != 1 {
		t.Fatalf("%d certificates, %v", len(certs), err)
	}
	return certs[0]
}

func extension(c *x509.Certificate, id ...int) *pkix.Extension {
	for _, e := range c.Extensions {
		if e.Id.Equal(id) {
			return &e
		}
	}
	return nil
}

// The table of wire.md §2 for the two CAs.
func TestCACertificates(t *testing.T) {
	f := newFleetCA(t)
	root, issuing := f.root.Cert, f.issuing.Cert
	if !root.IsCA || root.CheckSignatureFrom(root) != nil || root.NotAfter.Sub(root.NotBefore) != 3650*day {
		t.Error("the root is not a self-signed CA of 3650 days")
	}
	if key, ok := issuing.PublicKey.(*ecdsa.PublicKey); !ok || key.Curve != elliptic.P256() {
		t.Error("the issuing CA is not P-256")
	}
	if err := issuing.CheckSignatureFrom(root); err != nil {
		t.Error(err)
	}
	if !issuing.IsCA || !issuing.BasicConstraintsValid || !issuing.MaxPathLenZero || issuing.MaxPathLen != 0 {
		t.Error("the issuing CA is not CA:TRUE, pathlen 0")
	}
	if want := x509.KeyUsageDigitalSignature | x509.KeyUsageCertSign | x509.KeyUsageCRLSign; issuing.KeyUsage != want {
		t.Errorf("key usage %b, want %b", issuing.KeyUsage, want)
	}
	if len(issuing.ExtKeyUsage) != 1 || issuing.ExtKeyUsage[0] != x509.ExtKeyUsageClientAuth {
		t.Errorf("purposes %v", issuing.ExtKeyUsage)
	}
	if e := extension(issuing, 2, 5, 29, 30); e == nil || !e.Critical || len(issuing.PermittedDNSDomains) != 1 ||
		issuing.PermittedDNSDomains[0] != suffix {
		t.Errorf("name constraint %v, %v", e, issuing.PermittedDNSDomains)
	}
	if len(issuing.SubjectKeyId) != 20 || !bytes.Equal(issuing.AuthorityKeyId, root.SubjectKeyId) {
		t.Error("key ids do not link issuing CA and root")
	}
}

// The table of wire.md §2 for an agent's certificate, with its HAZARD lines.
func TestAgentCertificate(t *testing.T) {
	f := newFleetCA(t)
	now := f.now.Add(123456789 * time.Nanosecond)
	host := seedKey(t, 0x33)
	csr := hostCSR(t, host, "db-01")
	text, cert, err := f.issuing.IssueAgent(csr, "db-01", suffix, now, 30*day)
	if err != nil {
		t.Fatal(err)
	}
	if again := parseOne(t, text, nil); !again.Equal(cert) {
		t.Error("the PEM is another certificate")
	}
	const name = "agent-db-01." + suffix
	if cert.Subject.CommonName != name || len(cert.Subject.Names) != 1 {
		t.Errorf("subject %s", cert.Subject)
	}
	if !bytes.Contains(cert.RawSubject, append([]byte{asn1.TagUTF8String, byte(len(name))}, name...)) {
		t.Error("the common name is not a UTF8String")
	}
	if len(cert.DNSNames) != 1 || cert.DNSNames[0] != name ||
		len(cert.IPAddresses)+len(cert.URIs)+len(cert.EmailAddresses) > 0 {
		t.Errorf("alternative names %v", cert.DNSNames)
	}
	if e := extension(cert, 2, 5, 29, 37); e == nil || e.Critical || len(cert.ExtKeyUsage) != 1 ||
		cert.ExtKeyUsage[0] != x509.ExtKeyUsageClientAuth {
		t.Errorf("purposes %v, %v", e, cert.ExtKeyUsage)
	}
	if cert.KeyUsage != 0 || extension(cert, 2, 5, 29, 19) != nil || len(cert.SubjectKeyId) > 0 {
		t.Error("key usage, basic constraints or key id that nobody asked for")
	}
	if !bytes.Equal(cert.AuthorityKeyId, f.issuing.Cert.SubjectKeyId) {
		t.Error("no authority key id")
	}
	if !cert.NotBefore.Equal(f.now) || !cert.NotAfter.Equal(f.now.Add(30*day)) {
		t.Errorf("valid from %s to %s", cert.NotBefore, cert.NotAfter)
	}
	if !SameKey(cert.PublicKey.(ed25519.PublicKey), host.Crypto().Public().(ed25519.PublicKey)) {
		t.Error("another key")
	}
	// NixOS lets underscores into host names.
	if id, err := (IdentityRules{Suffix: suffix}).
		Identify([][]*x509.Certificate{{f.agent(t, "db_01"), f.issuing.Cert, f.root.Cert}}); err != nil ||
		id.Name != "db_01" {
		t.Errorf("db_01 is %+v, %v", id, err)
	}
	old := *f.issuing.Cert
	old.SubjectKeyId = nil
	if _, cert, err := (&CA{&old, f.issuing.Signer}).IssueAgent(csr, "db-01", suffix, now, day); err != nil ||
		len(cert.AuthorityKeyId) != 20 {
		t.Errorf("under a CA without key id: %v", err)
	}
	serials := map[string]bool{}
	for range 16 {
		c := f.agent(t, "db-01")
		// With the top bit set the encoding has a 21st byte.
		if c.SerialNumber.Sign() <= 0 || c.SerialNumber.BitLen() > 159 {
			t.Errorf("serial %x", c.SerialNumber)
		}
		serials[c.SerialNumber.String()] = true
	}
	if len(serials) != 16 {
		t.Errorf("%d serials for 16 certificates of one key", len(serials))
	}
}

// Host A asks for B's name, in every place where a request can say a name. The
// certificate says who the caller knows is asking.
func TestRenewalNameIsTheCallers_T1(t *testing.T) {
	f := newFleetCA(t)
	der, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{
		Subject:  pkix.Name{CommonName: "web-02", Organization: []string{"Beispiel"}, SerialNumber: "7"},
		DNSNames: []string{"agent-web-02." + suffix, "web-02"},
		ExtraExtensions: []pkix.Extension{
			{Id: oidKeyUsage, Value: []byte{0x03, 0x02, 0x01, 0x86}}, // digitalSignature, keyCertSign, cRLSign
			{Id: oidExtKeyUsage, Value: []byte{0x30, 0x0a, 0x06, 0x08, 0x2b, 0x06, 0x01, 0x05, 0x05, 0x07, 0x03, 0x01}},
		},
	}, seedKey(t, 0x31).Crypto())
	csr, err := ParseCSR(pemOf(t, "CERTIFICATE REQUEST", der, err))
	if err != nil {
		t.Fatal(err)
	}
	if csr.CommonName != "web-02" {
		t.Errorf("request of %q", csr.CommonName)
	}
	_, cert, err := f.issuing.IssueAgent(csr, "web-01", suffix, f.now, time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	const name = "agent-web-01." + suffix
	if cn, one := onlyCommonName(cert.Subject); !one || cn != name || len(cert.DNSNames) != 1 || cert.DNSNames[0] != name {
		t.Errorf("subject %s, names %v", cert.Subject, cert.DNSNames)
	}
	if len(cert.Subject.Organization) != 1 || cert.Subject.SerialNumber != "7" {
		t.Errorf("other attributes are lost: %s", cert.Subject)
	}
	if cert.KeyUsage != x509.KeyUsageDigitalSignature || cert.IsCA {
		t.Errorf("key usage %b", cert.KeyUsage)
	}
	if len(cert.ExtKeyUsage) != 1 || cert.ExtKeyUsage[0] != x509.ExtKeyUsageClientAuth {
		t.Errorf("purposes %v", cert.ExtKeyUsage)
	}
}

func TestIssueAgentRefuses(t *testing.T) {
	f := newFleetCA(t)
	csr := hostCSR(t, seedKey(t, 0x33), "db-01")
	p256, err := GenerateKey(AlgorithmP256)
	if err != nil {
		t.Fatal(err)
	}
	other := hostCSR(t, p256, "db-01")
	if other.Key != nil {
		t.Error("a P-256 key is taken for a host's")
	}
	if _, _, err := f.issuing.IssueAgent(other, "db-01", suffix, f.now, day); !errors.Is(err, ErrCSRKey) {
		t.Errorf("P-256: %v", err)
	}
	for name, c := range map[string]struct {
		hostname, suffix string
		now              time.Time
		validity         time.Duration
	}{
		"suffix outside the name constraint": {"db-01", "elsewhere.example.com", f.now, day},
		"suffix that only ends alike":        {"db-01", "evil" + suffix, f.now, day},
		"short validity":                     {"db-01", suffix, f.now, time.Minute - 1},
		"expired CA":                         {"db-01", suffix, f.now.Add(366 * day), day},
		"CA of the future":                   {"db-01", suffix, f.now.Add(-3 * day), day},
		"no ASCII":                           {"db-ä", suffix, f.now, day},
	} {
		if _, cert, err := f.issuing.IssueAgent(csr, c.hostname, c.suffix, c.now, c.validity); err == nil {
			t.Errorf("%s: issued %s", name, cert.Subject)
		}
	}
	// In the last days of a CA its certificates end with it.
	_, cert, err := f.issuing.IssueAgent(csr, "db-01", suffix, f.now.Add(360*day), 30*day)
	if err != nil || !cert.NotAfter.Equal(f.issuing.Cert.NotAfter) {
		t.Errorf("got %v, %v", cert, err)
	}
}

func TestOperatorAndServerCertificates(t *testing.T) {
	f := newFleetCA(t)
	key, err := GenerateKey(AlgorithmP256)
	if err != nil {
		t.Fatal(err)
	}
	text, err := f.root.IssueOperator("jo", key.Crypto().Public(), f.now, 365*day)
	op := parseOne(t, text, err)
	if op.Subject.CommonName != "jo" || op.IsCA || !op.BasicConstraintsValid ||
		op.KeyUsage != x509.KeyUsageDigitalSignature ||
		len(op.ExtKeyUsage) != 1 || op.ExtKeyUsage[0] != x509.ExtKeyUsageClientAuth || extension(op, 2, 5, 29, 17) != nil {
		t.Errorf("operator certificate %+v", op)
	}
	if !op.NotBefore.Equal(f.now.Add(-5*time.Minute)) || !op.NotAfter.Equal(f.now.Add(365*day)) {
		t.Errorf("valid from %s to %s", op.NotBefore, op.NotAfter)
	}
	if _, err := f.root.IssueOperator("", key.Crypto().Public(), f.now, day); err == nil {
		t.Error("operator without a name")
	}

	text, err = f.root.IssueServer([]string{"cp." + suffix, "127.0.0.1", "::1"}, key.Crypto().Public(), f.now, 365*day)
	server := parseOne(t, text, err)
	pool := x509.NewCertPool()
	pool.AddCert(f.root.Cert)
	if _, err := VerifyChain([]*x509.Certificate{server}, pool, x509.ExtKeyUsageServerAuth, f.now); err != nil {
		t.Error(err)
	}
	for _, name := range []string{"cp." + suffix, "127.0.0.1", "[::1]"} {
		if err := server.VerifyHostname(name); err != nil {
			t.Error(err)
		}
	}
	if _, err := VerifyChain([]*x509.Certificate{server}, pool, x509.ExtKeyUsageClientAuth, f.now); err == nil {
		t.Error("a server's certificate passes for a client's")
	}
	if _, err := f.root.IssueServer(nil, key.Crypto().Public(), f.now, day); err == nil {
		t.Error("server without a name")
	}
}

// A host's key cannot be made into a CA, nor the issuing CA into more than one.
func TestNothingHangsBelowTheIssuingCA(t *testing.T) {
	f := newFleetCA(t)
	sub, _, err := f.issuing.NewIssuingCA(suffix, f.now, day)
	if err != nil {
		t.Fatal(err)
	}
	key := seedKey(t, 0x33)
	forge := func(ca *CA) *x509.Certificate {
		_, cert, err := ca.issue(&x509.Certificate{
			Subject: pkix.Name{CommonName: "agent-web-01." + suffix}, DNSNames: []string{"agent-web-01." + suffix},
			NotBefore: f.now, NotAfter: f.now.Add(time.Hour), ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth},
		}, key.Crypto().Public(), nil)
		if err != nil {
			t.Fatal(err)
		}
		return cert
	}
	host := f.agent(t, "db-01")
	for name, chain := range map[string][]*x509.Certificate{
		"CA below the issuing CA": {forge(sub), sub.Cert},
		"host as a CA":            {forge(&CA{Cert: host, Signer: key.Crypto()}), host},
	} {
		if _, err := VerifyChain(chain, f.pool(), x509.ExtKeyUsageClientAuth, f.now); err == nil {
			t.Errorf("%s: verified", name)
		}
	}
	long := make([]*x509.Certificate, 2+maxIntermediates)
	for i := range long {
		long[i] = host
	}
	for _, peer := range [][]*x509.Certificate{nil, long} {
		if _, err := VerifyChain(peer, f.pool(), x509.ExtKeyUsageClientAuth, f.now); err == nil {
			t.Errorf("%d certificates verified", len(peer))
		}
	}
}

func TestLoadCA(t *testing.T) {
	f := newFleetCA(t)
	cert := certificatePEM(f.issuing.Cert.Raw)
	pkcs8, err := f.issuingKey.MarshalPEM()
	if err != nil {
		t.Fatal(err)
	}
	sec1, err := x509.MarshalECPrivateKey(f.issuingKey.Crypto().(*ecdsa.PrivateKey))
	sec1PEM := pemOf(t, "EC PRIVATE KEY", sec1, err)
	rsaKey, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	rsaTemplate := &x509.Certificate{Subject: pkix.Name{CommonName: "old CA"}, NotBefore: f.now, NotAfter: f.now.Add(day),
		IsCA: true, BasicConstraintsValid: true}
	rsaCert, _, err := (*CA)(nil).issue(rsaTemplate, &rsaKey.PublicKey, rsaKey)
	if err != nil {
		t.Fatal(err)
	}
	other, err := f.rootKey.MarshalPEM()
	if err != nil {
		t.Fatal(err)
	}
	host := seedKey(t, 0x33)
	hostPEM, err := host.MarshalPEM()
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		name      string
		cert, key []byte
		good      bool
	}{
		{"PKCS#8", cert, pkcs8, true},
		{"SEC 1 after parameters and certificate", cert,
			append([]byte("-----BEGIN EC PARAMETERS-----\nBggqhkjOPQMBBw==\n-----END EC PARAMETERS-----\n"+string(cert)),
				sec1PEM...), true},
		{"RSA", rsaCert, pemOf(t, "RSA PRIVATE KEY", x509.MarshalPKCS1PrivateKey(rsaKey), nil), true},
		{"key of another CA", cert, other, false},
		{"another key first", cert, append(bytes.Clone(other), pkcs8...), false},
		{"no key", cert, cert, false},
		{"damaged key", cert, pemOf(t, "PRIVATE KEY", []byte("x"), nil), false},
		{"no certificate", pkcs8, pkcs8, false},
		{"damaged certificate", pemOf(t, "CERTIFICATE", []byte("x"), nil), pkcs8, false},
		{"no CA", certificatePEM(f.agent(t, "db-01").Raw), hostPEM, false},
	} {
		ca, err := LoadCA(c.cert, c.key)
		if (err == nil) != c.good {
			t.Errorf("%s: %v, %v", c.name, ca, err)
		}
	}
	if _, err := WithSigner(cert, f.rootKey.Crypto()); !errors.Is(err, ErrKey) {
		t.Errorf("signer of another CA: %v", err)
	}
}

// smallOrderSigner has the identity as its key: one signature fits all messages.
type smallOrderSigner struct{}

func (smallOrderSigner) Public() crypto.PublicKey {
	return ed25519.PublicKey(append([]byte{1}, make([]byte, 31)...))
}

func (smallOrderSigner) Sign(io.Reader, []byte, crypto.SignerOpts) ([]byte, error) {
	return universalSignature(), nil
}

func TestParseCSRRefuses(t *testing.T) {
	host := seedKey(t, 0x33)
	request := func(r *x509.CertificateRequest) []byte {
		der, err := x509.CreateCertificateRequest(rand.Reader, r, host.Crypto())
		return pemOf(t, "CERTIFICATE REQUEST", der, err)
	}
	name := pkix.Name{CommonName: "db-01"}
	extra := func(id asn1.ObjectIdentifier, value ...byte) []byte {
		return request(&x509.CertificateRequest{Subject: name, ExtraExtensions: []pkix.Extension{{Id: id, Value: value}}})
	}
	good := request(&x509.CertificateRequest{Subject: name})
	block, _ := pem.Decode(good)
	forged := bytes.Clone(block.Bytes)
	forged[len(forged)-1] ^= 1
	twoNames := pkix.Name{ExtraNames: []pkix.AttributeTypeAndValue{{Type: oidCommonName, Value: "db-01"},
		{Type: oidCommonName, Value: "web-01"}}}
	for what, text := range map[string][]byte{
		"nothing":              nil,
		"no PEM":               block.Bytes,
		"certificate":          pemOf(t, "CERTIFICATE", block.Bytes, nil),
		"truncated":            good[:len(good)/2],
		"truncated DER":        pemOf(t, "CERTIFICATE REQUEST", block.Bytes[:len(block.Bytes)-10], nil),
		"trailing DER":         pemOf(t, "CERTIFICATE REQUEST", append(bytes.Clone(block.Bytes), 0), nil),
		"bad self-signature":   pemOf(t, "CERTIFICATE REQUEST", forged, nil),
		"no name":              request(&x509.CertificateRequest{Subject: pkix.Name{Organization: []string{"x"}}}),
		"two names":            request(&x509.CertificateRequest{Subject: twoNames}),
		"basic constraints":    extra(asn1.ObjectIdentifier{2, 5, 29, 19}, 0x30, 0x03, 0x01, 0x01, 0xff),
		"name constraints":     extra(asn1.ObjectIdentifier{2, 5, 29, 30}, 0x30, 0x00),
		"malformed key usage":  extra(oidKeyUsage, 0x04, 0x01, 0x00),
		"malformed purposes":   extra(oidExtKeyUsage, 0x02, 0x01, 0x00),
		"key usage and a tail": extra(oidKeyUsage, 0x03, 0x02, 0x07, 0x80, 0x00),
		"oversized":            append(bytes.Clone(good), strings.Repeat(" ", maxSecret)...),
	} {
		if csr, err := ParseCSR(text); !errors.Is(err, ErrCSR) {
			t.Errorf("%s: got %v, %v", what, csr, err)
		}
	}
	weak, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{Subject: name}, smallOrderSigner{})
	if csr, err := ParseCSR(pemOf(t, "CERTIFICATE REQUEST", weak, err)); !errors.Is(err, ErrCSR) {
		t.Errorf("key of small order: %v, %v", csr, err)
	}
	// Both string types of a name that are met in the field.
	for _, text := range [][]byte{good, nil} {
		if text == nil {
			var err error
			if text, err = NewCSR(host.Crypto(), "db-01"); err != nil {
				t.Fatal(err)
			}
		}
		csr, err := ParseCSR(text)
		if err != nil || csr.CommonName != "db-01" || len(csr.Raw.Extensions) > 0 {
			t.Errorf("got %+v, %v", csr, err)
		}
	}
}

func FuzzParseCSR(f *testing.F) {
	text, err := NewCSR(seedKey(f, 0x33).Crypto(), "db-01")
	if err != nil {
		f.Fatal(err)
	}
	f.Add(text)
	block, _ := pem.Decode(text)
	f.Add(block.Bytes)
	ca := newFleetCA(f)
	f.Fuzz(func(t *testing.T, data []byte) {
		for _, text := range [][]byte{data, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: data})} {
			csr, err := ParseCSR(text)
			if err != nil || csr.Key == nil {
				continue
			}
			_, cert, err := ca.issuing.IssueAgent(csr, "db-01", suffix, ca.now, time.Hour)
			if err != nil {
				continue
			}
			id, err := IdentityRules{Suffix: suffix}.Identify([][]*x509.Certificate{{cert, ca.issuing.Cert}})
			if err != nil || id.Role != RoleAgent || id.Name != "db-01" {
				t.Fatalf("issued for db-01 and identified as %+v, %v", id, err)
			}
		}
	})
}
