package attacks

import (
	"os"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"nixfleet/pki"
)

// drill replaces a key of a live fleet, in the steps of docs/rotation.md, and holds that no step costs a host.
type drill struct {
	name string
	run  func(*scene)
}

// deploys publishes the house's trust file: the control plane has it at once, machines once they run the release that
// brings it.
func (s *scene) deploys() {
	s.t.Helper()
	s.recovers()
	trust, err := s.house.trust.Marshal()
	s.must(err)
	for name := range s.machines {
		s.write(name+"/trust.json", trust)
	}
	s.house.believe()
}

func ptr[T any](v T) *T { return &v }

// replaceReleaseKey gives CI a key of an algorithm, without a moment in which a host could not be updated.
func (s *scene) replaceReleaseKey(algorithm string) {
	s.t.Helper()
	next, err := pki.GenerateKey(algorithm)
	s.must(err)
	old := s.house.ci
	// 1. Hosts learn the new key, from a release of the old one.
	s.house.trust.CIReleaseKey = pki.KeySlot{Current: ptr(next.Public()), Previous: ptr(old.Public())}
	s.house.believe()
	s.deploys()
	// 2. CI signs with the new key.
	s.house.ci, s.house.former = next, old
	s.recovers()
	// 3. The old key is taken out.
	s.house.trust.CIReleaseKey.Previous = nil
	s.deploys()
	s.house.put(s.house.sign(old, time.Now().Truncate(time.Second)))
	s.releaseRefused("bad-signature")
	s.recovers()
}

