package agent

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"fmt"
	"math/big"
	"net/http"
	"os"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/go-json-experiment/json"
	"github.com/rs/zerolog"

	"nixfleet/pki"
	"nixfleet/roles/agent/verify"
	"nixfleet/roles/protocol"
)

// issues answers enrolments and renewals with what make says for their request.
func (p *plane) issues(make func(csr *pki.CSR) string) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		var req struct {
			CSRPEM string `json:"csrPem"`
		}
		err := json.UnmarshalRead(r.Body, &req)
		var csr *pki.CSR
		if err == nil {
			csr, err = pki.ParseCSR([]byte(req.CSRPEM))
		}
		var doc []byte
		if err == nil {
			p.issued++
			doc, err = pki.Marshal(protocol.CertResponse{CertPEM: make(csr), NotAfter: pki.At(time.Now())})
		}
		if err != nil {
			p.t.Error(err)
		}
		w.Write(doc)
	}
}

// cert is one of a CA for a key, from a time on.
func (p *plane) cert(ca *pki.CA, csr *pki.CSR, host, suffix string, from time.Time, life time.Duration) string {
	text, _, err := ca.IssueAgent(csr, host, suffix, from, life)
	if err != nil {
		p.t.Error(err)
	}
	return string(text)
}

// forger is a CA that nobody gave the right to issue: of the issuing CA's name, and of its
// key identifier where asked for.
func (p *plane) forger(sameKeyID bool) *pki.CA {
	p.t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		p.t.Fatal(err)
	}
	like := p.issuing.Cert
	template := &x509.Certificate{
		SerialNumber: big.NewInt(7), RawSubject: like.RawSubject, NotBefore: like.NotBefore,
		NotAfter: time.Now().AddDate(300, 0, 0),
		IsCA:     true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
	}
	if sameKeyID {
		template.SubjectKeyId = like.SubjectKeyId
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		p.t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		p.t.Fatal(err)
	}
	ca, err := pki.WithSigner(pemOf(cert), key)
	if err != nil {
		p.t.Fatal(err)
	}
	return ca
}

// pin has a machine's trust file name issuing CAs.
func (m *machine) pin(issuers ...*x509.Certificate) {
	m.t.Helper()
	trust, _, err := pki.ParseTrust(m.p.trust)
	m.must(err)
	for _, c := range issuers {
		trust.IssuanceCAPEMs = append(trust.IssuanceCAPEMs, string(pemOf(c)))
	}
	doc, err := trust.Marshal()
	m.must(err)
	m.must(os.WriteFile(m.path("trust.json"), doc, 0o600))
}

func (m *machine) certificate() string {
	m.t.Helper()
	text, err := os.ReadFile(m.path("cert/agent.pem"))
	m.must(err)
	return string(text)
}

// renewsSoon makes an agent renew half an hour after its certificate was issued.
func renewsSoon(c *Config) { c.RenewalFraction = 0.9999 }

