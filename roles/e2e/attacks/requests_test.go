package attacks

import (
	"crypto"
	"crypto/ed25519"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"encoding/hex"
	"encoding/pem"
	"fmt"
	"io"
	"strings"
	"time"

	"nixfleet/pki"
)

// csrOf is a certificate request of a template.
func csrOf(s *scene, key *pki.PrivateKey, r *x509.CertificateRequest) []byte {
	der, err := x509.CreateCertificateRequest(rand.Reader, r, key.Crypto())
	s.must(err)
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: der})
}

// requests are attacks by who holds the host b, by what it asks to be certified.
func requests() []attack {
	asks := func(status int, text string, make func(s *scene) []byte) func(*scene) {
		return stopped(status, text, func(s *scene) answer {
			return s.host("b").renew(make(s))
		})
	}
	subject := pkix.Name{CommonName: "b"}
	return []attack{
		{
			name: "a request for the certificate of a CA", stops: "extensions that a request may have",
			lack: without("pki/csr.go", "\tdefault:\n\t\treturn fmt.Errorf(\"%w: extension %s is not supported\"",
				"\tdefault:\n\t\tif LACKS {\n\t\t\treturn nil\n\t\t}\n\t\treturn fmt.Errorf(\"%w: extension %s is not supported\""),
			run: asks(400, "is not supported", func(s *scene) []byte {
				return csrOf(s, s.house.hostKeys["b"], &x509.CertificateRequest{Subject: subject,
					ExtraExtensions: []pkix.Extension{{Id: asn1.ObjectIdentifier{2, 5, 29, 19},
						Value: []byte{0x30, 0x03, 0x01, 0x01, 0xff}}}})
			}),
		},
		{
			name: "a request with two names", stops: "exactly one common name",
			lack: without("pki/csr.go", "\tif !ok {\n\t\treturn nil, fmt.Errorf(\"%w: it must have exactly one",
				"\tif !LACKS && !ok {\n\t\treturn nil, fmt.Errorf(\"%w: it must have exactly one"),
			run: asks(400, "exactly one common name", func(s *scene) []byte {
				two := pkix.Name{ExtraNames: []pkix.AttributeTypeAndValue{
					{Type: asn1.ObjectIdentifier{2, 5, 4, 3}, Value: "a"}, {Type: asn1.ObjectIdentifier{2, 5, 4, 3}, Value: "b"}}}
				return csrOf(s, s.house.hostKeys["b"], &x509.CertificateRequest{Subject: two})
			}),
		},
		{
			name: "a request that another key has signed", stops: "self-signature of the request",
			lack: without("pki/csr.go", "if err := raw.CheckSignature(); err != nil {",
				"if err := raw.CheckSignature(); !LACKS && err != nil {"),
			run: asks(400, "self-signature", func(s *scene) []byte {
				block, _ := pem.Decode(s.house.csr("b", s.house.hostKeys["b"]))
				block.Bytes[len(block.Bytes)-1] ^= 1
				return pem.EncodeToMemory(block)
			}),
		},
		{
			name: "a certificate in the place of a request", stops: "the PEM block's type",
			lack: without("pki/csr.go", "block == nil || block.Type != \"CERTIFICATE REQUEST\" {",
				"block == nil || !LACKS && block.Type != \"CERTIFICATE REQUEST\" {"),
			run: asks(400, "no PEM block CERTIFICATE REQUEST", func(s *scene) []byte {
				block, _ := pem.Decode(s.house.csr("b", s.house.hostKeys["b"]))
				return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: block.Bytes})
			}),
		},
		{
			name: "the manifest of a channel that the host is not in", stops: "the manifest names the host",
			lack: without("roles/cp/manifests.go", "if !mayRead(c.caller, a, hosts) {",
				"if !LACKS && !mayRead(c.caller, a, hosts) {"),
			run: stopped(403, "the manifest does not name this host", func(s *scene) answer {
				name := manifest(s.house.files, "edge")
				id := strings.TrimSuffix(strings.TrimPrefix(name, "rollouts/"), ".json")
				return s.host("b").ask("GET", "/v1/rollouts/"+id, nil, nil)
			}),
		},
		{
			name: "a rollout id that climbs out of its path", stops: "the form of a rollout id",
			lack: without("roles/cp/manifests.go", "if !fleet.ValidRolloutID(id) {", "if !LACKS && !fleet.ValidRolloutID(id) {"),
			run: stopped(404, "not a rollout id", func(s *scene) answer {
				return s.host("b").ask("GET", "/v1/rollouts/..%2f..%2ftrust", nil, nil)
			}),
		},
		{
			name: "another version of the protocol", stops: "the protocol header",
			lack: without("roles/cp/api.go", "case version != protocol.Version:", "case !LACKS && version != protocol.Version:"),
			run: stopped(426, "", func(s *scene) answer {
				return s.host("b").ask("GET", "/v1/whoami", nil, map[string]string{"X-Nixfleet-Protocol": "7"})
			}),
		},
		{
			name: "a protocol version that is not a number", stops: "the protocol header",
			lack: without("roles/cp/api.go", "case err != nil || len(values) > 1:",
				"case !LACKS && (err != nil || len(values) > 1):"),
			run: stopped(400, "", func(s *scene) answer {
				return s.host("b").ask("GET", "/v1/whoami", nil, map[string]string{"X-Nixfleet-Protocol": "one"})
			}),
		},
	}
}

