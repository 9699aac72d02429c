package cp

import (
	"net"
	"net/http"
	"net/netip"
	"sync"
	"time"

	"golang.org/x/time/rate"

	"nixfleet/pki"
)

const (
	// maxBuckets is how many buckets of a kind are kept. Who comes when all of them
	// are in use has none, and meets only the limits that all have together.
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

func (b *buckets) count() int {
	b.mu.Lock()
	defer b.mu.Unlock()
	return len(b.byKey)
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
	if id, err := d.identify(r.Context()); err == nil && id.Role == pki.RoleOperator {
		return nil
	}
	leaf := conn.state.PeerCertificates[0]
	if d.hostRate.take(string(leaf.RawSubjectPublicKeyInfo), time.Now()) {
		return nil
	}
	return d.tooMany(w, r, "host", leaf.Subject.CommonName, "this host asks too often")
}

// perSource bounds the requests without a certificate of one address.
func (d *door) perSource(c *call) error {
	source := sourceOf(c.RemoteAddr)
	if source == "" || d.sourceRate.take(source, time.Now()) {
		return nil
	}
	return d.tooMany(c.w, c.Request, "source", source, "too many requests without a certificate from this address")
}

// sourceOf is the IPv4 address of a peer or, of an IPv6 address, the /64: whoever
// has one address of that has them all. Empty is no IP address.
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

// tooMany refuses a caller who has no token left; limit names whose ran out. The
// log names one such caller every now and then.
func (d *door) tooMany(w http.ResponseWriter, r *http.Request, limit, caller, text string) error {
	d.metrics.limited.WithLabelValues(limit).Inc()
	d.limitedLog.Do(func() {
		d.log.Warn().Str("limit", limit).Str("caller", caller).Str("path", r.URL.Path).Msg("too many requests")
	})
	w.Header().Set("Retry-After", "10")
	return refused(http.StatusTooManyRequests, "too-many-requests", "%s", text)
}