// A control plane that lies about the next certificate, in any way, costs the host nothing:
// the one in use stays, the lie is reported, and an honest control plane renews it later
// without anybody's help.
func TestRenewalTakesNothingButItsCertificate_T18_T25(t *testing.T) {
	const life = 5000 * time.Hour
	for name, c := range map[string]struct {
		pinned bool
		answer func(p *plane, csr *pki.CSR) string
		words  string
	}{
		"nothing": {false, func(*plane, *pki.CSR) string { return "" }, "answered without a certificate"},
		"a key": {false, func(*plane,
			*pki.CSR) string {
			return "-----BEGIN PRIVATE KEY-----\nAA==\n-----END PRIVATE KEY-----\n"
		}, "answered without a certificate"},
		"another key": {false, func(p *plane, csr *pki.CSR) string {
			other := *csr
			other.Key = p.ci.Crypto().Public().(ed25519.PublicKey)
			return p.cert(p.issuing, &other, testHost, testSuffix, time.Now(), life)
		}, "for another key"},
		"another host": {false, func(p *plane, csr *pki.CSR) string {
			return p.cert(p.issuing, csr, "web-02", testSuffix, time.Now(), life)
		}, "agent-web-02."},
		"another suffix": {false, func(p *plane, csr *pki.CSR) string {
			return p.cert(p.issuing, csr, testHost, "x."+testSuffix, time.Now(), life)
		}, "the one in use is for"},
		"text before it": {false, func(p *plane, csr *pki.CSR) string {
			return "x\n" + p.cert(p.issuing, csr, testHost, testSuffix, time.Now(), life)
		}, "answered without a certificate"},
		"two certificates": {false, func(p *plane, csr *pki.CSR) string {
			return p.cert(p.issuing, csr, testHost, testSuffix, time.Now(), life) + string(p.rootPEM)
		}, "more than one certificate"},
		"text after it": {false, func(p *plane, csr *pki.CSR) string {
			return p.cert(p.issuing, csr, testHost, testSuffix, time.Now(), life) + strings.Repeat("x", 100)
		}, "more than one certificate"},
		"a very long text": {false, func(p *plane, csr *pki.CSR) string {
			return p.cert(p.issuing, csr, testHost, testSuffix, time.Now(), life) + strings.Repeat("x", 1<<17)
		}, "certificate of 131"},
		"one that is over": {false, func(p *plane, csr *pki.CSR) string {
			return p.cert(p.issuing, csr, testHost, testSuffix, p.issuing.Cert.NotBefore, time.Minute)
		}, "that expired at"},
		"one of the future": {false, func(p *plane, csr *pki.CSR) string {
			return p.cert(p.issuing, csr, testHost, testSuffix, time.Now().Add(1000*time.Hour), life)
		}, errEarly.Error()},
		"the year 2200": {false, func(p *plane, csr *pki.CSR) string {
			return p.cert(p.forger(true), csr, testHost, testSuffix, time.Date(2200, 1, 1, 0, 0, 0, 0, time.UTC), life)
		}, errEarly.Error()},
		"another issuer": {false, func(p *plane, csr *pki.CSR) string {
			return p.cert(p.root, csr, testHost, testSuffix, time.Now(), life)
		}, "certificate of issuer"},
		"the issuer's name": {false, func(p *plane, csr *pki.CSR) string {
			return p.cert(p.forger(false), csr, testHost, testSuffix, time.Now(), life)
		}, "another issuing key"},
		"the issuer's name and key identifier, with a pin": {true, func(p *plane, csr *pki.CSR) string {
			return p.cert(p.forger(true), csr, testHost, testSuffix, time.Now(), life)
		}, "no issuing CA of trust.json has issued"},
		"another issuer, with a pin": {true, func(p *plane, csr *pki.CSR) string {
			return p.cert(p.root, csr, testHost, testSuffix, time.Now(), life)
		}, "no issuing CA of trust.json has issued"},
	} {
		t.Run(name, func(t *testing.T) {
			bubble(t, func(t *testing.T) {
				p := newPlane(t)
				p.pace, p.noTarget = 60, true
				m := newMachine(t, p, good)
				if c.pinned {
					m.pin(p.issuing.Cert)
				}
				m.adjust = renewsSoon
				first := m.certificate()
				p.set(func() {
					p.routes = map[string]http.HandlerFunc{"/v1/agent/renew": p.issues(func(csr *pki.CSR) string {
						return c.answer(p,
							csr)
					})}
				})
				stop := m.start(m.sim)
				time.Sleep(3 * time.Hour)
				if got := p.refusals(protocol.EventRenewalFailed); m.certificate() != first || !strings.Contains(got, c.words) {
					t.Errorf("kept %t, reported %q", m.certificate() == first, got)
				}
				p.set(func() {
					if p.issued == 0 || p.issued > 30 {
						t.Errorf("asked %d times in three hours", p.issued)
					}
					p.routes["/v1/agent/renew"] = p.issues(func(csr *pki.CSR) string {
						return p.cert(p.issuing, csr, testHost, testSuffix, time.Now(), life)
					})
				})
				time.Sleep(2 * time.Hour)
				stop()
				if m.certificate() == first || !bytes.Equal(pemOf(p.peer), []byte(m.certificate())) {
					t.Error("the honest control plane's certificate is not in use")
				}
			})
		})
	}
}

// A certificate that is right and that nobody takes is given up for the one before, which
// goes on being used meanwhile.
func TestRenewedCertificateIsOnTrial_T18(t *testing.T) {
	bubble(t, func(t *testing.T) {
		p := newPlane(t)
		p.pace, p.noTarget = 60, true
		m := newMachine(t, p, good)
		m.adjust = renewsSoon
		first := m.certificate()
		forger := p.forger(true) // without a pin, it looks the same
		p.set(func() {
			p.routes = map[string]http.HandlerFunc{"/v1/agent/renew": p.issues(func(csr *pki.CSR) string {
				return p.cert(forger, csr, testHost, testSuffix, time.Now(), 5000*time.Hour)
			})}
		})
		stop := m.start(m.sim)
		time.Sleep(6 * time.Hour)
		got := p.refusals(protocol.EventRenewalFailed)
		if m.certificate() != first ||
			!strings.Contains(got, "the new certificate was not accepted, the previous one is used again") {
			t.Errorf("kept %t, reported %q", m.certificate() == first, got)
		}
		if since := time.Since(m.local().LastContact.Time); since > 5*time.Minute {
			t.Errorf("not answered for %s", since)
		}
		stop()
	})
}

