package cp

import (
	"slices"
	"sync"
)

// maxPerKey is how many connections the holder of one key may have at once. A
// host needs two, and an operator's dashboards a few; a host that was broken
// into must not take the file descriptors of all others.
const maxPerKey = 128

// crowd bounds the connections of each key. When there are too many, one of the address
// that has the most makes room for one of an address that has fewer: neither the thief
// of a key nor a single address keeps the others out.
type crowd struct {
	limit int
	mu    sync.Mutex
	byKey map[string][]*placedConn // the oldest first
}

func newCrowd(limit int) *crowd { return &crowd{limit: limit, byKey: map[string][]*placedConn{}} }

// enter gives a connection a place, which it gives back when it closes; false when there
// is none for it.
func (c *crowd) enter(key string, conn *placedConn) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	there := c.byKey[key]
	if len(there) >= c.limit {
		out := crowding(there, sourceOf(conn.RemoteAddr().String()))
		if out < 0 {
			return false
		}
		// A TLS connection says goodbye first, which may take its time.
		go there[out].Close()
		there = slices.Delete(there, out, out+1)
	}
	c.byKey[key] = append(there, conn)
	conn.release = sync.OnceFunc(func() { c.leave(key, conn) })
	return true
}

func (c *crowd) leave(key string, conn *placedConn) {
	c.mu.Lock()
	defer c.mu.Unlock()
	there := c.byKey[key]
	if i := slices.Index(there, conn); i >= 0 {
		there = slices.Delete(there, i, i+1)
	}
	if c.byKey[key] = there; len(there) == 0 {
		delete(c.byKey, key)
	}
}

// crowding is the oldest connection of the address that has the most, -1 when the
// newcomer's own address would have no fewer.
func crowding(there []*placedConn, newcomer string) int {
	count, most := map[string]int{}, newcomer
	for _, conn := range there {
		source := sourceOf(conn.RemoteAddr().String())
		if count[source]++; count[source] > count[most] {
			most = source
		}
	}
	if count[most] <= count[newcomer]+1 {
		return -1
	}
	return slices.IndexFunc(there, func(c *placedConn) bool { return sourceOf(c.RemoteAddr().String()) == most })
}
