package cp

import (
	"context"
	"crypto/ecdsa"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"encoding/pem"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/go-json-experiment/json"

	"nixfleet/nixops/fleet"
	"nixfleet/pki"
	"nixfleet/roles/protocol"
)

func leafOf(t *testing.T, text string) *x509.Certificate {
	t.Helper()
	block, rest := pem.Decode([]byte(text))
	if block == nil || len(rest) != 0 {
		t.Fatalf("not one PEM certificate: %s", text)
	}
	cert, err := x509.ParseCertificate(block.Bytes)
	if err != nil {
		t.Fatal(err)
	}
	return cert
}

func TestAHostEnrolsAndRenews(t *testing.T) {
	e := newEstate(t, "a")
	p := e.serve()
	req := e.enrolment("a", nil)
	got, err := p.client(nil).Enroll(context.Background(), req)
	if err != nil {
		t.Fatal(err)
	}
	cert := leafOf(t, got.CertPEM)
	name := pki.AgentName("a", testSuffix)
	if cert.Subject.CommonName != name || len(cert.DNSNames) != 1 || cert.DNSNames[0] != name ||
		!cert.NotAfter.Equal(got.NotAfter.Time) {
		t.Errorf("issued %q %v until %s, told %s", cert.Subject.CommonName, cert.DNSNames, cert.NotAfter, got.NotAfter)
	}
	agent := p.client(pairOf(t, []byte(got.CertPEM), e.hostKeys["a"]))
	p.checkin(agent, e.state("a", closureOf("a", 0)), 0)
	renewed, err := agent.Renew(context.Background(), &protocol.RenewRequest{CSRPEM: req.CSRPEM})
	if err != nil {
		t.Fatal(err)
	}
	if again := leafOf(t, renewed.CertPEM); again.Subject.CommonName != name ||
		again.SerialNumber.Cmp(cert.SerialNumber) == 0 {
		t.Errorf("renewed %q with serial %s", again.Subject.CommonName, again.SerialNumber)
	}
	log, err := os.ReadFile(e.path("state/issuance.log"))
	if err != nil {
		t.Fatal(err)
	}
	lines := strings.Split(strings.TrimSpace(string(log)), "\n")
	if len(lines) != 2 {
		t.Fatalf("issuance log:\n%s", log)
	}
	for i, want := range []auditLine{{Requester: "<enroll>", Context: "enroll/nonce:" + req.Token.Claims.Nonce},
		{Requester: name, Context: "renew/prev:<unknown>"}} {
		var got auditLine
		if err := json.Unmarshal([]byte(lines[i]), &got, json.RejectUnknownMembers(true)); err != nil {
			t.Fatal(err)
		}
		if got.Requester != want.Requester || got.Context != want.Context || got.Issued != name || got.Validity != 2592000 ||
			got.At.IsZero() || got.NotAfter.IsZero() {
			t.Errorf("issuance log line %d: %s", i, lines[i])
		}
	}
}

