package cp

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/rs/zerolog"

	"nixfleet/nixops/fleet"
	"nixfleet/pki"
	"nixfleet/roles/protocol"
)

const testSuffix = "fleet.example.com"

// closureOf is a store base name of a host's n-th system.
func closureOf(host string, n int) string {
	return fmt.Sprintf("%032d-nixos-system-%s-25.11", n, host)
}

// estate is what operators of a fleet hold: keys, the declared fleet, and a
// release directory.
type estate struct {
	t        testing.TB
	dir      string
	release  string // directory
	ci, org  *pki.PrivateKey
	root, ca *pki.CA
	caKey    *pki.PrivateKey
	hostKeys map[string]*pki.PrivateKey

	fleet       *fleet.Fleet
	revocations *fleet.Revocations
	nonces      *fleet.BootstrapNonces
	signed      time.Time
	heads       map[string]*fleet.Head
	v1          bool // no heads and no members

	unnamedHeads bool // as releases of before have them
}

func generate(t testing.TB, algorithm string) *pki.PrivateKey {
	t.Helper()
	key, err := pki.GenerateKey(algorithm)
	if err != nil {
		t.Fatal(err)
	}
	return key
}

// newEstate declares hosts on the channel stable: the first alone in wave 0,
// the rest in wave 1, without soak time.
func newEstate(t testing.TB, hosts ...string) *estate {
	t.Helper()
	if t, ok := t.(*testing.T); ok {
		t.Parallel()
	}
	now := time.Now()
	e := &estate{
		t: t, dir: t.TempDir(), ci: generate(t, pki.AlgorithmEd25519), org: generate(t, pki.AlgorithmEd25519),
		hostKeys: map[string]*pki.PrivateKey{}, heads: map[string]*fleet.Head{},
		signed: now.Add(-10 * time.Minute).Truncate(time.Second),
	}
	e.release = filepath.Join(e.dir, "releases")
	var err error
	if e.root, _, err = pki.NewFleetRoot("fleet root", now.Add(-48*time.Hour), 96*time.Hour); err != nil {
		t.Fatal(err)
	}
	if e.ca, e.caKey, err = e.root.NewIssuingCA(testSuffix, now.Add(-48*time.Hour), 96*time.Hour); err != nil {
		t.Fatal(err)
	}
	commit, zero := strings.Repeat("ab", 20), uint32(0)
	e.fleet = &fleet.Fleet{
		SchemaVersion: 1, Hosts: map[string]*fleet.Host{},
		Channels: map[string]fleet.Channel{"stable": {
			RolloutPolicy: "careful", ReconcileIntervalMinutes: 1, FreshnessWindow: 1440, SigningIntervalMinutes: 60,
			Compliance: fleet.Compliance{Frameworks: []string{}, Mode: fleet.ModeDisabled},
		}},
		RolloutPolicies: map[string]fleet.Policy{
			"careful": {Strategy: "canary", Waves: []fleet.PolicyWave{}, OnHealthFailure: fleet.OnFailureHalt}},
		Waves: map[string][]fleet.Wave{
			"stable": {{Hosts: hosts[:1], SoakSeconds: &zero}, {Hosts: hosts[1:], SoakSeconds: &zero}}},
		Edges: []fleet.Edge{}, ChannelEdges: []fleet.ChannelEdge{}, DisruptionBudgets: []fleet.Budget{},
		Meta: fleet.Meta{SchemaVersion: 1, CICommit: &commit},
	}
	e.revocations = &fleet.Revocations{SchemaVersion: 1, Revocations: []fleet.Revocation{},
		Meta: fleet.Meta{SchemaVersion: 1}}
	for _, host := range hosts {
		e.hostKeys[host] = generate(t, pki.AlgorithmEd25519)
		line := pki.FormatHostKey(e.hostKeys[host].Crypto().Public().(ed25519.PublicKey), host)
		closure := closureOf(host, 1)
		e.fleet.Hosts[host] = &fleet.Host{System: "x86_64-linux", Tags: []string{}, Channel: "stable", ClosureHash: &closure,
			Pubkey: &line}
	}
	e.write("trust.json", e.trust())
	e.write("client-ca.pem", append(certPEM(e.ca.Cert), certPEM(e.root.Cert)...))
	e.write("ca.pem", certPEM(e.ca.Cert))
	e.write("ca.key", keyPEM(t, e.caKey))
	e.write("root.pem", certPEM(e.root.Cert))
	server := generate(t, pki.AlgorithmP256)
	cert, err := e.root.IssueServer([]string{"127.0.0.1", "localhost"}, server.Crypto().Public(), now, 12*time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	e.write("server.pem", cert)
	e.write("server.key", keyPEM(t, server))
	e.publish()
	return e
}

func certPEM(c *x509.Certificate) []byte {
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: c.Raw})
}

