package cp

import (
	"context"
	"crypto/ed25519"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"net"
	"net/http"
	"net/netip"
	"sync"
	"time"

	"github.com/rs/zerolog"
	"golang.org/x/time/rate"

	"nixfleet/pki"
	"nixfleet/store"
)

// door says who a caller is, whether it is let in now, and how often.
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
	// channelOfRollout finds the channel of a rollout by any of its ids.
	channelOfRollout func(id string) (channel string, known bool)

	operators *shown
}

func newDoor(cfg *Config, files *files, snapshot *current, db store.Database, m *metrics) *door {
	return &door{
		cfg: cfg, log: cfg.Log, files: files, snapshot: snapshot, store: db, metrics: m,
		rules:      pki.IdentityRules{Suffix: cfg.AgentSuffix, SingleCA: cfg.SingleCA, LegacyHosts: cfg.LegacyHosts},
		hostRate:   newBuckets(rate.Limit(cfg.MaxRate), hostBurst*cfg.MaxRate),
		sourceRate: newBuckets(rate.Limit(cfg.MaxSourceRate), sourceBurst*cfg.MaxSourceRate),
		tokenLimit: rate.NewLimiter(200, 400),
		limitedLog: rate.Sometimes{Interval: 10 * time.Second},
		operators:  newShown(),
	}
}

// connection remembers whom a connection belongs to, for one set of CAs.
type connection struct {
	state *tls.ConnectionState

	mu         sync.Mutex
	generation uint64
	until      time.Time // the first of the chain's certificates to end
	identity   pki.Identity
	names      []string // under which the identity may be revoked
	declared   string   // hash of the last fleet that declares the key for the identity
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

// identify says who is at the other end, by the client CAs in force now, and under
// which names the caller may be revoked. The costly verification is made once per
// connection and set of CAs.
func (d *door) identify(ctx context.Context) (id pki.Identity, names []string, err error) {
	conn := connectionOf(ctx)
	if conn == nil || len(conn.state.PeerCertificates) == 0 {
		return pki.Identity{}, nil, errNoCertificate
	}
	cas, generation, _ := d.files.clientCAs.get()
	if cas.pool == nil {
		return pki.Identity{}, nil, errNoCertificate
	}
	conn.mu.Lock()
	defer conn.mu.Unlock()
	if now := time.Now(); conn.generation != generation || now.After(conn.until) {
		conn.identity, conn.until, conn.err = d.verifyChain(conn.state.PeerCertificates, cas.pool, now)
		conn.names, conn.generation = namesOf(conn.identity.Name, d.cfg.AgentSuffix), generation
		conn.declared = ""
	}
	return conn.identity, conn.names, conn.err
}

func (d *door) verifyChain(
	peer []*x509.Certificate, pool *x509.CertPool, now time.Time,
) (id pki.Identity, until time.Time, err error) {
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

// errLookup means that it is not known whether the caller is revoked.
type errLookup struct{ error }

// authorize is asked on every request, and again when a held one wakes: a
// valid certificate, not revoked, and for a host the key that is declared.
func (d *door) authorize(ctx context.Context) (pki.Identity, error) {
	id, names, err := d.identify(ctx)
	if err != nil {
		return id, err
	}
	now := time.Now()
	if now.Before(id.NotBefore) || now.After(id.NotAfter) {
		return id, errExpired
	}
	snap := d.snapshot.Load()
	revoked, err := d.revokedSince(ctx, snap, names)
	if err != nil {
		return id, &errLookup{err}
	}
	if id.NotBefore.Before(revoked) {
		return id, errRevoked
	}
	if id.Role == pki.RoleOperator {
		d.operators.note(id, now)
	}
	if id.Role == pki.RoleAgent && !connectionOf(ctx).declaredBy(snap) {
		return id, errNotDeclared
	}
	return id, nil
}

// declaredBy reports whether a release declares the key of the connection for its host.
// It compares once for each connection and fleet.
func (c *connection) declaredBy(snap *snapshot) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.declared == snap.rel.FleetHash {
		return true
	}
	key, _ := c.identity.Key.(ed25519.PublicKey)
	if !pki.SameKey(snap.key(c.identity.Name), key) {
		return false
	}
	c.declared = snap.rel.FleetHash
	return true
}

// namesOf are the names under which a host or operator may stand in a list of
// revocations: its own, and the one in an agent's certificate, which is what people
// read in a log.
func namesOf(name, suffix string) []string { return []string{name, pki.AgentName(name, suffix)} }

// revokedSince is the latest not_before of a host or operator, by all of its names, in
// the signed list and the local rows; zero when there is none.
func (d *door) revokedSince(ctx context.Context, snap *snapshot, names []string) (time.Time, error) {
	since := revokedIn(snap.revoked, names)
	row, ok, err := d.store.RevokedSince(ctx, names...)
	if ok && row.After(since) {
		since = row
	}
	return since, err
}

// revokedIn is the latest not_before of any of the names in a list.
func revokedIn(list map[string]time.Time, names []string) (since time.Time) {
	for _, name := range names {
		if at := list[name]; at.After(since) {
			since = at
		}
	}
	return since
}

// key is the declared key of a host, nil when there is none.
func (s *snapshot) key(hostname string) ed25519.PublicKey {
	if key, ok := s.keys.Load(hostname); ok {
		return key.(ed25519.PublicKey)
	}
	h := s.rel.Fleet.Hosts[hostname]
	if h == nil || h.Pubkey == nil {
		return nil
	}
	key, err := pki.ParseHostKey(*h.Pubkey)
	if err != nil {
		return nil
	}
	s.keys.Store(hostname, key)
	return key
}

// shut is the answer to a caller that is not let in. The reason goes to the log and
// to the caller: it is not a secret.
func (d *door) shut(r *http.Request, id pki.Identity, err error) error {
	if failed := (*errLookup)(nil); errors.As(err, &failed) {
		return failed.error
	}
	d.metrics.refused.Inc()
	level := zerolog.InfoLevel
	if errors.Is(err, errNoCertificate) {
		level = zerolog.DebugLevel // anybody could fill the disk with it
	}
	d.log.WithLevel(level).Str("caller", id.CommonName).Str("path", r.URL.Path).Str("reason", err.Error()).Func(traced(r)).
		Msg("request refused")
	return refused(http.StatusUnauthorized, "unauthorized", "%s", err)
}

// mayCall refuses callers that a route is not for. Hosts are told apart by the
// handlers, which know whose host a body or a path names.
func (d *door) mayCall(c *call, rt *route) error {
	switch rt.who {
	case tokens:
		if err := d.perSource(c); err != nil {
			return err
		}
		if !d.tokenLimit.Allow() {
			return d.tooMany(c.w, c.Request, "all", c.RemoteAddr, "too many requests without a certificate")
		}
	case forges:
		return d.perSource(c)
	case readers:
		if c.caller.Role != pki.RoleOperator && !d.cfg.OpenReads {
			return errOperatorOnly
		}
	case operators:
		if c.caller.Role != pki.RoleOperator {
			return errOperatorOnly
		}
	}
	if c.caller.Role != pki.RoleOperator {
		return nil
	}
	c.scopes = d.scopesOf(c.caller)
	return d.withinScope(c, rt.pattern)
}

var errOperatorOnly = refused(http.StatusForbidden, "operator-only", "only an operator's certificate may do this")

const (
	// maxBuckets is how many buckets of a kind are kept. A caller that comes when all
	// of them are in use has none, and only the limits that all share apply to it.
	maxBuckets = 1 << 16
	// fewBuckets are kept without a look at which of them are in use.
	fewBuckets = 1024
	// hostBurst and sourceBurst are how many seconds' worth of requests may come at once.
	hostBurst, sourceBurst = 60, 5
)

// buckets are token buckets by key. One that is full again is as good as none and
// is forgotten, so that those who are gone cost no memory.
type buckets struct {
	refill rate.Limit // tokens a second
	size   int        // tokens of a full one

	mu     sync.Mutex
	byKey  map[string]*rate.Limiter
	looked time.Time // for those that are full
}

func newBuckets(refill rate.Limit, size int) *buckets {
	return &buckets{refill: refill, size: size, byKey: map[string]*rate.Limiter{}}
}

// take takes a token from the bucket of key; false is an empty one.
func (b *buckets) take(key string, now time.Time) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	bucket := b.byKey[key]
	if bucket == nil {
		if len(b.byKey) >= fewBuckets && now.Sub(b.looked) >= time.Second {
			b.forget(now)
		}
		if len(b.byKey) >= maxBuckets {
			return true
		}
		bucket = rate.NewLimiter(b.refill, b.size)
		b.byKey[key] = bucket
	}
	return bucket.AllowN(now, 1)
}

