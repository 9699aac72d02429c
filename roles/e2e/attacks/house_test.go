package attacks

import (
	"crypto/ed25519"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"nixfleet/nixops/fleet"
	"nixfleet/nixops/sim"
	"nixfleet/pki"
)

const suffix = "fleet.test"

// house is what the honest people hold: keys, the declaration, and the releases that they signed.
type house struct {
	s        *scene
	ci, org  *pki.PrivateKey
	root, ca *pki.CA
	caKey    *pki.PrivateKey
	hostKeys map[string]*pki.PrivateKey

	fleet       *fleet.Fleet
	revocations []fleet.Revocation
	nonces      []fleet.BootstrapNonce
	trust       *pki.Trust
	system      int
	signed      time.Time
	heads       map[string]*fleet.Head
	former      *pki.PrivateKey     // of ci, after a rotation
	files       map[string][]byte   // of the newest release
	past        []map[string][]byte // files of the releases before
}

func newHouse(s *scene) *house {
	h := &house{s: s, hostKeys: map[string]*pki.PrivateKey{}, heads: map[string]*fleet.Head{}}
	key := func(algorithm string) *pki.PrivateKey {
		k, err := pki.GenerateKey(algorithm)
		s.must(err)
		return k
	}
	h.ci, h.org = key(pki.AlgorithmEd25519), key(pki.AlgorithmEd25519)
	var err error
	day := 24 * time.Hour
	h.root, _, err = pki.NewFleetRoot("root", time.Now().Add(-day), 1000*day)
	s.must(err)
	h.ca, h.caKey, err = h.root.NewIssuingCA(suffix, time.Now().Add(-day), 1000*day)
	s.must(err)
	ci, org, issuing := h.ci.Public(), h.org.Public(), string(certPEM(h.ca.Cert))
	h.trust = &pki.Trust{SchemaVersion: 1, CIReleaseKey: pki.KeySlot{Current: &ci}, CacheKeys: []string{},
		OrgRootKey: &pki.KeySlot{Current: &org}, IssuanceCAPEMs: []string{issuing}}
	commit, zero := strings.Repeat("c", 40), uint32(0)
	channel := fleet.Channel{RolloutPolicy: "p", ReconcileIntervalMinutes: 1, FreshnessWindow: 180,
		SigningIntervalMinutes: 60, Compliance: fleet.Compliance{Frameworks: []string{}, Mode: fleet.ModeDisabled}}
	h.fleet = &fleet.Fleet{
		SchemaVersion: 1, Hosts: map[string]*fleet.Host{}, Channels: map[string]fleet.Channel{"stable": channel,
			"edge": channel},
		RolloutPolicies: map[string]fleet.Policy{"p": {Strategy: "all-at-once", Waves: []fleet.PolicyWave{},
			OnHealthFailure: fleet.OnFailureHalt}},
		Waves: map[string][]fleet.Wave{"stable": {{Hosts: []string{"a"}, SoakSeconds: &zero},
			{Hosts: []string{"b"}, SoakSeconds: &zero}}, "edge": {}},
		Edges: []fleet.Edge{}, ChannelEdges: []fleet.ChannelEdge{}, DisruptionBudgets: []fleet.Budget{},
		Meta: fleet.Meta{SchemaVersion: 1, CICommit: &commit},
	}
	for name, on := range map[string]string{"a": "stable", "b": "stable", "c": "edge"} {
		h.hostKeys[name] = key(pki.AlgorithmEd25519)
		line := h.hostLine(name)
		h.fleet.Hosts[name] = &fleet.Host{System: "x86_64-linux", Tags: []string{}, Channel: on, Pubkey: &line}
	}
	server := key(pki.AlgorithmP256)
	cert, err := h.root.IssueServer([]string{"cp"}, server.Crypto().Public(), time.Now(), 100*day)
	s.must(err)
	for name, data := range map[string][]byte{"server.pem": cert, "server.key": h.pem(server),
		"client-ca.pem": append(certPEM(h.ca.Cert), certPEM(h.root.Cert)...), "root.pem": certPEM(h.root.Cert),
		"ca.pem": certPEM(h.ca.Cert), "ca.key": h.pem(h.caKey)} {
		s.write(name, data)
	}
	h.believe()
	h.signed = time.Now().Add(-10 * time.Minute).Truncate(time.Second)
	h.publish()
	return h
}