func TestEnrolmentIsRefusedInTheOrderOfTheContract(t *testing.T) {
	e := newEstate(t, "a", "b", "keyless")
	e.fleet.Hosts["keyless"].Pubkey = nil
	other := generate(t, pki.AlgorithmEd25519)
	elliptic := generate(t, pki.AlgorithmP256)
	stranger := generate(t, pki.AlgorithmEd25519)
	listed := func(host string, entry func(*fleet.BootstrapNonce), change func(*pki.Claims)) *protocol.EnrollRequest {
		req := e.enrolment(host, change)
		n := fleet.BootstrapNonce{Nonce: req.Token.Claims.Nonce, Hostname: host, ExpiresAt: pki.At(time.Now().Add(time.Hour))}
		if entry != nil {
			entry(&n)
		}
		e.nonces.BootstrapNonces = append(e.nonces.BootstrapNonces, n)
		return req
	}
	e.nonces = &fleet.BootstrapNonces{SchemaVersion: 1, Meta: fleet.Meta{SchemaVersion: 1}}
	csr := func(req *protocol.EnrollRequest, key *pki.PrivateKey, host string) *protocol.EnrollRequest {
		req.CSRPEM = string(csrOf(t, key, host))
		return req
	}
	forged := func(req *protocol.EnrollRequest) *protocol.EnrollRequest {
		token, err := pki.MintToken(stranger, req.Token.Claims)
		if err != nil {
			t.Fatal(err)
		}
		req.Token = *token
		return req
	}
	expired := func(c *pki.Claims) { c.ExpiresAt = pki.At(time.Now().Add(-time.Second)) }
	e.hostKeys["c"] = other
	cases := []struct {
		name string
		req  *protocol.EnrollRequest
		want int
	}{
		{"unlisted nonce", e.enrolment("a", nil), 401},
		{"nonce of another host", listed("a", func(n *fleet.BootstrapNonce) { n.Hostname = "b" }, nil), 401},
		{"expired entry", listed("a", func(n *fleet.BootstrapNonce) { n.ExpiresAt = pki.At(time.Now().Add(-time.Minute)) },
			nil), 401},
		{"expired token", listed("a", nil, expired), 401},
		{"token of the future", listed("a", nil, func(c *pki.Claims) { c.IssuedAt = pki.At(time.Now().Add(time.Minute)) }),
			401},
		{"another signer", forged(listed("a", nil, nil)), 401},
		{"no request", func() *protocol.EnrollRequest { r := listed("a", nil, nil); r.CSRPEM = "hello"; return r }(), 400},
		{"self-signature broken", func() *protocol.EnrollRequest {
			r := listed("a", nil, nil)
			block, _ := pem.Decode([]byte(r.CSRPEM))
			block.Bytes[len(block.Bytes)-1] ^= 1
			r.CSRPEM = string(pem.EncodeToMemory(block))
			return r
		}(), 400},
		{"an extension that is not supported", func() *protocol.EnrollRequest {
			r := listed("a", nil, nil)
			der, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{
				Subject: pkix.Name{CommonName: "a"},
				ExtraExtensions: []pkix.Extension{
					{Id: asn1.ObjectIdentifier{2, 5, 29, 19}, Value: []byte{0x30, 0x03, 0x01, 0x01, 0xff}}},
			}, e.hostKeys["a"].Crypto())
			if err != nil {
				t.Fatal(err)
			}
			r.CSRPEM = string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: der}))
			return r
		}(), 400},
		{"request for another name", csr(listed("a", nil, nil), e.hostKeys["a"], "b"), 401},
		{"request with another key", csr(listed("a", nil, nil), other, "a"), 401},
		{"request with an elliptic key", csr(listed("a", nil, nil), elliptic, "a"), 401},
		{"elliptic key that the token names",
			csr(listed("a", nil, func(c *pki.Claims) { c.ExpectedPubkeyFingerprint = fingerprintOf(t, elliptic) }), elliptic,
				"a"), 400},
		{"host that is not declared", listed("c", nil, nil), 401},
		{"host without a declared key", listed("keyless", nil, nil), 401},
		{"a key that is not the declared one",
			csr(listed("a", nil, func(c *pki.Claims) { c.ExpectedPubkeyFingerprint = fingerprintOf(t, other) }), other, "a"),
			401},
	}
	good := listed("a", nil, nil)
	e.publish()
	p := e.serve()
	client := p.client(nil)
	for _, c := range cases {
		_, err := client.Enroll(context.Background(), c.req)
		if got := status(t, err); got != c.want {
			t.Errorf("%s: %d, want %d (%v)", c.name, got, c.want, err)
		}
	}
	if _, err := client.Enroll(context.Background(), good); err != nil {
		t.Fatal(err)
	}
	if _, err := client.Enroll(context.Background(), good); status(t, err) != 409 {
		t.Errorf("a used token: %v, want 409", err)
	}
	// Before anything else: the nonce is used, whatever else is wrong with it.
	if _, err := client.Enroll(context.Background(), csr(forged(good), other, "b")); status(t, err) != 409 {
		t.Errorf("a used token that is also forged: %v, want 409", err)
	}
}

func TestTokensAreNotBurntBeforeTheSignerIsKnownToWorkT4(t *testing.T) {
	e := newEstate(t, "a")
	p := e.serve(func(c *Config) { c.FleetCAKey = "" })
	req := e.enrolment("a", nil)
	if _, err := p.client(nil).Enroll(context.Background(), req); status(t, err) != 500 {
		t.Errorf("without a signer: %v, want 500", err)
	}
	p.stop()
	p = e.serve()
	if _, err := p.client(nil).Enroll(context.Background(), req); err != nil {
		t.Errorf("the same token once there is a signer: %v", err)
	}
}

