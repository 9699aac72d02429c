package cp

import (
	"context"
	"testing"
	"time"

	"nixfleet/roles/protocol"
)

// TestIssuingCARotation follows the cookbook: the bundle with both CAs first, then
// the new CA. Nobody is shut out, nothing restarts, and who renews hangs under the
// new one.
func TestIssuingCARotation(t *testing.T) {
	e := newEstate(t, "a", "b")
	p := e.serve()
	ctx := context.Background()
	requestA, requestB := e.enrolment("a", nil), e.enrolment("b", nil)
	got, err := p.client(nil).Enroll(ctx, requestA)
	if err != nil {
		t.Fatal(err)
	}
	a := p.client(pairOf(t, []byte(got.CertPEM), e.hostKeys["a"]))
	p.checkin(a, e.state("a", closureOf("a", 0)), 0)

	now := time.Now()
	next, key, err := e.root.NewIssuingCA(testSuffix, now.Add(-time.Hour), 96*time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	bundle := append(certPEM(e.root.Cert), certPEM(next.Cert)...)
	e.write("client-ca.pem", append(bundle, certPEM(e.ca.Cert)...))
	p.checkin(a, e.state("a", closureOf("a", 0)), 0)
	e.write("ca.pem", certPEM(next.Cert))
	e.write("ca.key", keyPEM(t, key))

	// A host of the present CA goes on, on its open connection and on a new one, and
	// renews under the next.
	p.checkin(a, e.state("a", closureOf("a", 0)), 0)
	again := p.client(pairOf(t, []byte(got.CertPEM), e.hostKeys["a"]))
	p.eventually("a host of the present CA is accepted on a new connection", func() bool {
		_, err := again.Checkin(ctx, e.state("a", closureOf("a", 0)), 0)
		return err == nil
	})
	under := func(what, text string) {
		t.Helper()
		if err := leafOf(t, text).CheckSignatureFrom(next.Cert); err != nil {
			t.Errorf("%s does not hang under the new CA: %v", what, err)
		}
	}
	renewed, err := again.Renew(ctx, &protocol.RenewRequest{CSRPEM: requestA.CSRPEM})
	if err != nil {
		t.Fatal(err)
	}
	under("the renewed certificate", renewed.CertPEM)
	p.checkin(p.client(pairOf(t, []byte(renewed.CertPEM), e.hostKeys["a"])), e.state("a", closureOf("a", 0)), 0)
	fresh, err := p.client(nil).Enroll(ctx, requestB)
	if err != nil {
		t.Fatal(err)
	}
	under("a new host's certificate", fresh.CertPEM)
	p.checkin(p.client(pairOf(t, []byte(fresh.CertPEM), e.hostKeys["b"])), e.state("b", closureOf("b", 0)), 0)

	// Once everybody has renewed the old CA goes out of the bundle, and with it whoever
	// still had its certificate.
	e.write("client-ca.pem", append(certPEM(e.root.Cert), certPEM(next.Cert)...))
	p.eventually("a certificate of the CA that was taken out is refused", func() bool {
		_, err := p.client(pairOf(t, []byte(got.CertPEM), e.hostKeys["a"])).Checkin(ctx, e.state("a", closureOf("a", 0)), 0)
		return err != nil
	})
	if _, err := p.client(pairOf(t, []byte(renewed.CertPEM), e.hostKeys["a"])).
		Checkin(ctx, e.state("a", closureOf("a", 0)), 0); err != nil {
		t.Errorf("the renewed certificate: %v", err)
	}
}