func certPEM(c *x509.Certificate) []byte {
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: c.Raw})
}

func (h *house) pem(k *pki.PrivateKey) []byte {
	text, err := k.MarshalPEM()
	h.s.must(err)
	return text
}

func (h *house) hostLine(name string) string {
	return pki.FormatHostKey(h.hostKeys[name].Crypto().Public().(ed25519.PublicKey), "")
}

// believe writes the trust file that the control plane, and machines from then on, have.
func (h *house) believe() {
	doc, err := h.trust.Marshal()
	h.s.must(err)
	h.s.write("trust.json", doc)
}

// rotate gives CI another key, and writes the trust file that set makes.
func (h *house) rotate(set func(old, next *pki.PublicKey)) {
	h.former, h.ci = h.ci, h.s.stranger()
	old, next := h.former.Public(), h.ci.Public()
	set(&old, &next)
	h.believe()
}

// closure is what a host shall run by the newest release.
func (h *house) closure(host string) string { return closureOf(host, h.system) }

func closureOf(host string, n int) string { return fmt.Sprintf("%032d-nixos-system-%s-%d", n, host, n) }

// publish signs a release with a new system for each host, and puts it where the control plane looks.
func (h *house) publish() { h.publishWith(func(*sim.Closure) {}) }

// inForce publishes, and waits until the control plane has it.
func (h *house) inForce() {
	h.publish()
	time.Sleep(2 * time.Minute)
}

// publishWith is publish with systems that somebody has changed.
func (h *house) publishWith(change func(*sim.Closure)) {
	h.system++
	trust, err := h.trust.Marshal()
	h.s.must(err)
	for name, host := range h.fleet.Hosts {
		closure := h.closure(name)
		host.ClosureHash = &closure
		h.s.must(os.MkdirAll(h.s.path("cache"), 0o700))
		system := sim.Closure{Agent: "self", TrustJSON: string(trust), Cache: sim.Cache{Size: 1}}
		change(&system)
		h.s.must(sim.WriteClosure(h.s.path("cache"), closure, system))
	}
	if next := time.Now().Truncate(time.Second); next.After(h.signed) {
		h.signed = next
	} else {
		h.signed = h.signed.Add(time.Second)
	}
	if h.files != nil {
		h.past = append(h.past, h.files)
	}
	h.files = h.sign(h.ci, h.signed)
	h.put(h.files)
}

// sign makes the files of a release with a key, at a time.
func (h *house) sign(key *pki.PrivateKey, signedAt time.Time) map[string][]byte {
	files, at := map[string][]byte{}, pki.At(signedAt)
	algorithm := key.Algorithm()
	meta := fleet.Meta{SchemaVersion: 1, SignedAt: &at, CICommit: h.fleet.Meta.CICommit, SignatureAlgorithm: &algorithm}
	put := func(name string, v any) string {
		doc, err := pki.Marshal(v)
		h.s.must(err)
		files[name] = doc
		files[name+fleet.SignatureSuffix], err = key.Sign(doc)
		h.s.must(err)
		return pki.HashHex(doc)
	}
	revocations := put(fleet.RevocationsName, fleet.Revocations{SchemaVersion: 1,
		Revocations: append([]fleet.Revocation{}, h.revocations...), Meta: meta})
	nonces := put(fleet.NoncesName, fleet.BootstrapNonces{SchemaVersion: 1,
		BootstrapNonces: append([]fleet.BootstrapNonce{}, h.nonces...), Meta: meta})
	f := *h.fleet
	f.Meta, f.Members = meta, &fleet.Members{Revocations: &revocations, BootstrapNonces: &nonces,
		Heads: []string{"edge", "stable"}}
	hash := put(fleet.FleetName, &f)
	for channel := range f.Channels {
		m, _, err := fleet.Project(&f, hash, channel)
		h.s.must(err)
		id, _, err := fleet.RolloutID(m)
		h.s.must(err)
		put(fleet.ManifestName(id), m)
		head, err := fleet.ProjectHead(&f, m, id, h.heads[channel], 6*time.Minute, 5*time.Minute)
		h.s.must(err)
		h.heads[channel] = head
		put(fleet.HeadName(channel), head)
	}
	return files
}