func TestATokenIsNotBurntWhenTheSignerFailsT4(t *testing.T) {
	e := newEstate(t, "a")
	public := e.caKey.Crypto().Public().(*ecdsa.PublicKey)
	point, err := public.Bytes()
	if err != nil {
		t.Fatal(err)
	}
	e.write("tpm.pub", point[1:])
	e.write("sign", []byte("#!/bin/sh\nexit 1\n"))
	if err := os.Chmod(e.path("sign"), 0o700); err != nil {
		t.Fatal(err)
	}
	p := e.serve(func(c *Config) { c.TPMPubkey, c.TPMWrapper = e.path("tpm.pub"), e.path("sign") })
	req := e.enrolment("a", nil)
	if _, err := p.client(nil).Enroll(context.Background(), req); status(t, err) != 400 {
		t.Errorf("the signer fails: %v, want 400", err)
	}
	p.stop()
	p = e.serve()
	if _, err := p.client(nil).Enroll(context.Background(), req); err != nil {
		t.Errorf("the same token once the signer works: %v", err)
	}
	if log, err := os.ReadFile(e.path("state/issuance.log")); err != nil || strings.Count(string(log), "\n") != 1 {
		t.Errorf("issuance log: %v\n%s", err, log)
	}
}

func TestConcurrentEnrolmentsWithOneTokenT4(t *testing.T) {
	e := newEstate(t, "a")
	p := e.serve()
	req := e.enrolment("a", nil)
	var mu sync.Mutex
	got := map[int]int{}
	var all sync.WaitGroup
	for range 16 {
		client := p.client(nil)
		all.Go(func() {
			_, err := client.Enroll(context.Background(), req)
			mu.Lock()
			defer mu.Unlock()
			got[status(t, err)]++
		})
	}
	all.Wait()
	if got[0] != 1 || got[409] != 15 {
		t.Errorf("outcomes by status: %v, want one success and 409 for the rest", got)
	}
}

func TestATokenOlderThanItsHostsRevocationIsRefused(t *testing.T) {
	e := newEstate(t, "a")
	p := e.serve()
	old := e.enrolment("a", func(c *pki.Claims) { c.IssuedAt = pki.At(time.Now().Add(-time.Hour)) })
	if err := p.operator().Revocations().Add(context.Background(), "a", nil, "stolen"); err != nil {
		t.Fatal(err)
	}
	if _, err := p.client(nil).Enroll(context.Background(), old); status(t, err) != 401 {
		t.Errorf("a token of before: %v, want 401", err)
	}
	got, err := p.client(nil).Enroll(context.Background(), e.enrolment("a", nil))
	if err != nil {
		t.Fatalf("a token of after: %v", err)
	}
	// Its certificate is not born revoked, although both are of the same second.
	p.checkin(p.client(pairOf(t, []byte(got.CertPEM), e.hostKeys["a"])), e.state("a", closureOf("a", 0)), 0)
}

func TestATokenOlderThanTheSignedRevocationIsRefused(t *testing.T) {
	e := newEstate(t, "a")
	e.revocations.Revocations = []fleet.Revocation{{Hostname: "a", NotBefore: pki.At(time.Now().Add(-10 * time.Minute))}}
	e.publish()
	p := e.serve()
	old := e.enrolment("a", func(c *pki.Claims) { c.IssuedAt = pki.At(time.Now().Add(-time.Hour)) })
	if _, err := p.client(nil).Enroll(context.Background(), old); status(t, err) != 401 {
		t.Errorf("a token of before: %v, want 401", err)
	}
	if _, err := p.client(nil).Enroll(context.Background(), e.enrolment("a", nil)); err != nil {
		t.Errorf("a token of after: %v", err)
	}
}

func TestEnrolmentNeedsADatabase(t *testing.T) {
	e := newEstate(t, "a")
	p := e.serve(func(c *Config) { c.DBPath = "" })
	if _, err := p.client(nil).Enroll(context.Background(), e.enrolment("a", nil)); status(t, err) != 503 {
		t.Errorf("%v, want 503", err)
	}
}

func TestATrustFileWithoutOrgRootKeyAnswers500(t *testing.T) {
	e := newEstate(t, "a")
	ci := e.ci.Public()
	doc, err := (&pki.Trust{SchemaVersion: 1, CIReleaseKey: pki.KeySlot{Current: &ci}}).Marshal()
	if err != nil {
		t.Fatal(err)
	}
	e.write("trust.json", doc)
	p := e.serve()
	if _, err := p.client(nil).Enroll(context.Background(), e.enrolment("a", nil)); status(t, err) != 500 {
		t.Errorf("%v, want 500", err)
	}
}

func TestATrustFileThatCannotBeReadAnswers500(t *testing.T) {
	e := newEstate(t, "a")
	p := e.serve()
	req := e.enrolment("a", nil)
	trust := e.trust()
	e.write("trust.json", trust[:len(trust)/2])
	if _, err := p.client(nil).Enroll(context.Background(), req); status(t, err) != 500 {
		t.Errorf("%v, want 500", err)
	}
	e.write("trust.json", trust)
	if _, err := p.client(nil).Enroll(context.Background(), req); err != nil {
		t.Errorf("once it can be read: %v", err)
	}
}