func keyPEM(t testing.TB, k *pki.PrivateKey) []byte {
	t.Helper()
	text, err := k.MarshalPEM()
	if err != nil {
		t.Fatal(err)
	}
	return text
}

func (e *estate) path(name string) string { return filepath.Join(e.dir, name) }

func (e *estate) write(name string, data []byte) {
	e.t.Helper()
	path := e.path(name)
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		e.t.Fatal(err)
	}
	if err := os.WriteFile(path+".tmp", data, 0o600); err != nil {
		e.t.Fatal(err)
	}
	if err := os.Rename(path+".tmp", path); err != nil {
		e.t.Fatal(err)
	}
}

func (e *estate) trust() []byte {
	e.t.Helper()
	ci, org := e.ci.Public(), e.org.Public()
	doc, err := (&pki.Trust{SchemaVersion: 1, CIReleaseKey: pki.KeySlot{Current: &ci},
		OrgRootKey: &pki.KeySlot{Current: &org}}).Marshal()
	if err != nil {
		e.t.Fatal(err)
	}
	return doc
}

// sign makes the files of a release at e.signed.
func (e *estate) sign() map[string][]byte {
	e.t.Helper()
	files := map[string][]byte{}
	put := func(name string, v any) string {
		doc, err := pki.Marshal(v)
		if err != nil {
			e.t.Fatal(err)
		}
		sig, err := e.ci.Sign(doc)
		if err != nil {
			e.t.Fatal(err)
		}
		files[name], files[name+fleet.SignatureSuffix] = doc, sig
		return pki.HashHex(doc)
	}
	at := pki.At(e.signed)
	members := &fleet.Members{}
	if e.revocations != nil {
		e.revocations.Meta.SignedAt = &at
		hash := put(fleet.RevocationsName, e.revocations)
		members.Revocations = &hash
	}
	if e.nonces != nil {
		e.nonces.Meta.SignedAt = &at
		hash := put(fleet.NoncesName, e.nonces)
		members.BootstrapNonces = &hash
	}
	e.fleet.Meta.SignedAt = &at
	for _, h := range e.fleet.Hosts {
		if h.ClosureHash != nil && !slices.Contains(members.Heads, h.Channel) {
			members.Heads = append(members.Heads, h.Channel)
		}
	}
	slices.Sort(members.Heads)
	if e.unnamedHeads {
		members.Heads = nil
	}
	if e.fleet.Members = members; e.v1 {
		e.fleet.Members = nil
	}
	fleetHash := put(fleet.FleetName, e.fleet)
	for channel := range e.fleet.Channels {
		m, any, err := fleet.Project(e.fleet, fleetHash, channel)
		if err != nil {
			e.t.Fatal(err)
		}
		if !any {
			continue
		}
		id, _, err := fleet.RolloutID(m)
		if err != nil {
			e.t.Fatal(err)
		}
		put(fleet.ManifestName(id), m)
		if e.v1 {
			continue
		}
		head, err := fleet.ProjectHead(e.fleet, m, id, e.heads[channel], 6*time.Minute, 5*time.Minute)
		if err != nil {
			e.t.Fatal(err)
		}
		e.heads[channel] = head
		put(fleet.HeadName(channel), head)
	}
	return files
}

// publish writes a release of the next second, signatures last.
func (e *estate) publish() {
	e.t.Helper()
	e.signed = e.signed.Add(time.Second)
	files := e.sign()
	for _, sig := range []bool{false, true} {
		for name, data := range files {
			if strings.HasSuffix(name, fleet.SignatureSuffix) == sig {
				e.write("releases/"+name, data)
			}
		}
	}
}

// empty takes all files of the release directory away.
func (e *estate) empty() {
	e.t.Helper()
	if err := os.RemoveAll(e.release); err != nil {
		e.t.Fatal(err)
	}
}

// advance declares the n-th system on every host and publishes it.
func (e *estate) advance(n int) {
	e.t.Helper()
	for host, h := range e.fleet.Hosts {
		closure := closureOf(host, n)
		h.ClosureHash = &closure
	}
	e.publish()
}

func (e *estate) rolloutID() string {
	e.t.Helper()
	return e.heads["stable"].RolloutID
}

func (e *estate) config() Config {
	return Config{
		TLSCert: e.path("server.pem"), TLSKey: e.path("server.key"), ClientCA: e.path("client-ca.pem"),
		TrustFile: e.path("trust.json"),
		StateDir:  e.path("state"), DBPath: e.path("state/state.db"), Source: e.release, PollInterval: time.Hour,
		FleetCACert: e.path("ca.pem"), FleetCAKey: e.path("ca.key"), AgentSuffix: testSuffix, Version: "0.0.1 (commit test)",
	}
}

// plane is a control plane that runs in this process.
type plane struct {
	*estate
	url  string
	log  *logBuffer
	stop func()
	done chan error
}

type logBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *logBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *logBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

