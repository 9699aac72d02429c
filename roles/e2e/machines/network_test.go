package machines

import (
	"context"
	"fmt"
	"net"
	"os"
	"os/exec"
	"runtime"
	"sync"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

// network is a bridge in a namespace of its own, with the control plane and the cache
// on it, and one namespace for each machine.
type network struct {
	t      testing.TB
	prefix string // of all names that it makes
	hub    string // namespace of the bridge

	mu   sync.Mutex
	next int
}

// hubAddress is where the control plane and the cache are.
const hubAddress = "10.99.0.1"

func newNetwork(t testing.TB) *network {
	t.Helper()
	n := &network{t: t, prefix: fmt.Sprintf("nf%x", os.Getpid()&0xfffff), next: 1}
	n.hub = n.namespace("hub")
	command(t, "ip", "-n", n.hub, "link", "add", "br0", "type", "bridge")
	command(t, "ip", "-n", n.hub, "addr", "add", hubAddress+"/16", "dev", "br0")
	command(t, "ip", "-n", n.hub, "link", "set", "br0", "up")
	return n
}

func (n *network) namespace(name string) string {
	n.t.Helper()
	name = n.prefix + name
	command(n.t, "ip", "netns", "add", name)
	n.t.Cleanup(func() { exec.Command("ip", "netns", "del", name).Run() })
	command(n.t, "ip", "-n", name, "link", "set", "lo", "up")
	return name
}

// wire makes the namespace of a machine, whose eth0 hangs on the bridge.
func (n *network) wire() (namespace, address string) {
	n.t.Helper()
	n.mu.Lock()
	n.next++
	id := n.next
	n.mu.Unlock()
	namespace = n.namespace(fmt.Sprint("m", id))
	port := fmt.Sprint("port", id)
	command(n.t, "ip", "-n", n.hub, "link", "add", port, "type", "veth", "peer", "name", "eth0", "netns", namespace)
	command(n.t, "ip", "-n", n.hub, "link", "set", port, "master", "br0", "up")
	return namespace, fmt.Sprintf("10.99.%d.%d", 1+id/200, 1+id%200)
}

// inside runs work on a thread in the hub's namespace. Sockets made there stay there.
func (n *network) inside(work func() error) error {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	home, err := os.Open(fmt.Sprintf("/proc/self/task/%d/ns/net", syscall.Gettid()))
	if err != nil {
		return err
	}
	defer home.Close()
	there, err := os.Open("/run/netns/" + n.hub)
	if err != nil {
		return err
	}
	defer there.Close()
	if err := unix.Setns(int(there.Fd()), unix.CLONE_NEWNET); err != nil {
		return fmt.Errorf("enter %s: %w", n.hub, err)
	}
	err = work()
	if back := unix.Setns(int(home.Fd()), unix.CLONE_NEWNET); back != nil {
		panic(fmt.Sprintf("cannot leave %s: %v", n.hub, back))
	}
	return err
}

func (n *network) listen(t testing.TB, address string) net.Listener {
	t.Helper()
	var listener net.Listener
	must(t, n.inside(func() (err error) {
		listener, err = net.Listen("tcp", address)
		return err
	}))
	return listener
}

// dial is for clients of the test that talk to the control plane.
func (n *network) dial(ctx context.Context, kind, address string) (conn net.Conn, err error) {
	err = n.inside(func() (err error) {
		conn, err = (&net.Dialer{}).DialContext(ctx, kind, address)
		return err
	})
	return conn, err
}