func TestRenewalNameFromCertificate_T1(t *testing.T) {
	e := newEstate(t, "a", "b")
	p := e.serve()
	a := p.agent("a")
	for _, c := range []struct {
		name string
		csr  []byte
		want int
	}{
		{"host a asks for b with its own key", csrOf(t, e.hostKeys["a"], "b"), 401},
		{"host a asks for b with the key of b", csrOf(t, e.hostKeys["b"], "b"), 401},
		{"host a asks for itself with the key of b", csrOf(t, e.hostKeys["b"], "a"), 401},
		{"host a asks with an elliptic key", csrOf(t, generate(t, pki.AlgorithmP256), "a"), 400},
		{"garbage", []byte("garbage"), 400},
		{"its canonical name", csrOf(t, e.hostKeys["a"], pki.AgentName("a", testSuffix)), 0},
		{"its own name", csrOf(t, e.hostKeys["a"], "a"), 0},
	} {
		got, err := a.Renew(context.Background(), &protocol.RenewRequest{CSRPEM: string(c.csr)})
		if s := status(t, err); s != c.want {
			t.Errorf("%s: %d, want %d (%v)", c.name, s, c.want, err)
		} else if s == 0 && leafOf(t, got.CertPEM).Subject.CommonName != pki.AgentName("a", testSuffix) {
			t.Errorf("%s: issued %q", c.name, leafOf(t, got.CertPEM).Subject.CommonName)
		}
	}
}

func TestBootstrapReports(t *testing.T) {
	e := newEstate(t, "a")
	e.nonces = &fleet.BootstrapNonces{SchemaVersion: 1, Meta: fleet.Meta{SchemaVersion: 1}}
	token := e.token("a", nil)
	e.nonces.BootstrapNonces = []fleet.BootstrapNonce{
		{Nonce: token.Claims.Nonce, Hostname: "a", ExpiresAt: pki.At(time.Now().Add(time.Hour))}}
	e.publish()
	p := e.serve()
	client := p.client(nil)
	report := func(token *pki.Token, event, details string) int {
		var raw []byte
		if details != "" {
			raw = []byte(details)
		}
		return status(t, client.BootstrapReport(context.Background(), &protocol.BootstrapReport{
			Token: *token, AgentVersion: "0.0.1", OccurredAt: pki.At(time.Now()),
			Event: protocol.BootstrapEvent{Event: event, Details: raw},
		}))
	}
	reason := `{"reason":"server answered 401"}`
	for _, c := range []struct {
		name           string
		token          *pki.Token
		event, details string
		want           int
	}{
		{"unknown event", token, "nonsense", reason, 400},
		{"event of enrolled hosts", token, protocol.EventActivationFailed, `{"phase":"x"}`, 422},
		{"unlisted nonce", e.token("a", nil), protocol.EventTrustError, reason, 401},
		{"expired", e.token("a", func(c *pki.Claims) { c.ExpiresAt = pki.At(time.Now().Add(-time.Minute)) }),
			protocol.EventTrustError, reason, 401},
		{"no details, and expired", e.token("a", func(c *pki.Claims) { c.ExpiresAt = pki.At(time.Now().Add(-time.Minute)) }),
			protocol.EventTrustError, "", 401},
		{"no details", token, protocol.EventTrustError, "", 400},
		{"no event", token, "", reason, 400},
		{"details of another event", token, protocol.EventTrustError, `{"phase":"x"}`, 400},
		{"good", token, protocol.EventEnrollmentFailed, reason, 0},
	} {
		if got := report(c.token, c.event, c.details); got != c.want {
			t.Errorf("%s: %d, want %d", c.name, got, c.want)
		}
	}
	got, err := p.operator().HostReports(context.Background(), "", 5)
	if err != nil || len(got.Reports) != 1 || got.Reports[0].Hostname != "a" || got.Reports[0].Rollout != nil ||
		got.Reports[0].EventKind != protocol.EventEnrollmentFailed {
		t.Errorf("stored: %+v %v", got, err)
	}
	limited := false
	for tries := 0; !limited && tries < 1000; tries++ { // however slow they are
		limited = report(token, protocol.EventEnrollmentFailed, reason) == 429
	}
	if !limited {
		t.Error("a flood of bootstrap reports is not limited")
	}
	// The report used nothing up; an enrolment ends the right to report.
	if _, err := client.Enroll(context.Background(),
		&protocol.EnrollRequest{Token: *token, CSRPEM: string(csrOf(t, e.hostKeys["a"], "a"))}); err != nil {
		t.Fatal(err)
	}
	if got := report(token, protocol.EventEnrollmentFailed, reason); got != 401 {
		t.Errorf("with a used token: %d, want 401", got)
	}
}