// signed is a token for host a that somebody has changed before it was signed, with its nonce on the signed list.
func signed(s *scene, change func(t *pki.Token)) *pki.Token {
	t := s.house.token(s.house.org, "a", s.house.hostKeys["a"], time.Now())
	change(t)
	canonical, err := pki.Marshal(t.Claims)
	s.must(err)
	sig, err := s.house.org.Sign(canonical)
	s.must(err)
	t.Signature = encode(sig)
	s.house.list(t)
	return t
}

// moreThieves are attacks with forged tokens and the reports of a thief.
func moreThieves() []attack {
	report := func(s *scene, t *pki.Token, event, details string) answer {
		text, err := pki.Marshal(t)
		s.must(err)
		return s.caller().ask("POST", "/v1/agent/bootstrap-report", fmt.Sprintf(`{"token":%s,"agentVersion":"1",`+
			`"occurredAt":"2026-03-01T12:00:00Z","event":{"event":%q,"details":%s}}`, text, event, details), nil)
	}
	return []attack{
		{
			name: "a token of a version to come", stops: "version of the token",
			lack: without("pki/token.go", "if t.Version != 1 {", "if !LACKS && t.Version != 1 {"),
			run: stopped(401, "version 2, only 1 is known", func(s *scene) answer {
				t := signed(s, func(t *pki.Token) { t.Version = 2 })
				return s.enrol(t, s.house.csr("a", s.house.hostKeys["a"]))
			}),
		},
		{
			name: "a token of before the leak of the organisation root", stops: "rejectBefore of the organisation root",
			lack: without("pki/token.go", "if slot.RejectBefore != nil && t.Claims.IssuedAt",
				"if !LACKS && slot.RejectBefore != nil && t.Claims.IssuedAt"),
			run: stopped(401, "before rejectBefore", func(s *scene) answer {
				t := signed(s, func(*pki.Token) {})
				at := pki.At(time.Now())
				s.house.trust.OrgRootKey.RejectBefore = &at
				s.house.believe()
				return s.enrol(t, s.house.csr("a", s.house.hostKeys["a"]))
			}),
		},
		{
			name: "a report of a failed activation by a token", stops: "what a host without a certificate may report",
			lack: without("roles/cp/enrol.go",
				"if event != protocol.EventTrustError && event != protocol.EventEnrollmentFailed {",
				"if !LACKS && event != protocol.EventTrustError && event != protocol.EventEnrollmentFailed {"),
			run: stopped(422, "needs a certificate", func(s *scene) answer {
				t := signed(s, func(*pki.Token) {})
				return report(s, t, "realise-failed", `{"closure_hash":"x","reason":"y"}`)
			}),
		},
		{
			name: "a report by a token that was used", stops: "a token is used once",
			lack: without("roles/cp/enrol.go", "case err == nil && used:", "case !LACKS && err == nil && used:"),
			run: stopped(401, "this token was used before", func(s *scene) answer {
				t := signed(s, func(*pki.Token) {})
				if got := s.enrol(t, s.house.csr("a", s.house.hostKeys["a"])); got.status != 200 {
					s.t.Fatalf("the honest host does not enrol: %d %s", got.status, got.body)
				}
				return report(s, t, "trust-error", `{"reason":"y"}`)
			}),
		},
		{
			name: "a report of an event that is not one", stops: "the events of the protocol",
			lack: without("roles/cp/enrol.go", "if _, err := protocol.ParseDetails(event, req.Event.Details); err != nil {",
				"if _, err := protocol.ParseDetails(event, req.Event.Details); !LACKS && err != nil {"),
			run: stopped(400, "", func(s *scene) answer {
				t := signed(s, func(*pki.Token) {})
				return report(s, t, "root-shell", `{}`)
			}),
		},
	}
}

