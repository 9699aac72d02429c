package sim

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"io"
	stdlog "log"
	"math/rand/v2"
	"net"
	"net/http"
	"strings"
	"sync"
	"time"

	"github.com/go-json-experiment/json"

	"nixfleet/nixops/fleet"
	"nixfleet/pki"
	"nixfleet/roles/protocol"
)

// edge stands between the hosts and the control plane, and has the keys of
// both: it loses, doubles, delays and alters, and sees what is acknowledged.
type edge struct {
	w      *world
	wire   *wire
	server *http.Server

	mu      sync.Mutex
	clients map[string]*http.Client // by host and certificate
}

type hostConn struct {
	net.Conn
	host *host
}

type hostKey struct{}

func newEdge(w *world) *edge {
	e := &edge{w: w, wire: newWire(), clients: map[string]*http.Client{}}
	pair, err := tls.LoadX509KeyPair(w.path("server.pem"), w.path("server.key"))
	w.must(err)
	e.server = &http.Server{
		Handler: e, ErrorLog: stdlog.New(io.Discard, "", 0),
		ConnContext: func(ctx context.Context, c net.Conn) context.Context {
			return context.WithValue(ctx, hostKey{}, c.(*tls.Conn).NetConn().(*hostConn).host)
		},
	}
	go e.server.Serve(tls.NewListener(e.wire, &tls.Config{Certificates: []tls.Certificate{pair}, ClientAuth: tls.RequestClientCert}))
	return e
}

func (e *edge) close() {
	e.server.Close()
	e.mu.Lock()
	defer e.mu.Unlock()
	for _, c := range e.clients {
		c.CloseIdleConnections()
	}
}

// client speaks to the control plane with the certificate that the host showed.
func (e *edge) client(h *host, leaf *x509.Certificate) *http.Client {
	key := h.name
	if leaf != nil {
		key += string(leaf.Raw)
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	if c := e.clients[key]; c != nil {
		return c
	}
	roots := x509.NewCertPool()
	roots.AddCert(e.w.forge.root.Cert)
	config := &tls.Config{RootCAs: roots, ServerName: "cp"}
	if leaf != nil {
		pair := tls.Certificate{Certificate: [][]byte{leaf.Raw}, PrivateKey: h.key.Crypto()}
		config.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return &pair, nil }
	}
	c := &http.Client{Transport: &http.Transport{DialContext: e.w.plane.dial, TLSClientConfig: config, DisableCompression: true}}
	e.clients[key] = c
	return c
}

// answer is what the control plane said.
type answer struct {
	status int
	header http.Header
	body   []byte
}

func (e *edge) ask(ctx context.Context, h *host, r *http.Request, body []byte) (*answer, error) {
	var leaf *x509.Certificate
	if peer := r.TLS.PeerCertificates; len(peer) > 0 {
		leaf = peer[0]
	}
	req, err := http.NewRequestWithContext(ctx, r.Method, "https://cp"+r.RequestURI, bytes.NewReader(body))
	if err != nil {
		return nil, err
	}
	req.Header = r.Header.Clone()
	resp, err := e.client(h, leaf).Do(req)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	return &answer{resp.StatusCode, resp.Header, text}, err
}

func (e *edge) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	h := r.Context().Value(hostKey{}).(*host)
	body, err := io.ReadAll(r.Body)
	if err != nil {
		panic(http.ErrAbortHandler)
	}
	chance := stream(e.w.scenario.seed, "network", h.name, h.requests.Add(1))
	f := h.faults(time.Now())
	lossy := f.lossy && chance.IntN(3) == 0
	if f.up || lossy && chance.IntN(3) == 0 {
		panic(http.ErrAbortHandler)
	}
	if lossy && chance.IntN(2) == 0 {
		time.Sleep(time.Duration(chance.IntN(20)) * time.Second)
	}
	got, err := e.ask(r.Context(), h, r, body)
	if err != nil {
		panic(http.ErrAbortHandler)
	}
	e.w.acknowledged(h, r, body, got)
	if lossy && chance.IntN(2) == 0 && r.Method == http.MethodPost && !strings.HasSuffix(r.URL.Path, "/checkin") {
		// Said twice, the second time much later or at once.
		again := r.Clone(context.Background())
		wait := time.Duration(chance.IntN(2)*chance.IntN(3600)) * time.Second
		e.w.later(func(ctx context.Context) {
			select {
			case <-ctx.Done():
			case <-time.After(wait):
				// Nobody waits for what comes of it.
				_, _ = e.ask(ctx, h, again, body)
			}
		})
	}
	if f = h.faults(time.Now()); f.down || lossy && chance.IntN(3) == 0 || h.cutOff() {
		panic(http.ErrAbortHandler)
	}
	if f.lie {
		e.lie(chance, h, r, got)
	} else {
		e.w.delivered(h, r, got)
	}
	for name, values := range got.header {
		w.Header()[name] = values
	}
	w.WriteHeader(got.status)
	w.Write(got.body)
}

// lie makes the answer of a control plane that was taken over.
func (e *edge) lie(chance *rand.Rand, h *host, r *http.Request, got *answer) {
	if got.status != http.StatusOK || chance.IntN(2) == 0 {
		return
	}
	if rest, ok := strings.CutPrefix(r.URL.Path, "/v1/heads/"); ok {
		// An older head, with its own signature.
		e.w.mu.Lock()
		old := e.w.forge.releases[chance.IntN(len(e.w.forge.releases))]
		e.w.mu.Unlock()
		channel, sig := strings.CutSuffix(rest, "/sig")
		file := fleet.HeadName(channel)
		if sig {
			file += fleet.SignatureSuffix
		}
		if doc, ok := old.files[file]; ok {
			got.body = doc
		}
		return
	}
	if r.URL.Path != "/v1/agent/checkin" {
		return
	}
	var out protocol.CheckinResponse
	if err := json.Unmarshal(got.body, &out); err != nil {
		return
	}
	e.w.mu.Lock()
	defer e.w.mu.Unlock()
	wave, startBy := uint32(chance.IntN(3)), uint32(chance.IntN(2)*4000000000)
	old := e.w.forge.releases[chance.IntN(len(e.w.forge.releases))]
	victim := name(chance.IntN(e.w.scenario.hosts))
	forged := &protocol.Target{
		ClosureHash: old.wanted[victim], WaveIndex: &wave, EvaluatedAt: pki.At(time.Now()), SignedAt: pki.At(time.Now()), StartBySecs: &startBy,
		Activate: &protocol.Activate{ConfirmWindowSecs: uint32(chance.IntN(2) * 4000000000), ConfirmEndpoint: "/v1/elsewhere"}, FreshnessWindowSecs: 4000000000,
	}
	for id := range old.ids {
		forged.RolloutID, forged.ChannelRef = id, id
	}
	switch chance.IntN(4) {
	case 0:
		out.Target = forged
	case 1:
		out.Rollback = &protocol.Rollback{Rollout: forged.RolloutID, TargetRef: forged.ClosureHash, Reason: "because"}
	case 2:
		out.NextCheckinSecs = uint32(chance.IntN(2) * 4000000000)
	case 3:
		out.Target, out.Head = nil, nil
	}
	if doc, err := json.Marshal(&out); err == nil {
		got.body = doc
		got.header.Del("Content-Length")
	}
}
