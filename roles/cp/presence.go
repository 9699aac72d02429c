package cp

import (
	"context"
	"net"
	"time"

	"nixfleet/roles/rollout"
)

// leftAfter is how long a host may be without the check-in that it held before it is
// shown as offline: longer than an agent needs to start anew. Decisions wait longer.
const leftAfter = 10 * time.Second

// keepAlive finds out within 75 seconds that a peer is gone without a word, which a
// check-in that is held for five minutes would hide. It costs no request.
var keepAlive = net.KeepAliveConfig{Enable: true, Idle: 30 * time.Second, Interval: 15 * time.Second, Count: 3}

// listenTCP listens for connections that are kept alive.
func listenTCP(ctx context.Context, address string) (net.Listener, error) {
	return (&net.ListenConfig{KeepAliveConfig: keepAlive}).Listen(ctx, "tcp", address)
}

// leave notes that nobody is at the other end of a host's held check-in any more.
func (l *lastSeen) leave(host string, now time.Time) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if s, known := l.byHost[host]; known {
		s.left = now
		l.byHost[host] = s
	}
}

// gone reports whether a host left its held check-in a while ago and has not come back.
// Its caller holds the lock.
func (s *sighting) gone(now time.Time) bool { return !s.left.IsZero() && now.Sub(s.left) >= leftAfter }

// present takes back that hosts are online which have gone.
func (l *lastSeen) present(views []rollout.HostView, now time.Time) []rollout.HostView {
	l.mu.Lock()
	defer l.mu.Unlock()
	for i := range views {
		if s, known := l.byHost[views[i].Host]; known && s.gone(now) {
			views[i].Online = false
		}
	}
	return views
}