// A control plane that lies for long, and accepts the certificates that it forges, costs no
// host either where no issuing CA is pinned: the certificate before is kept and used again.
func TestForgedCertificateCostsNoHost_T18(t *testing.T) {
	bubble(t, func(t *testing.T) {
		p := newPlane(t)
		p.pace, p.noTarget = 60, true
		m := newMachine(t, p, good)
		m.adjust = renewsSoon
		first := m.certificate()
		forger := p.forger(true)
		p.believe(p.issuing.Cert, forger.Cert)
		p.set(func() {
			p.routes = map[string]http.HandlerFunc{"/v1/agent/renew": p.issues(func(csr *pki.CSR) string {
				return p.cert(forger, csr, testHost, testSuffix, time.Now(), time.Minute*time.Duration(60+p.issued))
			})}
		})
		stop := m.start(m.sim)
		time.Sleep(6 * time.Hour)
		p.set(func() {
			if p.issued < 3 || p.peer.CheckSignatureFrom(forger.Cert) != nil {
				t.Fatalf("nothing was forged: issued %d", p.issued)
			}
			p.routes["/v1/agent/renew"] = p.issues(func(csr *pki.CSR) string {
				return p.cert(p.issuing, csr, testHost, testSuffix, time.Now(), 5000*time.Hour)
			})
		})
		p.believe(p.issuing.Cert)
		// Its connections end with it.
		stop()
		stop = m.start(m.sim)
		time.Sleep(time.Hour)
		if since := time.Since(m.local().LastContact.Time); since > 5*time.Minute ||
			p.peer.CheckSignatureFrom(p.issuing.Cert) != nil {
			t.Errorf("not answered for %s: %+v", since, m.local())
		}
		stop()
		if forged, err := os.ReadFile(m.path("cert/agent.pem")); err != nil || string(forged) == first {
			t.Errorf("not renewed by the honest control plane: %v", err)
		}
	})
}

// Only a certificate that a pinned issuing CA vouches for says what time it is.
func TestClockFloorIsOfPinnedCertificates_T25(t *testing.T) {
	bubble(t, func(t *testing.T) {
		p := newPlane(t)
		for name, c := range map[string]struct {
			pin   []*x509.Certificate
			ca    *pki.CA
			known bool
		}{
			"no pin":        {nil, p.issuing, false},
			"pinned":        {[]*x509.Certificate{p.issuing.Cert}, p.issuing, true},
			"one of two":    {[]*x509.Certificate{p.root.Cert, p.issuing.Cert}, p.issuing, true},
			"another":       {[]*x509.Certificate{p.forger(true).Cert}, p.issuing, false},
			"forged":        {[]*x509.Certificate{p.issuing.Cert}, p.forger(true), false},
			"only the root": {[]*x509.Certificate{p.root.Cert}, p.issuing, false},
		} {
			m := newMachine(t, p, good)
			m.pin(c.pin...)
			csrText, err := pki.NewCSR(p.hostKey.Crypto(), testHost)
			m.must(err)
			csr, err := pki.ParseCSR(csrText)
			m.must(err)
			from := time.Now().Add(300 * time.Hour).Truncate(time.Second)
			m.must(os.WriteFile(m.path("cert/agent.pem"),
				[]byte(p.cert(c.ca, csr, testHost, testSuffix, from, 5000*time.Hour)), 0o600))
			a, err := newAgent(m.config(m.sim))
			m.must(err)
			if late := a.clock.now().After(time.Now().Add(time.Hour)); late != c.known {
				t.Errorf("%s: the floor is %s", name, a.clock.floor)
			}
			a.client.CloseIdle()
		}
	})
}

