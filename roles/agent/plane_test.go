package agent

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/go-json-experiment/json"

	"nixfleet/nixops/fleet"
	"nixfleet/pki"
	"nixfleet/roles/protocol"
)

// pipes is a network inside a bubble.
type pipes struct {
	conns chan net.Conn
	done  chan struct{}
	once  sync.Once
}

func newPipes() *pipes { return &pipes{conns: make(chan net.Conn), done: make(chan struct{})} }

func (p *pipes) Accept() (net.Conn, error) {
	select {
	case c := <-p.conns:
		return c, nil
	case <-p.done:
		return nil, net.ErrClosed
	}
}
func (p *pipes) Close() error   { p.once.Do(func() { close(p.done) }); return nil }
func (p *pipes) Addr() net.Addr { return &net.UnixAddr{Name: "pipes"} }
func (p *pipes) dial(ctx context.Context, _, _ string) (net.Conn, error) {
	client, server := net.Pipe()
	select {
	case p.conns <- server:
		return client, nil
	case <-p.done:
		return nil, errors.New("connection refused")
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

// plane is a control plane that says what a test wants it to say.
type plane struct {
	t       *testing.T
	ci      *pki.PrivateKey
	root    *pki.CA
	issuing *pki.CA
	rootPEM []byte
	trust   []byte
	hostKey *pki.PrivateKey
	org     *pki.PrivateKey
	net     *pipes

	mu       sync.Mutex
	pair     *tls.Certificate
	clients  *x509.CertPool // whose certificates are taken
	head     []byte
	headSig  []byte
	leaf     []byte
	proof    protocol.Proof
	wanted   fleet.HostEntry
	id       string
	away     bool   // answers nothing
	pace     uint32 // seconds between two check-ins, at most
	confirm  int    // status of confirms
	noTarget bool
	holds    bool                  // check-ins, for as long as they ask for
	refuse   func(body []byte) int // status of a request that is refused; 0: it is not
	tamper   func(*protocol.CheckinResponse)
	slow     time.Duration // of every answer to a report
	confirms int
	reports  []protocol.ReportRequest
	lastSeen protocol.CheckinRequest
	peer     *x509.Certificate // of the last check-in
	sizes    []int             // of the check-ins, in bytes
	issued   int               // certificates
	early    int               // check-ins that named the target before any confirm
	v1       *v1Plane          // nil: one of ours
	routes   map[string]http.HandlerFunc
	foreign  [2][]byte // head of channel "beta", which the host is not in, and its signature
}

func newPlane(t *testing.T) *plane {
	t.Helper()
	p := &plane{t: t, net: newPipes(), confirm: http.StatusNoContent, pace: 5}
	must := func(err error) {
		if err != nil {
			t.Fatal(err)
		}
	}
	var err error
	for _, key := range []**pki.PrivateKey{&p.ci, &p.hostKey, &p.org} {
		*key, err = pki.GenerateKey(pki.AlgorithmEd25519)
		must(err)
	}
	p.root, _, err = pki.NewFleetRoot("root", time.Now(), 10000*time.Hour)
	must(err)
	p.issuing, _, err = p.root.NewIssuingCA(testSuffix, time.Now(), 10000*time.Hour)
	must(err)
	p.serve(time.Now())
	p.rootPEM = pemOf(p.root.Cert)
	public, orgPublic := p.ci.Public(), p.org.Public()
	p.trust, err = (&pki.Trust{SchemaVersion: 1, CIReleaseKey: pki.KeySlot{Current: &public},
		OrgRootKey: &pki.KeySlot{Current: &orgPublic}}).Marshal()
	must(err)
	p.believe(p.issuing.Cert)
	server := &http.Server{Handler: p, ErrorLog: log.New(io.Discard, "", 0)}
	go server.Serve(tls.NewListener(p.net, &tls.Config{GetConfigForClient: p.tlsConfig}))
	t.Cleanup(func() { server.Close() })
	p.release(target, time.Now())
	return p
}

// serve takes a certificate that is valid from a time on.
func (p *plane) serve(from time.Time) {
	p.t.Helper()
	key, err := pki.GenerateKey(pki.AlgorithmP256)
	var cert, keyPEM []byte
	if err == nil {
		cert, err = p.root.IssueServer([]string{"cp"}, key.Crypto().Public(), from, 10000*time.Hour)
	}
	if err == nil {
		keyPEM, err = key.MarshalPEM()
	}
	var pair tls.Certificate
	if err == nil {
		pair, err = tls.X509KeyPair(cert, keyPEM)
	}
	if err != nil {
		p.t.Fatal(err)
	}
	p.set(func() { p.pair = &pair })
}

// believe has the control plane take the certificates of these issuing CAs only.
func (p *plane) believe(issuers ...*x509.Certificate) {
	pool := x509.NewCertPool()
	for _, c := range issuers {
		pool.AddCert(c)
	}
	p.set(func() { p.clients = pool })
}

func (p *plane) tlsConfig(*tls.ClientHelloInfo) (*tls.Config, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	return &tls.Config{Certificates: []tls.Certificate{*p.pair}, ClientAuth: tls.VerifyClientCertIfGiven,
		ClientCAs: p.clients}, nil
}

// release signs that the host should run closure.
func (p *plane) release(closure string, at time.Time) {
	p.t.Helper()
	p.mu.Lock()
	defer p.mu.Unlock()
	signed, commit := pki.At(at.Truncate(time.Second)), "c"
	pub := fmt.Sprintf("ssh-ed25519 %s", "x")
	f := &fleet.Fleet{
		SchemaVersion: 1, Meta: fleet.Meta{SchemaVersion: 1, SignedAt: &signed, CICommit: &commit},
		Hosts: map[string]*fleet.Host{testHost: {System: "x", Tags: []string{}, Channel: "stable", ClosureHash: &closure,
			Pubkey: &pub}},
		Channels: map[string]fleet.Channel{"stable": {RolloutPolicy: "p", FreshnessWindow: 120, SigningIntervalMinutes: 60,
			Compliance: fleet.Compliance{Frameworks: []string{}, Mode: fleet.ModeDisabled}}},
		RolloutPolicies: map[string]fleet.Policy{"p": {Strategy: "all-at-once", Waves: []fleet.PolicyWave{},
			OnHealthFailure: fleet.OnFailureRollback}},
		Waves: map[string][]fleet.Wave{"stable": {}},
	}
	m, _, err := fleet.Project(f, strings.Repeat("0", 64), "stable")
	if err != nil {
		p.t.Fatal(err)
	}
	id, _, err := fleet.RolloutID(m)
	if err != nil {
		p.t.Fatal(err)
	}
	head, err := fleet.ProjectHead(f, m, id, nil, 360*time.Second, 300*time.Second)
	if err != nil {
		p.t.Fatal(err)
	}
	p.sign(head)
	if p.v1 != nil {
		p.v1.release(p, m)
	}
	p.id, p.wanted, p.leaf = id, m.HostSet[0], fleet.Leaf(m.HostSet[0])
	p.proof = protocol.Proof{Leaf: p.leaf, Index: 0, Path: []string{}}
}

func (p *plane) sign(head *fleet.Head) {
	var err error
	if p.head, err = pki.Marshal(head); err != nil {
		p.t.Fatal(err)
	}
	if p.headSig, err = p.ci.Sign(p.head); err != nil {
		p.t.Fatal(err)
	}
}

func (p *plane) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	body, _ := io.ReadAll(r.Body)
	p.mu.Lock()
	slow := p.slow
	p.mu.Unlock()
	if strings.HasSuffix(r.URL.Path, "/report") {
		time.Sleep(slow)
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	answer := func(v any) {
		doc, err := pki.Marshal(v)
		if err != nil {
			p.t.Error(err)
		}
		w.Write(doc)
	}
	switch route := p.routes[r.URL.Path]; {
	case route != nil:
		r.Body = io.NopCloser(bytes.NewReader(body))
		route(w, r)
	case p.refuse != nil && p.refuse(body) != 0:
		w.WriteHeader(p.refuse(body))
	case p.away:
		w.WriteHeader(http.StatusBadGateway)
	case r.URL.Path == "/v1/agent/checkin":
		p.lastSeen = protocol.CheckinRequest{}
		if err := json.Unmarshal(body, &p.lastSeen); err != nil {
			p.t.Error(err)
		}
		p.sizes = append(p.sizes, len(body))
		if r.TLS != nil && len(r.TLS.PeerCertificates) > 0 {
			p.peer = r.TLS.PeerCertificates[0]
		}
		if p.lastSeen.CurrentGeneration.ClosureHash == p.wanted.TargetClosure && p.confirms == 0 {
			p.early++
		}
		out := &protocol.CheckinResponse{NextCheckinSecs: p.pace,
			Head: &protocol.HeadRef{Channel: "stable", Hash: pki.HashHex(p.head)}}
		if p.lastSeen.CurrentGeneration.ClosureHash != p.wanted.TargetClosure && !p.noTarget {
			startBy, wave := uint32(300), p.wanted.WaveIndex
			out.Target = &protocol.Target{
				ClosureHash: p.wanted.TargetClosure, ChannelRef: p.id, RolloutID: p.id, WaveIndex: &wave,
				EvaluatedAt: pki.At(time.Now()), SignedAt: pki.At(time.Now()),
				Activate: &protocol.Activate{ConfirmWindowSecs: 1, ConfirmEndpoint: "/elsewhere"}, FreshnessWindowSecs: 7200,
				StartBySecs: &startBy,
			}
		}
		if p.v1 != nil {
			p.v1.answer(p, out)
		}
		if p.tamper != nil {
			p.tamper(out)
		}
		if hold := r.Header.Get("Prefer"); p.holds && hold != "" {
			w.Header().Set("Preference-Applied", hold)
			secs, _ := strconv.Atoi(strings.TrimPrefix(hold, "wait="))
			p.mu.Unlock()
			select {
			case <-time.After(time.Duration(secs) * time.Second):
			case <-r.Context().Done():
			}
			p.mu.Lock()
		}
		answer(out)
	case p.v1 != nil && strings.HasPrefix(r.URL.Path, "/v1/rollouts/"):
		p.v1.serve(w, r)
	case r.URL.Path == "/v1/heads/stable":
		w.Write(p.head)
	case r.URL.Path == "/v1/heads/stable/sig":
		w.Write(p.headSig)
	case r.URL.Path == "/v1/heads/beta" && p.foreign[0] != nil:
		w.Write(p.foreign[0])
	case r.URL.Path == "/v1/heads/beta/sig":
		w.Write(p.foreign[1])
	case r.URL.Path == "/v1/heads/stable/proof/"+testHost:
		answer(p.proof)
	case r.URL.Path == protocol.ConfirmPath:
		p.confirms++
		w.WriteHeader(p.confirm)
	case r.URL.Path == "/v1/agent/report":
		var rep protocol.ReportRequest
		if err := json.Unmarshal(body, &rep); err != nil {
			p.t.Error(err)
		}
		p.reports = append(p.reports, rep)
		answer(protocol.ReportResponse{EventID: "e"})
	default:
		http.NotFound(w, r)
	}
}

func (p *plane) set(change func()) {
	p.mu.Lock()
	defer p.mu.Unlock()
	change()
}

// seen is what the last check-in said.
func (p *plane) seen() protocol.CheckinRequest {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.lastSeen
}

// confirmed counts the confirms.
func (p *plane) confirmed() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.confirms
}

// said is every report so far.
func (p *plane) said() []protocol.ReportRequest {
	p.mu.Lock()
	defer p.mu.Unlock()
	return slices.Clone(p.reports)
}

// reported says whether the host reported an event.
func (p *plane) reported(event string) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, r := range p.reports {
		if r.Event == event {
			return true
		}
	}
	return false
}

func pemOf(c *x509.Certificate) []byte {
	return []byte("-----BEGIN CERTIFICATE-----\n" + base64Lines(c.Raw) + "-----END CERTIFICATE-----\n")
}

func base64Lines(raw []byte) string {
	text := base64.StdEncoding.EncodeToString(raw)
	var b strings.Builder
	for len(text) > 64 {
		b.WriteString(text[:64] + "\n")
		text = text[64:]
	}
	b.WriteString(text + "\n")
	return b.String()
}