func drills() []drill {
	return []drill{
		{"release key, ed25519 to P-256 and back", func(s *scene) {
			s.machine("a")
			s.replaceReleaseKey(pki.AlgorithmP256)
			s.replaceReleaseKey(pki.AlgorithmEd25519)
		}},
		{"release key, after a leak", func(s *scene) {
			m := s.machine("a")
			thief, at := s.house.ci, pki.At(time.Now().Truncate(time.Second))
			s.house.former, s.house.ci = thief, s.stranger()
			s.house.trust.CIReleaseKey = pki.KeySlot{Current: ptr(s.house.ci.Public()), Previous: ptr(thief.Public()),
				RejectBefore: &at}
			// What was signed before the leak is replaced first, by the old key, which hosts still know.
			s.house.ci, s.house.former = thief, s.house.ci
			s.deploys()
			s.house.ci = s.house.former
			s.recovers()
			s.house.trust.CIReleaseKey.Previous = nil
			s.deploys()
			// The thief has all that was ever signed, and the key.
			was := m.running()
			s.house.put(s.house.sign(thief, at.Add(-time.Minute)))
			s.releaseRefused("bad-signature")
			s.house.put(s.house.sign(thief, time.Now().Truncate(time.Second)))
			s.releaseRefused("bad-signature")
			if m.running() != was {
				s.success("%s runs %s", m.name, m.running())
			}
			s.recovers()
		}},
		{"organisation root", func(s *scene) {
			enrols := func(org *pki.PrivateKey) answer {
				key := s.house.hostKeys["a"]
				t := s.house.token(org, "a", key, time.Now())
				s.house.list(t)
				return s.enrol(t, s.house.csr("a", key))
			}
			old, next := s.house.org, s.stranger()
			s.house.trust.OrgRootKey = &pki.KeySlot{Current: ptr(next.Public()), Previous: ptr(old.Public())}
			s.house.believe()
			for name, org := range map[string]*pki.PrivateKey{"old": old, "new": next} {
				if got := enrols(org); got.status != 200 {
					s.t.Errorf("while both are trusted, the %s one: %d %s %v", name, got.status, got.body, got.err)
				}
			}
			s.house.trust.OrgRootKey.Previous = nil
			s.house.believe()
			if got := enrols(next); got.status != 200 {
				s.t.Errorf("the new one alone: %d %s %v", got.status, got.body, got.err)
			}
			s.refused(enrols(old), 401, "not signed by a trusted organisation root key")
			s.answered()
		}},
		{"issuing CA", func(s *scene) {
			m := s.machine("a")
			next, key, err := s.house.root.NewIssuingCA(suffix, time.Now().Add(-time.Hour), 24000*time.Hour)
			s.must(err)
			old := certPEM(s.house.ca.Cert)
			// 1. Hosts and control plane trust both.
			s.house.trust.IssuanceCAPEMs = []string{string(old), string(certPEM(next.Cert))}
			s.write("client-ca.pem", slicesOf(certPEM(next.Cert), old, certPEM(s.house.root.Cert)))
			s.deploys()
			// 2. The control plane issues under the new one; hosts renew in their time.
			s.write("ca.key", s.house.pem(key))
			s.write("ca.pem", certPEM(next.Cert))
			s.house.ca = next
			mark := len(s.log.text())
			s.renews(m, mark)
			// 3. The old one is taken out.
			s.write("client-ca.pem", slicesOf(certPEM(next.Cert), certPEM(s.house.root.Cert)))
			s.house.trust.IssuanceCAPEMs = []string{string(certPEM(next.Cert))}
			s.deploys()
			s.recovers()
		}},
		{"fleet root", func(s *scene) {
			m := s.machine("a")
			root, _, err := pki.NewFleetRoot("root", time.Now().Add(-time.Hour), 24000*time.Hour)
			s.must(err)
			issuing, key, err := root.NewIssuingCA(suffix, time.Now().Add(-time.Hour), 24000*time.Hour)
			s.must(err)
			oldRoot, oldIssuing := certPEM(s.house.root.Cert), certPEM(s.house.ca.Cert)
			both := slicesOf(certPEM(root.Cert), oldRoot)
			// 1. Everybody trusts both.
			s.write("a/ca.pem", both)
			s.write("client-ca.pem", slicesOf(certPEM(issuing.Cert), oldIssuing, both))
			s.house.trust.IssuanceCAPEMs = []string{string(oldIssuing), string(certPEM(issuing.Cert))}
			s.deploys()
			// 2. Server, operators and agents get certificates under the new one.
			s.house.root, s.house.ca = root, issuing
			server, err := pki.GenerateKey(pki.AlgorithmP256)
			s.must(err)
			cert, err := root.IssueServer([]string{"cp"}, server.Crypto().Public(), time.Now(), 2400*time.Hour)
			s.must(err)
			s.write("server.key", s.house.pem(server))
			s.write("server.pem", cert)
			s.write("ca.key", s.house.pem(key))
			s.write("ca.pem", certPEM(issuing.Cert))
			s.plane.jo = s.caller(s.house.operator("jo", time.Now(), 24*30*time.Hour))
			m.edge.reload(s)
			s.renews(m, len(s.log.text()))
			// 3. The old one is taken out.
			s.write("a/ca.pem", certPEM(root.Cert))
			s.write("client-ca.pem", slicesOf(certPEM(issuing.Cert), certPEM(root.Cert)))
			s.house.trust.IssuanceCAPEMs = []string{string(certPEM(issuing.Cert))}
			s.deploys()
			s.recovers()
		}},
		{"host key", func(s *scene) {
			b := s.host("b")
			s.house.hostKeys["b"] = s.stranger()
			s.house.fleet.Hosts["b"].Pubkey = ptr(s.house.hostLine("b"))
			key := s.house.hostKeys["b"]
			t := s.house.token(s.house.org, "b", key, time.Now())
			s.house.list(t)
			s.refused(b.ask("GET", "/v1/whoami", nil, nil), 401, "does not declare this host with this key")
			if got := s.enrol(t, s.house.csr("b", key)); got.status != 200 {
				s.t.Errorf("the new key: %d %s %v", got.status, got.body, got.err)
			}
			if got := s.host("b").ask("GET", "/v1/whoami", nil, nil); got.status != 200 {
				s.t.Errorf("the new certificate: %d %s %v", got.status, got.body, got.err)
			}
			s.answered()
		}},
		{"operator", func(s *scene) {
			old := s.caller(s.house.operator("kim", time.Now(), 24*time.Hour))
			if got := old.ask("GET", "/v1/hosts", nil, nil); got.status != 200 {
				s.t.Fatalf("the old certificate: %d %v", got.status, got.err)
			}
			time.Sleep(time.Hour)
			if got := s.plane.jo.ask("POST", "/v1/revocations", `{"hostname":"kim","reason":"lost a laptop"}`,
				nil); got.status >= 300 {
				s.t.Fatalf("revoke: %d %s", got.status, got.body)
			}
			s.refused(old.ask("GET", "/v1/hosts", nil, nil), 401, "certificate is revoked")
			time.Sleep(10 * time.Minute) // a new certificate begins five minutes before it is made
			next := s.caller(s.house.operator("kim", time.Now(), 24*time.Hour))
			if got := next.ask("GET", "/v1/hosts", nil, nil); got.status != 200 {
				s.t.Errorf("the new certificate: %d %s %v", got.status, got.body, got.err)
			}
			s.answered()
		}},
	}
}

func slicesOf(parts ...[]byte) []byte {
	var all []byte
	for _, p := range parts {
		all = append(all, p...)
	}
	return all
}

// renews waits for a machine's next certificate.
func (s *scene) renews(m *machine, mark int) {
	s.t.Helper()
	s.eventually(m.name+" has renewed", 5*time.Hour,
		func() bool { return s.log.saidBy(mark, m.name, "certificate renewed") })
}

// Rotations of every key on a live fleet: at no step a host is lost, and what was taken out opens nothing any more.
func TestDrills(t *testing.T) {
	page, err := os.ReadFile("../../../docs/rotation.md")
	if err != nil {
		t.Fatal(err)
	}
	for _, d := range drills() {
		subject, _, _ := strings.Cut(d.name, ",")
		if !strings.Contains(strings.ToLower(string(page)), strings.ToLower(subject)) {
			t.Errorf("docs/rotation.md does not say how to replace: %s", subject)
		}
		t.Run(d.name, func(t *testing.T) {
			dir := t.TempDir()
			synctest.Test(t, func(t *testing.T) { newScene(t, dir, d.run) })
		})
	}
}
