package cp

import (
	"context"
	"net"
	"syscall"
	"testing"
	"time"

	"nixfleet/pki"
	"nixfleet/roles/protocol"
	"nixfleet/roles/rollout"
)

// A host whose agent was killed is shown as offline soon, and one whose agent starts anew is not.
func TestAHostThatLeftItsCheckinIsShownSoon(t *testing.T) {
	l, now := newLastSeen(), time.Now()
	online := func(after time.Duration) bool {
		return l.present([]rollout.HostView{{Host: "a", Online: true}}, now.Add(after))[0].Online
	}
	l.leave("a", now) // never seen: nothing to take back
	if !online(time.Hour) {
		t.Error("a host that was not there has left")
	}
	e := newEstate(t, "a")
	req := e.state("a", closureOf("a", 1))
	l.note("a", req, pki.Identity{})
	if !online(time.Hour) {
		t.Error("a host that is there has left")
	}
	l.leave("a", now)
	if !online(leftAfter-time.Second) || online(leftAfter) || leftAfter > 15*time.Second {
		t.Error("a host that left is shown too early or too late")
	}
	l.note("a", req, pki.Identity{})
	if !online(time.Hour) {
		t.Error("a host that came back has left")
	}
}

// The agent's process ends: the held request does, and with it the host's presence.
func TestAKilledAgentLeaves(t *testing.T) {
	e := newEstate(t, "a")
	p := e.serve()
	a := p.agent("a")
	ctx, kill := context.WithCancel(context.Background())
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		// It is killed: that is its error.
		_, _ = a.Checkin(ctx, e.state("a", closureOf("a", 1)), 5*time.Minute)
	}()
	p.eventually("its request is held", p.held("1"))
	kill()
	<-ended
	p.eventually("nothing is held", p.held("0"))
	hosts := func() protocol.HostEntry {
		page, err := p.operator().Hosts(context.Background())
		if err != nil {
			t.Fatal(err)
		}
		return page.Hosts[0]
	}
	if h := hosts(); h.Online == nil || !*h.Online {
		t.Errorf("offline at once: an agent that starts anew would flicker: %+v", h)
	}
}

// A peer that is cut off without a word is found out within 90 seconds.
func TestConnectionsAreKeptAlive(t *testing.T) {
	listener, err := listenTCP(t.Context(), "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer listener.Close()
	dialled, err := net.Dial("tcp", listener.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer dialled.Close()
	conn, err := listener.Accept()
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	raw, err := conn.(*net.TCPConn).SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	option := func(level, name int) (value int) {
		t.Helper()
		var asked error
		if err := raw.Control(func(fd uintptr) { value, asked = syscall.GetsockoptInt(int(fd), level, name) }); err != nil ||
			asked != nil {
			t.Fatal(err, asked)
		}
		return value
	}
	idle := option(syscall.IPPROTO_TCP, syscall.TCP_KEEPIDLE)
	interval, count := option(syscall.IPPROTO_TCP, syscall.TCP_KEEPINTVL), option(syscall.IPPROTO_TCP, syscall.TCP_KEEPCNT)
	if on := option(syscall.SOL_SOCKET, syscall.SO_KEEPALIVE); on == 0 || idle+interval*count > 80 {
		t.Errorf("keepalive %d, found out after %d s and %d times %d s", on, idle, count, interval)
	}
}
