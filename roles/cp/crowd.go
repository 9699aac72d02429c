package cp

import (
	"crypto/tls"
	"net"
	"net/http"
	"sync"
)

// maxPerKey is how many connections the holder of one key may have at once. A
// host needs two, and an operator's dashboards a few; a host that was broken
// into must not take the file descriptors of all others.
const maxPerKey = 128

// crowd counts connections by the key of their client certificate.
type crowd struct {
	limit int
	mu    sync.Mutex
	byKey map[string]int
	keys  map[net.Conn]string
}

func newCrowd(limit int) *crowd {
	return &crowd{limit: limit, byKey: map[string]int{}, keys: map[net.Conn]string{}}
}

// enter counts a connection that shows a certificate, unless there are too many.
func (c *crowd) enter(conn *tls.Conn) bool {
	key := string(conn.ConnectionState().PeerCertificates[0].RawSubjectPublicKeyInfo)
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.byKey[key] >= c.limit {
		return false
	}
	c.byKey[key]++
	c.keys[conn] = key
	return true
}

// leave forgets a connection that has ended; it is a ConnState of http.Server.
func (c *crowd) leave(conn net.Conn, state http.ConnState) {
	if state != http.StateClosed && state != http.StateHijacked {
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	key, counted := c.keys[conn]
	if !counted {
		return
	}
	delete(c.keys, conn)
	if c.byKey[key]--; c.byKey[key] == 0 {
		delete(c.byKey, key)
	}
}