// forget is called once a second at most: it looks at all of them.
func (b *buckets) forget(now time.Time) {
	b.looked = now
	for key, bucket := range b.byKey {
		if bucket.TokensAt(now) >= float64(b.size) {
			delete(b.byKey, key)
		}
	}
}

// withinRate bounds the requests of one certificate's key, whether it is accepted
// or not: a host in a tight loop, shut out or not, must take neither the processor
// nor the log from the others. The key counts and not the name: the holder of an
// old certificate of a host uses up nothing of the host's share. Operators have no
// bound; they type, and their dashboards know no 429.
func (d *door) withinRate(w http.ResponseWriter, r *http.Request) error {
	conn := connectionOf(r.Context())
	if conn == nil || len(conn.state.PeerCertificates) == 0 {
		return nil
	}
	if id, _, err := d.identify(r.Context()); err == nil && id.Role == pki.RoleOperator {
		return nil
	}
	leaf := conn.state.PeerCertificates[0]
	if d.hostRate.take(string(leaf.RawSubjectPublicKeyInfo), time.Now()) {
		return nil
	}
	return d.tooMany(w, r, "host", leaf.Subject.CommonName, "this host sends too many requests")
}

// perSource bounds the requests without a certificate of one address.
func (d *door) perSource(c *call) error {
	source := sourceOf(c.RemoteAddr)
	if source == "" || d.sourceRate.take(source, time.Now()) {
		return nil
	}
	return d.tooMany(c.w, c.Request, "source", source, "too many requests without a certificate from this address")
}

// sourceOf is the IPv4 address of a peer or, for an IPv6 address, its /64: the holder
// of one address of that network has them all. It is empty for what is not an IP
// address.
func sourceOf(remote string) string {
	host, _, err := net.SplitHostPort(remote)
	if err != nil {
		return ""
	}
	addr, err := netip.ParseAddr(host)
	if err != nil {
		return ""
	}
	if addr = addr.Unmap(); addr.Is4() {
		return addr.String()
	}
	prefix, err := addr.WithZone("").Prefix(64)
	if err != nil {
		return ""
	}
	return prefix.String()
}

// tooMany refuses a caller over a limit, which limit names. The log names one such
// caller every ten seconds.
func (d *door) tooMany(w http.ResponseWriter, r *http.Request, limit, caller, text string) error {
	d.metrics.limited.WithLabelValues(limit).Inc()
	d.limitedLog.Do(func() {
		d.log.Warn().Str("limit", limit).Str("caller", caller).Str("path", r.URL.Path).Msg("too many requests")
	})
	w.Header().Set("Retry-After", "10")
	return refused(http.StatusTooManyRequests, "too-many-requests", "%s", text)
}
