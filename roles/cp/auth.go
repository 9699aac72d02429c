package cp

import (
	"context"
	"crypto/ed25519"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"net/http"
	"strconv"
	"sync"
	"time"

	"github.com/rs/zerolog"

	"nixfleet/pki"
	"nixfleet/roles/protocol"
)

// connection remembers whom a connection belongs to, for one set of CAs.
type connection struct {
	state *tls.ConnectionState

	mu         sync.Mutex
	generation uint64
	until      time.Time // the first of the chain's certificates to end
	identity   pki.Identity
	err        error
}

type contextKey int

const (
	connectionKey contextKey = iota
	identityKey
)

func connectionContext(ctx context.Context, c net.Conn) context.Context {
	conn := &connection{}
	if t, ok := c.(*tls.Conn); ok {
		state := t.ConnectionState()
		conn.state = &state
	}
	return context.WithValue(ctx, connectionKey, conn)
}

// caller is who sent the request; only handlers behind authenticate see one.
func caller(r *http.Request) pki.Identity {
	id, _ := r.Context().Value(identityKey).(pki.Identity)
	return id
}

var (
	errNoCertificate = errors.New("no client certificate")
	errRevoked       = errors.New("certificate is revoked")
	errNotDeclared   = errors.New("the fleet does not declare this host with this key")
	errExpired       = errors.New("certificate is not valid at this time")
)

// identify says who is at the other end, by the client CAs in force now. The
// costly verification is made once per connection and set of CAs.
func (s *server) identify(ctx context.Context) (pki.Identity, error) {
	conn, _ := ctx.Value(connectionKey).(*connection)
	if conn == nil || conn.state == nil || len(conn.state.PeerCertificates) == 0 {
		return pki.Identity{}, errNoCertificate
	}
	cas, generation, _ := s.clientCAs.get()
	if cas.pool == nil {
		return pki.Identity{}, errNoCertificate
	}
	conn.mu.Lock()
	defer conn.mu.Unlock()
	if now := time.Now(); conn.generation != generation || now.After(conn.until) {
		conn.identity, conn.until, conn.err = s.verifyChain(conn.state.PeerCertificates, cas.pool, now)
		conn.generation = generation
	}
	return conn.identity, conn.err
}

func (s *server) verifyChain(peer []*x509.Certificate, pool *x509.CertPool, now time.Time) (id pki.Identity, until time.Time, err error) {
	chains, err := pki.VerifyChain(peer, pool, x509.ExtKeyUsageClientAuth, now)
	if err != nil {
		return pki.Identity{}, now, err
	}
	until = chains[0][0].NotAfter
	for _, c := range chains[0] {
		if c.NotAfter.Before(until) {
			until = c.NotAfter
		}
	}
	id, err = s.rules.Identify(chains)
	return id, until, err
}

// authorize is asked on every request, and again when a held one wakes: a
// valid certificate, not revoked, and for a host the key that is declared.
func (s *server) authorize(ctx context.Context) (pki.Identity, error) {
	id, err := s.identify(ctx)
	if err != nil {
		return id, err
	}
	now := time.Now()
	if now.Before(id.NotBefore) || now.After(id.NotAfter) {
		return id, errExpired
	}
	snap := s.snapshot.Load()
	revoked, err := s.revokedSince(ctx, snap, id.Name)
	if err != nil {
		return id, &statusError{http.StatusInternalServerError, err}
	}
	if id.NotBefore.Before(revoked) {
		return id, errRevoked
	}
	if id.Role == pki.RoleAgent {
		key, _ := id.Key.(ed25519.PublicKey)
		if !pki.SameKey(snap.key(id.Name), key) {
			return id, errNotDeclared
		}
	}
	return id, nil
}

// revokedSince is the latest not_before of a host or operator, of the signed list
// and the local rows; zero is none. A host may stand there under the name in its
// certificate too, which is what people read in a log.
func (s *server) revokedSince(ctx context.Context, snap *snapshot, name string) (time.Time, error) {
	since := s.revokedIn(snap.revoked, name)
	if s.store == nil {
		return since, nil
	}
	row, ok, err := s.store.RevokedSince(ctx, name, pki.AgentName(name, s.cfg.AgentSuffix))
	if ok && row.After(since) {
		since = row
	}
	return since, err
}

func (s *server) revokedIn(list map[string]time.Time, name string) time.Time {
	if len(list) == 0 {
		return time.Time{}
	}
	since := list[name]
	if at := list[pki.AgentName(name, s.cfg.AgentSuffix)]; at.After(since) {
		since = at
	}
	return since
}

