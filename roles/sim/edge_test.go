package sim

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"io"
	stdlog "log"
	"math/rand/v2"
	"net"
	"net/http"
	"strings"
	"sync"
	"time"

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

	serving sync.WaitGroup
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
	go e.server.Serve(tls.NewListener(e.wire,
		&tls.Config{Certificates: []tls.Certificate{pair}, ClientAuth: tls.RequestClientCert}))
	return e
}

func (e *edge) close() {
	e.server.Close()
	e.serving.Wait()
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
	c := &http.Client{Transport: &http.Transport{DialContext: e.w.plane.dial, TLSClientConfig: config,
		DisableCompression: true}}
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
	req.Header, req.Close = r.Header.Clone(), r.Close
	resp, err := e.client(h, leaf).Do(req)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	if resp.StatusCode == http.StatusTooManyRequests {
		e.w.violate("run", "%s asked too often: %s %s was answered 429", h.name, r.Method, r.URL.Path)
	}
	text, err := io.ReadAll(resp.Body)
	return &answer{resp.StatusCode, resp.Header, text}, err
}

func (e *edge) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	e.serving.Add(1)
	defer e.serving.Done()
	h := r.Context().Value(hostKey{}).(*host)
	body, err := io.ReadAll(r.Body)
	if err != nil {
		panic(http.ErrAbortHandler)
	}
	path := r.Method + " " + r.URL.Path
	asked := time.Since(e.w.began)
	chance := stream(e.w.scenario.seed, "network", h.name, path, asked)
	e.w.note("ASKS", h, path)
	h.rest(e.w.ctx, "there "+path)
	f := h.faults(time.Now())
	lossy := f.lossy && chance.IntN(3) == 0
	if f.up || lossy && chance.IntN(3) == 0 {
		panic(http.ErrAbortHandler)
	}
	if lossy && chance.IntN(2) == 0 {
		select {
		case <-e.w.ctx.Done():
		case <-time.After(time.Duration(chance.IntN(20)) * time.Second):
		}
	}
	e.w.says(h, r, body)
	got, err := e.ask(r.Context(), h, r, body)
	if err != nil {
		panic(http.ErrAbortHandler)
	}
	e.w.acknowledged(h, r, body, got)
	if lossy && chance.IntN(2) == 0 && r.Method == http.MethodPost {
		// Said twice, the second time much later or at once.
		// On a connection that nothing else is said on: two that are both in use are another machine's.
		again := r.Clone(context.Background())
		again.Close = true
		wait := time.Duration(chance.IntN(2)*chance.IntN(3600)) * time.Second
		e.w.later(func(ctx context.Context) {
			select {
			case <-ctx.Done():
			case <-time.After(wait):
				// Nobody waits for what comes of it.
				e.w.says(h, again, body)
				_, _ = e.ask(ctx, h, again, body)
			}
		})
	}
	// Two requests of a host may be answered at one moment; they were not asked at one.
	h.rest(e.w.ctx, fmt.Sprint("back ", path, asked))
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

// lie makes the answer of a control plane that was taken over: nonsense, an
// older release in all its parts, or what was signed for another host.
func (e *edge) lie(chance *rand.Rand, h *host, r *http.Request, got *answer) {
	if got.status != http.StatusOK {
		return
	}
	e.w.mu.Lock()
	defer e.w.mu.Unlock()
	h.mu.Lock()
	story := stream(e.w.scenario.seed, "lie", h.name, h.until[lie])
	h.mu.Unlock()
	plot, old, other := story.IntN(3), e.w.forge.releases[story.IntN(len(e.w.forge.releases))], story.IntN(1000)
	if plot == 2 {
		old = e.w.forge.releases[len(e.w.forge.releases)-1]
	}
	below, head := strings.CutPrefix(r.URL.Path, "/v1/heads/")
	channel, rest, _ := strings.Cut(below, "/")
	switch {
	case head && plot == 1 && rest == "":
		got.body = old.files[fleet.HeadName(channel)]
	case head && plot == 1 && rest == "sig":
		got.body = old.files[fleet.HeadName(channel)+fleet.SignatureSuffix]
	case head && plot > 0 && strings.HasPrefix(rest, "proof/"):
		m, at := old.entry(channel, h.name)
		if m == nil {
			return
		}
		if plot == 2 {
			at = other % len(m.HostSet)
		}
		path, err := fleet.HostTree(m).Proof(at)
		if err == nil {
			got.body, err = pki.Marshal(&protocol.Proof{Leaf: fleet.Leaf(m.HostSet[at]), Index: at, Path: path})
		}
		e.w.must(err)
	case r.URL.Path == "/v1/agent/checkin":
		var out protocol.CheckinResponse
		if !decode(got.body, &out) {
			return
		}
		e.forge(chance, h, &out, plot, other, &old)
		doc, err := pki.Marshal(&out)
		e.w.must(err)
		got.body = doc
	default:
		return
	}
	got.header.Del("Content-Length")
}

// forge alters the answer to a check-in. It needs the world's lock.
func (e *edge) forge(chance *rand.Rand, h *host, out *protocol.CheckinResponse, plot, other int, old *signedRelease) {
	wave, startBy := uint32(0), uint32(300)
	target := &protocol.Target{
		ClosureHash: old.wanted[h.name], WaveIndex: &wave, EvaluatedAt: pki.At(time.Now()), SignedAt: pki.At(time.Now()),
		StartBySecs:         &startBy,
		Activate:            &protocol.Activate{ConfirmWindowSecs: 360, ConfirmEndpoint: protocol.ConfirmPath},
		FreshnessWindowSecs: 86400,
	}
	channel := e.w.forge.fleet.Hosts[h.name].Channel
	m, at := old.entry(channel, h.name)
	if m != nil {
		id, _, err := fleet.RolloutID(m)
		e.w.must(err)
		wave, target.RolloutID, target.ChannelRef = m.HostSet[at].WaveIndex, id, id
	}
	switch {
	case plot == 2 && m != nil:
		theirs := m.HostSet[other%len(m.HostSet)]
		target.ClosureHash, wave = theirs.TargetClosure, theirs.WaveIndex
		out.Target = target
	case plot == 1 && m != nil:
		out.Target, out.Head = target,
			&protocol.HeadRef{Channel: channel, Hash: pki.HashHex(old.files[fleet.HeadName(channel)])}
	case plot == 0 && chance.IntN(3) == 0:
		victim := name(chance.IntN(e.w.scenario.hosts))
		target.ClosureHash = old.wanted[victim]
		*target.Activate = protocol.Activate{ConfirmWindowSecs: uint32(chance.IntN(2) * 4000000000),
			ConfirmEndpoint: "/v1/elsewhere"}
		startBy = uint32(chance.IntN(2) * 4000000000)
		out.Target = target
	case plot == 0 && chance.IntN(3) == 0:
		out.Rollback = &protocol.Rollback{Rollout: target.RolloutID, TargetRef: target.ClosureHash, Reason: "because"}
	case plot == 0 && chance.IntN(2) == 0:
		out.NextCheckinSecs = uint32(chance.IntN(2) * 4000000000)
	case plot == 0:
		out.Target, out.Head = nil, nil
	}
}

// entry finds a host in the manifest of a channel; nil when it is not there.
func (r *signedRelease) entry(channel, host string) (*fleet.Manifest, int) {
	if p, ok := r.entries[host]; ok && p.manifest.Channel == channel {
		return p.manifest, p.at
	}
	return nil, 0
}
