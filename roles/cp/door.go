package cp

import (
	"context"
	"crypto/ed25519"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"net"
	"net/http"
	"sync"
	"time"

	"github.com/rs/zerolog"
	"golang.org/x/time/rate"

	"nixfleet/pki"
	"nixfleet/store"
)

// door says who a caller is, whether he is let in now, and how often.
type door struct {
	cfg      *Config
	log      zerolog.Logger
	rules    pki.IdentityRules
	files    *files
	snapshot *current
	store    store.Database
	metrics  *metrics

	hostRate   *buckets      // requests by the certificate's key
	sourceRate *buckets      // requests that come with a token only, by address
	tokenLimit *rate.Limiter // the same, all together
	limitedLog rate.Sometimes
}

func newDoor(cfg *Config, files *files, snapshot *current, db store.Database, m *metrics) *door {
	return &door{
		cfg: cfg, log: cfg.Log, files: files, snapshot: snapshot, store: db, metrics: m,
		rules:      pki.IdentityRules{Suffix: cfg.AgentSuffix, SingleCA: cfg.SingleCA, LegacyHosts: cfg.LegacyHosts},
		hostRate:   newBuckets(rate.Limit(cfg.MaxRate), hostBurst*cfg.MaxRate),
		sourceRate: newBuckets(rate.Limit(cfg.MaxSourceRate), sourceBurst*cfg.MaxSourceRate),
		tokenLimit: rate.NewLimiter(200, 400),
		limitedLog: rate.Sometimes{Interval: 10 * time.Second},
	}
}

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

// connectionOf is nil for a request without a client certificate's connection.
func connectionOf(ctx context.Context) *connection {
	conn, _ := ctx.Value(connectionKey).(*connection)
	if conn == nil || conn.state == nil {
		return nil
	}
	return conn
}

var (
	errNoCertificate = errors.New("no client certificate")
	errRevoked       = errors.New("certificate is revoked")
	errNotDeclared   = errors.New("the fleet does not declare this host with this key")
	errExpired       = errors.New("certificate is not valid at this time")
)

// identify says who is at the other end, by the client CAs in force now. The
// costly verification is made once per connection and set of CAs.
func (d *door) identify(ctx context.Context) (pki.Identity, error) {
	conn := connectionOf(ctx)
	if conn == nil || len(conn.state.PeerCertificates) == 0 {
		return pki.Identity{}, errNoCertificate
	}
	cas, generation, _ := d.files.clientCAs.get()
	if cas.pool == nil {
		return pki.Identity{}, errNoCertificate
	}
	conn.mu.Lock()
	defer conn.mu.Unlock()
	if now := time.Now(); conn.generation != generation || now.After(conn.until) {
		conn.identity, conn.until, conn.err = d.verifyChain(conn.state.PeerCertificates, cas.pool, now)
		conn.generation = generation
	}
	return conn.identity, conn.err
}

func (d *door) verifyChain(peer []*x509.Certificate, pool *x509.CertPool, now time.Time) (id pki.Identity, until time.Time, err error) {
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
	id, err = d.rules.Identify(chains)
	return id, until, err
}

// errLookup is a caller of whom it cannot be said whether he is revoked.
type errLookup struct{ error }

// authorize is asked on every request, and again when a held one wakes: a
// valid certificate, not revoked, and for a host the key that is declared.
func (d *door) authorize(ctx context.Context) (pki.Identity, error) {
	id, err := d.identify(ctx)
	if err != nil {
		return id, err
	}
	now := time.Now()
	if now.Before(id.NotBefore) || now.After(id.NotAfter) {
		return id, errExpired
	}
	snap := d.snapshot.Load()
	revoked, err := d.revokedSince(ctx, snap, id.Name)
	if err != nil {
		return id, &errLookup{err}
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
func (d *door) revokedSince(ctx context.Context, snap *snapshot, name string) (time.Time, error) {
	since := revokedIn(snap.revoked, name, d.cfg.AgentSuffix)
	row, ok, err := d.store.RevokedSince(ctx, name, pki.AgentName(name, d.cfg.AgentSuffix))
	if ok && row.After(since) {
		since = row
	}
	return since, err
}

// revokedIn is the latest not_before of a name in a list, under its own name or
// the one in an agent's certificate.
func revokedIn(list map[string]time.Time, name, suffix string) time.Time {
	if len(list) == 0 {
		return time.Time{}
	}
	since := list[name]
	if at := list[pki.AgentName(name, suffix)]; at.After(since) {
		since = at
	}
	return since
}

// shut is the answer to a caller who is not let in. The reason goes to the log,
// and to the caller, since it is no secret of ours.
func (d *door) shut(r *http.Request, id pki.Identity, err error) error {
	if failed := (*errLookup)(nil); errors.As(err, &failed) {
		return failed.error
	}
	d.metrics.refused.Inc()
	level := zerolog.InfoLevel
	if errors.Is(err, errNoCertificate) {
		level = zerolog.DebugLevel // anybody could fill the disk with it
	}
	d.log.WithLevel(level).Str("caller", id.CommonName).Str("path", r.URL.Path).Str("reason", err.Error()).Msg("request refused")
	return refused(http.StatusUnauthorized, "unauthorized", "%s", err)
}