// statusError is a failure with the status it is answered with.
type statusError struct {
	status int
	err    error
}

func (e *statusError) Error() string { return e.err.Error() }
func (e *statusError) Unwrap() error { return e.err }

// tokenOpens reports whether a path wants a token in place of a certificate.
func (s *server) tokenOpens(path string) bool {
	switch path {
	case "/v1/enroll", "/v1/agent/bootstrap-report":
		return true
	case "/v1/webhook":
		return s.cfg.WebhookTokenFile != ""
	}
	return false
}

// guard runs the checks that every path but /healthz has, in the contract's
// order.
func (s *server) guard(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if conn, _ := r.Context().Value(connectionKey).(*connection); conn == nil || conn.state == nil {
			// One request each: their places are few.
			w.Header().Set("Connection", "close")
		}
		if r.URL.Path == "/healthz" && (r.Method == http.MethodGet || r.Method == http.MethodHead) {
			s.healthz(w, r)
			return
		}
		if s.snapshot.Load() == nil {
			w.Header().Set("Retry-After", "30")
			writeJSON(w, http.StatusServiceUnavailable, notReady{"control plane not ready", "awaiting first signed artifact"})
			return
		}
		if status := s.checkProtocol(r); status != 0 {
			w.WriteHeader(status)
			return
		}
		if !s.tokenOpens(r.URL.Path) {
			if !s.withinRate(w, r) {
				return
			}
			id, err := s.authorize(r.Context())
			if err != nil {
				s.refuse(w, r, id, err)
				return
			}
			r = r.WithContext(context.WithValue(r.Context(), identityKey, id))
		}
		next.ServeHTTP(w, r)
	})
}

type notReady struct {
	Error  string `json:"error"`
	Reason string `json:"reason"`
}

func (s *server) refuse(w http.ResponseWriter, r *http.Request, id pki.Identity, err error) {
	var failed *statusError
	if errors.As(err, &failed) {
		s.log.Error().Err(err).Str("path", r.URL.Path).Msg("request failed")
		w.WriteHeader(failed.status)
		return
	}
	s.metrics.refused.Inc()
	level := zerolog.InfoLevel
	if errors.Is(err, errNoCertificate) {
		level = zerolog.DebugLevel // anybody could fill the disk with it
	}
	s.log.WithLevel(level).Str("caller", id.CommonName).Str("path", r.URL.Path).Str("reason", err.Error()).Msg("request refused")
	writeRefusal(w, r, http.StatusUnauthorized, "unauthorized", err.Error())
}

// checkProtocol is 0, or the status of a wrong or missing protocol header. In
// strict mode only POST must have it, since v1 agents get manifests without.
func (s *server) checkProtocol(r *http.Request) int {
	values := r.Header.Values(protocol.HeaderProtocol)
	if len(values) == 0 {
		if s.cfg.Strict && r.Method == http.MethodPost && r.URL.Path != "/v1/webhook" {
			return http.StatusBadRequest
		}
		return 0
	}
	version, err := strconv.Atoi(values[0])
	if errors.Is(err, strconv.ErrRange) {
		version, err = 0, nil // an integer, of some version to come
	}
	switch {
	case err != nil || len(values) > 1:
		return http.StatusBadRequest
	case version != protocol.Version:
		return http.StatusUpgradeRequired
	}
	return 0
}

// operatorOnly lets operators through, and agents too where reads are open.
func (s *server) operatorOnly(open bool, next http.HandlerFunc) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		if caller(r).Role != pki.RoleOperator && !(open && s.cfg.OpenReads) {
			writeRefusal(w, r, http.StatusForbidden, "operator-only", "only an operator's certificate may do this")
			return
		}
		next(w, r)
	}
}

// ownHost answers 403 unless the caller's certificate is that of the host which
// the body names. It is asked once the body is known to be one: an ill-formed
// body is answered as such, whoever sent it.
func ownHost(w http.ResponseWriter, r *http.Request, named string) bool {
	switch id := caller(r); {
	case id.Role != pki.RoleAgent:
		writeRefusal(w, r, http.StatusForbidden, "agent-only", fmt.Sprintf("%q is no host", id.Name))
	case id.Name != named:
		writeRefusal(w, r, http.StatusForbidden, "not-yours", "the certificate is of another host")
	default:
		return true
	}
	return false
}