// put has the forge hold these files and no others.
func (h *house) put(files map[string][]byte) {
	h.s.must(os.RemoveAll(h.s.path("releases")))
	for name, data := range files {
		h.s.write(filepath.Join("releases", name), data)
	}
}

// forged has the forge publish the newest release after it has changed some of its files.
func (h *house) forged(change func(files map[string][]byte)) {
	files := maps.Clone(h.files)
	change(files)
	h.put(files)
}

// resign puts another body in a release, signed by a key.
func resign(s *scene, files map[string][]byte, name string, body []byte, key *pki.PrivateKey) {
	sig, err := key.Sign(body)
	s.must(err)
	files[name], files[name+fleet.SignatureSuffix] = body, sig
}

func pair(cert []byte, key *pki.PrivateKey) tls.Certificate {
	block, _ := pem.Decode(cert)
	return tls.Certificate{Certificate: [][]byte{block.Bytes}, PrivateKey: key.Crypto()}
}

// operator makes a person's certificate.
func (h *house) operator(name string, from time.Time, validity time.Duration) tls.Certificate {
	key, err := pki.GenerateKey(pki.AlgorithmP256)
	h.s.must(err)
	cert, err := h.root.IssueOperator(name, key.Crypto().Public(), from, validity)
	h.s.must(err)
	return pair(cert, key)
}

// hostCert makes a host's certificate for a key.
func (h *house) hostCert(ca *pki.CA, name string, key *pki.PrivateKey, from time.Time,
	v time.Duration) tls.Certificate {
	csr, err := pki.ParseCSR(h.csr(name, key))
	h.s.must(err)
	cert, _, err := ca.IssueAgent(csr, name, suffix, from, v)
	h.s.must(err)
	return pair(cert, key)
}

func (h *house) csr(name string, key *pki.PrivateKey) []byte {
	text, err := pki.NewCSR(key.Crypto(), name)
	h.s.must(err)
	return text
}

// host speaks as the honest software of a host would.
func (s *scene) host(name string) *caller {
	return s.caller(s.house.hostCert(s.house.ca, name, s.house.hostKeys[name], time.Now(), 20*time.Hour))
}

// token mints one for a host's key.
func (h *house) token(org *pki.PrivateKey, host string, key *pki.PrivateKey, from time.Time) *pki.Token {
	t, err := pki.MintToken(org, pki.Claims{Hostname: host,
		ExpectedPubkeyFingerprint: pki.Fingerprint(key.Crypto().Public().(ed25519.PublicKey)), IssuedAt: pki.At(from),
		ExpiresAt: pki.At(from.Add(24 * time.Hour)), Nonce: pki.NewNonce()})
	h.s.must(err)
	return t
}

// list puts the nonce of a token on the signed list.
func (h *house) list(t *pki.Token) {
	h.nonces = append(h.nonces, fleet.BootstrapNonce{Nonce: t.Claims.Nonce, Hostname: t.Claims.Hostname,
		ExpiresAt: t.Claims.ExpiresAt})
	h.inForce()
}

// manifest is the name of a channel's manifest among the files of a release.
func manifest(files map[string][]byte, channel string) string {
	for _, name := range slices.Sorted(maps.Keys(files)) {
		if strings.HasPrefix(name, fleet.ManifestsDir+"/") && strings.HasSuffix(name, ".json") &&
			strings.Contains(string(files[name]), `"channel":"`+channel+`"`) {
			return name
		}
	}
	return ""
}
