package attacks

import (
	"crypto"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509/pkix"
	"encoding/asn1"
	"encoding/base64"
	"encoding/pem"
	"net/http"
	"time"

	"nixfleet/pki"
)

// certified asks with a certificate that should open nothing.
func certified(status int, text string, make func(s *scene) tls.Certificate) func(*scene) {
	return stopped(status, text, func(s *scene) answer {
		return s.caller(make(s)).ask("GET", "/v1/hosts", nil, nil)
	})
}

// unshaken wants the handshake, or what stands for it, to fail and to be counted.
func unshaken(make func(s *scene) *caller) func(*scene) {
	return func(s *scene) {
		got := make(s).ask("GET", "/v1/hosts", nil, nil)
		switch {
		case got.err == nil && got.status == 200:
			s.success("answered %s", got.body)
		case got.err == nil:
			s.success("the handshake went through: %d %s", got.status, got.body)
		case s.plane.metric("nixfleet_handshakes_failed_total") == 0:
			s.t.Errorf("not counted: %v", got.err)
		}
		s.answered()
	}
}

// operators are attacks by who holds an operator's certificate that should open nothing more, or nothing any more.
func operators() []attack {
	return []attack{
		{
			name: "a check-in as a host that the operator is named after", stops: "operators are not hosts",
			lack: without("roles/cp/call.go", "case c.caller.Role != pki.RoleAgent:",
				"case !LACKS && c.caller.Role != pki.RoleAgent:"),
			run: stopped(403, "is not a host certificate", func(s *scene) answer {
				a := s.caller(s.house.operator("a", time.Now(), time.Hour))
				return a.ask("POST", "/v1/agent/checkin", s.checkinOf("a"), nil)
			}),
		},
		{
			name: "an operator's certificate of before its revocation", stops: "revocation on every request",
			lack: without("roles/cp/door.go", "since = row\n", "if !LACKS {\n\t\t\tsince = row\n\t\t}\n"),
			run: stopped(401, "certificate is revoked", func(s *scene) answer {
				thief := s.caller(s.house.operator("thief", time.Now(), time.Hour))
				time.Sleep(time.Minute)
				got := s.plane.jo.ask("POST", "/v1/revocations", `{"hostname":"thief","reason":"stolen"}`, nil)
				if got.status >= 300 {
					s.t.Fatalf("revoke: %d %s", got.status, got.body)
				}
				return thief.ask("GET", "/v1/hosts", nil, nil)
			}),
		},
		{
			name: "an operator's certificate of X.509 v1", stops: "version of the certificate",
			lack: without("pki/identity.go", "if leaf.Version != 3 {", "if !LACKS && leaf.Version != 3 {"),
			run:  certified(401, "X.509 v1", func(s *scene) tls.Certificate { return s.versionOne("jo") }),
		},
		{
			name: "an operator's certificate in a host's name, under the root", stops: "hosts hang under the issuing CA",
			lack: without("pki/identity.go", "case !isHost && (underRoot || r.SingleCA) && !r.canonical(id.CommonName):",
				"case !isHost && (underRoot || r.SingleCA) && (LACKS || !r.canonical(id.CommonName)):"),
			run: certified(401, "neither a host nor an operator", func(s *scene) tls.Certificate {
				return s.house.operator(pki.AgentName("a", suffix), time.Now(), time.Hour)
			}),
		},
		{
			name: "a person's name under the issuing CA", stops: "operators hang under the fleet root",
			lack: without("pki/identity.go", "case !isHost && (underRoot || r.SingleCA)",
				"case !isHost && (LACKS || underRoot || r.SingleCA)"),
			run: certified(401, "neither a host nor an operator", func(s *scene) tls.Certificate {
				key := s.stranger()
				text, err := s.house.ca.IssueOperator("jo", key.Crypto().Public(), time.Now(), time.Hour)
				s.must(err)
				return pair(text, key)
			}),
		},
	}
}