// serve runs a control plane until the test ends or stop is called.
func (e *estate) serve(change ...func(*Config)) *plane {
	e.t.Helper()
	cfg := e.config()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		e.t.Fatal(err)
	}
	p := &plane{estate: e, url: "https://" + listener.Addr().String(), log: &logBuffer{}, done: make(chan error, 1)}
	cfg.Listener, cfg.Log = listener, zerolog.New(p.log).Level(zerolog.InfoLevel)
	for _, c := range change {
		c(&cfg)
	}
	ctx, cancel := context.WithCancel(context.Background())
	go func() { p.done <- Run(ctx, cfg) }()
	p.stop = sync.OnceFunc(func() {
		cancel()
		select {
		case err := <-p.done:
			if err != nil {
				e.t.Errorf("control plane ended: %v\n%s", err, p.log)
			}
		case <-time.After(20 * time.Second):
			e.t.Error("the control plane did not stop")
		}
		if e.t.Failed() {
			e.t.Logf("log:\n%s", p.log)
		}
	})
	e.t.Cleanup(p.stop)
	web := p.web(nil)
	p.eventually("the control plane answers", func() bool {
		resp, err := web.Get(p.url + "/healthz")
		if err != nil {
			return false
		}
		resp.Body.Close()
		return resp.StatusCode == http.StatusOK
	})
	return p
}

func (p *plane) eventually(what string, ok func() bool) {
	p.t.Helper()
	for deadline := time.Now().Add(10 * time.Second); !ok(); time.Sleep(5 * time.Millisecond) {
		select {
		case err := <-p.done:
			p.t.Fatalf("%s: the control plane ended: %v\n%s", what, err, p.log)
		default:
		}
		if time.Now().After(deadline) {
			p.t.Fatalf("never: %s\n%s", what, p.log)
		}
	}
}

// pair is a client certificate for key by issue.
func pairOf(t testing.TB, text []byte, key *pki.PrivateKey) *tls.Certificate {
	t.Helper()
	pair, err := tls.X509KeyPair(text, keyPEM(t, key))
	if err != nil {
		t.Fatal(err)
	}
	return &pair
}

// agentCert issues a host's certificate the way the control plane would, with
// any name.
func (e *estate) agentCert(host string, notBefore time.Time) *tls.Certificate {
	e.t.Helper()
	return e.certFor(host, e.hostKeys[host], notBefore, 12*time.Hour)
}

func (e *estate) certFor(host string, key *pki.PrivateKey, notBefore time.Time,
	validity time.Duration) *tls.Certificate {
	e.t.Helper()
	text, err := pki.NewCSR(key.Crypto(), host)
	if err != nil {
		e.t.Fatal(err)
	}
	csr, err := pki.ParseCSR(text)
	if err != nil {
		e.t.Fatal(err)
	}
	cert, _, err := e.ca.IssueAgent(csr, host, testSuffix, notBefore, validity)
	if err != nil {
		e.t.Fatal(err)
	}
	return pairOf(e.t, cert, key)
}

func (e *estate) operatorCert(cn string) *tls.Certificate {
	e.t.Helper()
	key := generate(e.t, pki.AlgorithmP256)
	cert, err := e.root.IssueOperator(cn, key.Crypto().Public(), time.Now(), time.Hour)
	if err != nil {
		e.t.Fatal(err)
	}
	return pairOf(e.t, cert, key)
}

// token admits host with its key.
func (e *estate) token(host string, change func(*pki.Claims)) *pki.Token {
	e.t.Helper()
	now := time.Now().Truncate(time.Second)
	claims := pki.Claims{
		Hostname: host, IssuedAt: pki.At(now.Add(-time.Minute)), ExpiresAt: pki.At(now.Add(time.Hour)), Nonce: pki.NewNonce(),
	}
	if key := e.hostKeys[host]; key != nil {
		claims.ExpectedPubkeyFingerprint = fingerprintOf(e.t, key)
	}
	if change != nil {
		change(&claims)
	}
	token, err := pki.MintToken(e.org, claims)
	if err != nil {
		e.t.Fatal(err)
	}
	return token
}

func fingerprintOf(t testing.TB, key *pki.PrivateKey) string {
	t.Helper()
	csr, err := pki.ParseCSR(csrOf(t, key, "x"))
	if err != nil {
		t.Fatal(err)
	}
	return fingerprint(csr)
}

func csrOf(t testing.TB, key *pki.PrivateKey, host string) []byte {
	t.Helper()
	text, err := pki.NewCSR(key.Crypto(), host)
	if err != nil {
		t.Fatal(err)
	}
	return text
}

func (e *estate) enrolment(host string, change func(*pki.Claims)) *protocol.EnrollRequest {
	return &protocol.EnrollRequest{Token: *e.token(host, change), CSRPEM: string(csrOf(e.t, e.hostKeys[host], host))}
}
