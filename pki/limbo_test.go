package pki

import (
	"crypto/x509"
	"encoding/json"
	"strings"
	"testing"
	"time"
)

// limboDiffers are cases where our chain check says otherwise than x509-limbo
// wants, and why that is no harm here.
var limboDiffers = func() map[string]string {
	m := map[string]string{}
	for _, g := range []struct {
		why string
		ids []string
	}{
		{"it says how a certificate is to be written; the issuer writes ours, and a client's form decides nothing", []string{
			"rfc5280::aki::leaf-missing-aki",
			"rfc5280::aki::intermediate-missing-aki",
			"rfc5280::aki::cross-signed-root-missing-aki",
			"rfc5280::ski::root-missing-ski",
			"rfc5280::ski::intermediate-missing-ski",
			"rfc5280::nc::permitted-dns-match-noncritical",
			"rfc5280::nc::not-allowed-in-ee-noncritical",
			"rfc5280::nc::not-allowed-in-ee-critical",
			"rfc5280::san::noncritical-with-empty-subject",
			"rfc5280::serial::too-long",
			"rfc5280::serial::zero",
			"rfc5280::ee-empty-issuer",
			"rfc5280::ca-empty-subject",
			"rfc5280::leaf-ku-keycertsign",
			"webpki::eku::ee-critical-eku",
			"webpki::san::san-critical-with-nonempty-subject",
		}},
		{"a root is trusted because it is listed, whatever it says of itself", []string{
			"rfc5280::root-non-critical-basic-constraints",
			"rfc5280::root-inconsistent-ca-extensions",
			"webpki::aki::root-with-aki-missing-keyidentifier",
			"webpki::aki::root-with-aki-authoritycertissuer",
			"webpki::aki::root-with-aki-authoritycertserialnumber",
			"webpki::aki::root-with-aki-all-fields",
			"webpki::aki::root-with-aki-ski-mismatch",
			"webpki::eku::root-has-eku",
		}},
		{"the contract lets a leaf without a list of purposes pass, and any purpose includes ours", []string{
			"webpki::eku::ee-anyeku",
			"webpki::eku::ee-without-eku",
		}},
		{"a rule for public web sites; the role and the declared key decide here", []string{
			"webpki::san::public-suffix-wildcard-san",
			"webpki::forbidden-dsa-spki-leaf",
			"webpki::forbidden-signature-algorithm-in-leaf",
			"webpki::ee-basicconstraints-ca",
		}},
		{"our bound on the length of chains is fixed", []string{
			"pathlen::max-chain-depth-0-exhausted",
			"pathlen::max-chain-depth-1-exhausted",
		}},
		{
			"stricter than asked: self-issued certificates count like others, constraints on directory names are not " +
				"understood and so refused", []string{
				"pathlen::self-issued-certs-pathlen",
				"rfc5280::nc::permitted-self-issued",
				"rfc5280::nc::permitted-dn-match",
			}},
	} {
		for _, id := range g.ids {
			m[id] = g.why
		}
	}
	return m
}()

func TestVectorsX509Limbo(t *testing.T) {
	var doc struct {
		TestCases []struct {
			ID             string
			ValidationTime *time.Time                    `json:"validation_time"`
			Trusted        []string                      `json:"trusted_certs"`
			Intermediates  []string                      `json:"untrusted_intermediates"`
			Peer           string                        `json:"peer_certificate"`
			PeerName       *struct{ Kind, Value string } `json:"expected_peer_name"`
			Expected       string                        `json:"expected_result"`
			MaxDepth       *int                          `json:"max_chain_depth"`
		}
	}
	if err := json.Unmarshal(readFile(t, "vectors", "x509-limbo", "limbo.json"), &doc); err != nil ||
		len(doc.TestCases) < 130 {
		t.Fatalf("%d cases, %v", len(doc.TestCases), err)
	}
	rules := IdentityRules{Suffix: "example.com"}
	for _, c := range doc.TestCases {
		now := time.Date(2023, 12, 2, 0, 0, 0, 0, time.UTC)
		if c.ValidationTime != nil {
			now = *c.ValidationTime
		}
		chains, err := func() ([][]*x509.Certificate, error) {
			peer, err := ParseCertificates([]byte(c.Peer + strings.Join(c.Intermediates, "\n")))
			if err != nil {
				return nil, err
			}
			trusted, err := ParseCertificates([]byte(strings.Join(c.Trusted, "\n")))
			if err != nil {
				return nil, err
			}
			roots := x509.NewCertPool()
			for _, r := range trusted {
				roots.AddCert(r)
			}
			chains, err := VerifyChain(peer, roots, x509.ExtKeyUsageServerAuth, now)
			if err != nil || c.PeerName == nil {
				return chains, err
			}
			return chains, peer[0].VerifyHostname(c.PeerName.Value)
		}()
		why, differs := limboDiffers[c.ID]
		if agrees := (err == nil) == (c.Expected == "SUCCESS"); agrees == differs {
			t.Errorf("%s: got %v, want %s (listed as: %q)", c.ID, err, c.Expected, why)
		}
		// Whatever verifies, nothing here is one of our hosts.
		if id, err := rules.Identify(chains); err == nil && id.Role == RoleAgent {
			t.Errorf("%s: taken for host %s", c.ID, id.Name)
		}
	}
}
