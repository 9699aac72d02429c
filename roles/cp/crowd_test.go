package cp

import (
	"net"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/rs/zerolog"
)

// from is a connection of an address.
type from struct {
	net.Conn
	address string
	closed  atomic.Bool
}

func (f *from) RemoteAddr() net.Addr { return &net.TCPAddr{IP: net.ParseIP(f.address), Port: 1} }
func (f *from) Close() error         { f.closed.Store(true); return nil }

func TestOneAddressDoesNotKeepOthersOut(t *testing.T) {
	const limit = 8
	synctest.Test(t, func(t *testing.T) {
		c := newCrowd(limit)
		enter := func(address string) (*placedConn, *from, bool) {
			raw := &from{address: address}
			conn := &placedConn{Conn: raw}
			return conn, raw, c.enter("key", conn)
		}
		var thief []*from
		for range limit {
			_, raw, ok := enter("192.0.2.1")
			if !ok {
				t.Fatal("no place although there is room")
			}
			thief = append(thief, raw)
		}
		if _, _, ok := enter("192.0.2.1"); ok {
			t.Error("the address that has all places got another one")
		}
		host, raw, ok := enter("198.51.100.7")
		synctest.Wait()
		if !ok || raw.closed.Load() || !thief[0].closed.Load() || thief[1].closed.Load() {
			t.Errorf("the host was let in: %v; the oldest of the thief made room: %v", ok, thief[0].closed.Load())
		}
		// Neither side can push the other out: both end with half of the places.
		for range 2 * limit {
			enter("198.51.100.7")
		}
		for range 2 * limit {
			enter("192.0.2.1")
		}
		synctest.Wait()
		count := map[string]int{}
		for _, conn := range c.byKey["key"] {
			count[sourceOf(conn.RemoteAddr().String())]++
		}
		if len(c.byKey["key"]) != limit || count["198.51.100.7"] < limit/2-1 || count["192.0.2.1"] < limit/2-1 {
			t.Errorf("places %v", count)
		}
		for _, conn := range append([]*placedConn{host}, c.byKey["key"]...) {
			conn.Close()
		}
		for len(c.byKey["key"]) > 0 {
			c.byKey["key"][0].Close()
		}
		if len(c.byKey) != 0 {
			t.Error("a key without connections is remembered")
		}
	})
}

// A crowd of connections that say nothing delays an honest one by seconds, not by the
// time that a handshake may take.
func TestSilentConnectionsMakeRoomSoon(t *testing.T) {
	e := serialEstate(t, "a")
	server, client := e.handshake(t)
	at(t, func(t *testing.T) {
		const places, silent = 256, 1500
		inner := &pipes{make(chan net.Conn, silent+1), make(chan struct{})}
		l := newLimitedListener(inner, server, places, 1, zerolog.Nop(),
			func() {})
		defer l.Close()
		began := time.Now()
		var stalled []net.Conn
		for range silent {
			stalled = append(stalled, inner.dial())
		}
		client, accepted, err := greets(t, l, inner, client)
		if err != nil || time.Since(began) > 5*time.Second {
			t.Errorf("greeted after %s: %v", time.Since(began), err)
		}
		for _, conn := range append(stalled, client, accepted) {
			conn.Close()
		}
	})
}