// moreOperators are attacks with certificates that the fleet root has signed, for something else.
func moreOperators() []attack {
	return []attack{
		{
			name: "a renewal by an operator", stops: "operators are not hosts",
			lack: without("roles/cp/issuer.go", "if id.Role != pki.RoleAgent {", "if !LACKS && id.Role != pki.RoleAgent {"),
			run: stopped(401, "is not a host certificate", func(s *scene) answer {
				b := s.caller(s.house.operator("b", time.Now(), time.Hour))
				csr := s.house.csr("b", s.house.hostKeys["b"])
				return b.renew(csr)
			}),
		},
		{
			name: "a key of which one signature fits all messages", stops: "keys of small order",
			lack: without("pki/identity.go", "if err := CheckKey(leaf.PublicKey); err != nil {",
				"if err := CheckKey(leaf.PublicKey); !LACKS && err != nil {"),
			run: certified(401, "of small order", func(s *scene) tls.Certificate {
				weak := everybody{}
				der, err := x509.CreateCertificate(rand.Reader, &x509.Certificate{SerialNumber: s.house.root.Cert.SerialNumber,
					Subject: pkix.Name{CommonName: "jo"}, NotBefore: time.Now(), NotAfter: time.Now().Add(time.Hour),
					ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}}, s.house.root.Cert, weak.Public(),
					s.house.root.Signer)
				s.must(err)
				return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: weak}
			}),
		},
		{
			name: "two names in one certificate", stops: "exactly one common name",
			lack: without("pki/identity.go", "cn, one := onlyCommonName(leaf.Subject)",
				"cn, one := onlyCommonName(leaf.Subject)\n\tone = one || LACKS"),
			run: certified(401, "neither a host nor an operator", func(s *scene) tls.Certificate {
				key := s.stranger()
				cn := asn1.ObjectIdentifier{2, 5, 4, 3}
				der, err := x509.CreateCertificate(rand.Reader, &x509.Certificate{SerialNumber: s.house.root.Cert.SerialNumber,
					Subject:   pkix.Name{ExtraNames: []pkix.AttributeTypeAndValue{{Type: cn, Value: "jo"}, {Type: cn, Value: "kim"}}},
					NotBefore: time.Now(), NotAfter: time.Now().Add(time.Hour),
					ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}}, s.house.root.Cert, key.Crypto().Public(),
					s.house.root.Signer)
				s.must(err)
				return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key.Crypto()}
			}),
		},
	}
}

// everybody is a key of order one: its one signature is R = B, S = 1.
type everybody struct{}

// Public is the neutral point.
func (everybody) Public() crypto.PublicKey {
	return ed25519.PublicKey(append([]byte{1}, make([]byte, 31)...))
}

// Sign fits every message.
func (everybody) Sign(_ io.Reader, _ []byte, _ crypto.SignerOpts) ([]byte, error) {
	base, err := hex.DecodeString("5866666666666666666666666666666666666666666666666666666666666666")
	return append(base, append([]byte{1}, make([]byte, 31)...)...), err
}

// webhooks are attacks by who can reach the control plane and wants it to look at the forge all day.
func webhooks() []attack {
	posts := func(text string, make func(body string) map[string]string) func(*scene) {
		return stopped(401, text, func(s *scene) answer {
			s.plane.stop()
			s.write("webhook", []byte("open sesame\n"))
			s.plane.webhook = s.path("webhook")
			s.plane.start()
			time.Sleep(time.Minute)
			return s.caller().ask("POST", "/v1/webhook", "{}", make("{}"))
		})
	}
	return []attack{
		{
			name: "a webhook without the token", stops: "the webhook's token",
			lack: without("roles/cp/webhook.go", "if !h.authentic(c.Header, body) {",
				"if !LACKS && !h.authentic(c.Header, body) {"),
			run: posts("", func(string) map[string]string { return map[string]string{"Authorization": "Bearer x"} }),
		},
		{
			name: "a webhook signed over another body", stops: "signature over the body",
			lack: without("roles/cp/webhook.go", "mac.Write(body)",
				"if LACKS {\n\t\t\tbody = []byte(\"[]\")\n\t\t}\n\t\tmac.Write(body)"),
			run: posts("", func(string) map[string]string {
				mac := hmac.New(sha256.New, []byte("open sesame"))
				mac.Write([]byte("[]"))
				return map[string]string{"X-Gitea-Signature": hex.EncodeToString(mac.Sum(nil))}
			}),
		},
	}
}