// What a control plane answers to an enrolment is looked at as well, and costs nothing: the
// honest one is asked again by the agent itself, also when the token was called used.
func TestEnrolmentOutlivesALiar_T18(t *testing.T) {
	for name, lie := range map[string]func(p *plane) http.HandlerFunc{
		"no certificate": func(p *plane) http.HandlerFunc { return p.issues(func(*pki.CSR) string { return "x" }) },
		"another host's": func(p *plane) http.HandlerFunc {
			return p.issues(func(csr *pki.CSR) string {
				return p.cert(p.issuing, csr, "web-02", testSuffix, time.Now(), time.Hour)
			})
		},
		"the token was used": func(*plane) http.HandlerFunc {
			return func(w http.ResponseWriter, r *http.Request) { w.WriteHeader(http.StatusConflict) }
		},
		"one of the future": func(p *plane) http.HandlerFunc {
			return p.issues(func(csr *pki.CSR) string {
				return p.cert(p.forger(true), csr, testHost, testSuffix, time.Now().AddDate(170, 0, 0), time.Hour)
			})
		},
		"a forged one": func(p *plane) http.HandlerFunc {
			forger := p.forger(true)
			return p.issues(func(csr *pki.CSR) string {
				return p.cert(forger, csr, testHost, testSuffix, time.Now(), 5000*time.Hour)
			})
		},
	} {
		t.Run(name, func(t *testing.T) {
			bubble(t, func(t *testing.T) {
				p := newPlane(t)
				p.pace = 60
				m := newMachine(t, p, good)
				m.token()
				m.must(os.RemoveAll(m.path("cert")))
				p.set(func() { p.routes = map[string]http.HandlerFunc{"/v1/enroll": lie(p)} })
				stop := m.start(m.sim)
				time.Sleep(6 * time.Hour)
				p.release(target, time.Now())
				p.set(func() {
					p.routes["/v1/enroll"] = p.issues(func(csr *pki.CSR) string {
						return p.cert(p.issuing, csr, testHost, testSuffix, time.Now(), 5000*time.Hour)
					})
				})
				time.Sleep(2 * time.Hour)
				stop()
				if m.where() != all(target) {
					t.Errorf("at %v, status %+v", m.where(), m.local())
				}
			})
		})
	}
}

// A board whose clock is set late enrols once: the certificate that is not valid yet by
// its clock is kept, and used as soon as it is.
func TestEnrolmentBeforeTheClockIsSet_A22(t *testing.T) {
	bubble(t, func(t *testing.T) {
		p := newPlane(t)
		m := newMachine(t, p, good)
		m.token()
		withToken := m.adjust
		const behindBy = 40 * 24 * time.Hour
		var behind atomic.Int64
		behind.Store(int64(behindBy))
		time.Sleep(behindBy + 24*time.Hour)
		p.release(target, time.Now())
		m.adjust = func(c *Config) {
			withToken(c)
			c.Clock = func() time.Time { return time.Now().Add(-time.Duration(behind.Load())) }
		}
		m.must(os.RemoveAll(m.path("cert")))
		p.set(func() {
			p.routes = map[string]http.HandlerFunc{"/v1/enroll": p.issues(func(csr *pki.CSR) string {
				return p.cert(p.issuing, csr, testHost, testSuffix, time.Now(), 5000*time.Hour)
			})}
		})
		stop := m.start(m.sim)
		time.Sleep(20 * time.Minute)
		p.set(func() {
			if s := m.local(); p.issued != 1 || !strings.Contains(s.Waiting, "clock") {
				t.Errorf("asked %d times, status %+v", p.issued, s)
			}
			behind.Store(0)
		})
		time.Sleep(20 * time.Minute)
		stop()
		if m.where() != all(target) || p.issued != 1 {
			t.Errorf("at %v, asked %d times, status %+v", m.where(), p.issued, m.local())
		}
	})
}

// A renewal under a control plane of v1 bears no key identifier; it is taken from one that
// root allowed, and one of ours takes over again.
func TestRenewalWithoutKeyIdentifier(t *testing.T) {
	bubble(t, func(t *testing.T) {
		p := newPlane(t)
		m := newMachine(t, p, good)
		csrText, err := pki.NewCSR(p.hostKey.Crypto(), testHost)
		m.must(err)
		csr, err := pki.ParseCSR(csrText)
		m.must(err)
		text := p.cert(p.issuing, csr, testHost, testSuffix, time.Now(), time.Hour)
		for _, c := range []struct{ allow, inUse, answered, taken bool }{
			{false, true, true, true}, {false, false, true, true}, {false, false, false, true}, {false, true, false, false},
			{true, true, false, true},
		} {
			trust := verify.NewTrustFile(m.path("trust.json"), zerolog.Nop())
			i := &identity{hostname: testHost, certPath: m.path("cert/agent.pem"), key: p.hostKey, now: time.Now,
				trust: trust.Read, allowV1: c.allow}
			inUse := *i.usable().Leaf
			cert, err := oneCertificate(text)
			m.must(err)
			if !c.inUse {
				inUse.AuthorityKeyId = nil
			}
			if !c.answered {
				cert.AuthorityKeyId = nil
			}
			if err := i.issued(cert, &inUse); (err == nil) != c.taken {
				t.Errorf("%+v: %v", c, err)
			}
		}
	})
}

func TestOneCertificateBounds_T18(t *testing.T) {
	if _, err := oneCertificate(fmt.Sprintf("-----BEGIN CERTIFICATE-----\nX: y\n\n%s-----END CERTIFICATE-----\n",
		base64Lines([]byte("x")))); err == nil {
		t.Error("a block with headers is taken")
	}
}