// strangers are attacks by who can reach the control plane and holds nothing of this fleet.
func strangers() []attack {
	handshake := without("roles/cp/files.go", "ClientAuth:   tls.VerifyClientCertIfGiven,",
		"ClientAuth:   map[bool]tls.ClientAuthType{true: tls.RequestClientCert, "+
			"false: tls.VerifyClientCertIfGiven}[LACKS],")
	return []attack{
		{
			name: "no certificate at all", stops: "every path but two wants a certificate",
			lack: without("roles/cp/door.go",
				"len(conn.state.PeerCertificates) == 0 {\n\t\treturn pki.Identity{}, nil, errNoCertificate",
				"len(conn.state.PeerCertificates) == 0 {\n\t\tif LACKS {\n\t\t\treturn pki.Identity{Role: pki.RoleOperator, "+
					"NotAfter: time.Now().Add(time.Hour)}, nil, nil\n\t\t}\n\t\treturn pki.Identity{}, nil, errNoCertificate"),
			run: stopped(401, "no client certificate", func(s *scene) answer {
				return s.caller().ask("GET", "/v1/hosts", nil, nil)
			}),
		},
		{
			name: "a certificate of another fleet's root", stops: "the client CAs",
			lack: handshake,
			run: unshaken(func(s *scene) *caller {
				root, _, err := pki.NewFleetRoot("root", time.Now().Add(-time.Hour), 24*time.Hour)
				s.must(err)
				key := s.stranger()
				text, err := root.IssueOperator("jo", key.Crypto().Public(), time.Now(), time.Hour)
				s.must(err)
				return s.caller(pair(text, key))
			}),
		},
		{
			name: "the server's certificate as a client", stops: "purpose of the certificate",
			lack: handshake,
			run: unshaken(func(s *scene) *caller {
				key := s.stranger()
				text, err := s.house.root.IssueServer([]string{"cp"}, key.Crypto().Public(), time.Now(), time.Hour)
				s.must(err)
				return s.caller(pair(text, key))
			}),
		},
		{
			name: "TLS 1.1", stops: "TLS 1.2 at least",
			lack: without("roles/cp/files.go", "MinVersion:   tls.VersionTLS12,",
				"MinVersion:   map[bool]uint16{true: tls.VersionTLS10, false: tls.VersionTLS12}[LACKS],"),
			run: unshaken(func(s *scene) *caller {
				c := s.caller(s.house.operator("jo", time.Now(), time.Hour))
				s.tls(c).MaxVersion, s.tls(c).MinVersion = tls.VersionTLS11, tls.VersionTLS10
				return c
			}),
		},
		{
			name: "a certificate that has ended", stops: "validity of the certificate",
			lack: handshake,
			run: unshaken(func(s *scene) *caller {
				pair := s.house.operator("jo", time.Now(), time.Hour)
				time.Sleep(2 * time.Hour)
				return s.caller(pair)
			}),
		},
	}
}

func encode(sig []byte) string { return base64.StdEncoding.EncodeToString(sig) }

// tls is the configuration of a caller's connections.
func (s *scene) tls(c *caller) *tls.Config { return c.http.Transport.(*http.Transport).TLSClientConfig }

// versionOne is an operator's certificate without version and extensions, signed by the fleet root.
func (s *scene) versionOne(name string) tls.Certificate {
	key, err := pki.GenerateKey(pki.AlgorithmP256)
	s.must(err)
	text, err := s.house.root.IssueOperator(name, key.Crypto().Public(), time.Now(), time.Hour)
	s.must(err)
	block, _ := pem.Decode(text)
	type tbs struct {
		Version                                      int `asn1:"optional,explicit,default:0,tag:0"`
		Serial, Algorithm, Issuer, Validity, Subject asn1.RawValue
		Key                                          asn1.RawValue
		Extensions                                   []pkix.Extension `asn1:"omitempty,optional,explicit,tag:3"`
	}
	var cert struct {
		TBS       tbs
		Algorithm pkix.AlgorithmIdentifier
		Signature asn1.BitString
	}
	_, err = asn1.Unmarshal(block.Bytes, &cert)
	s.must(err)
	cert.TBS.Version, cert.TBS.Extensions = 0, nil
	signed, err := asn1.Marshal(cert.TBS)
	s.must(err)
	digest := sha256.Sum256(signed)
	signature, err := s.house.root.Signer.Sign(rand.Reader, digest[:], crypto.SHA256)
	s.must(err)
	cert.Signature = asn1.BitString{Bytes: signature, BitLength: 8 * len(signature)}
	der, err := asn1.Marshal(cert)
	s.must(err)
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key.Crypto()}
}
