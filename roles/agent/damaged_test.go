package agent

import (
	"context"
	"fmt"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"nixfleet/nixops"
	"nixfleet/nixops/sim"
	"nixfleet/roles/protocol"
)

// spoiling damages what it fetched, once, after the download or before.
type spoiling struct {
	*sim.Host
	m    *machine
	left atomic.Int32
}

func (s *spoiling) Realise(ctx context.Context, c string, f func(string), how ...nixops.Fetch) error {
	err := s.Host.Realise(ctx, c, f, how...)
	if err == nil && c == target && s.left.Add(-1) >= 0 {
		s.m.must(s.Host.Damage(c))
	}
	return err
}

// A closure whose files were damaged on this host is looked at, fetched again and tried once
// more. No release is blamed (A14).
func TestDamagedStoreIsNotTheReleases(t *testing.T) {
	for name, before := range map[string]bool{"before a power cut": true, "after the download": false} {
		t.Run(name, func(t *testing.T) {
			bubble(t, func(t *testing.T) {
				p := newPlane(t)
				p.pace = 20
				m := newMachine(t, p, good)
				host := &spoiling{Host: m.sim, m: m}
				if before {
					m.must(m.sim.Realise(t.Context(), target, nil))
					m.must(m.sim.Damage(target))
				} else {
					host.left.Store(1)
				}
				stop := m.start(host)
				time.Sleep(30 * time.Minute)
				stop()
				if m.where() != all(target) || p.reported(protocol.EventClosureQuarantined) ||
					p.reported(protocol.EventActivationFailed) {
					t.Errorf("at %v, reports %v", m.where(), p.said())
				}
				if said := p.refusals(protocol.EventRollbackTriggered); !before && !strings.Contains(said, "fetched again") {
					t.Errorf("it says %s", said)
				}
			})
		})
	}
}

// cutting cuts downloads off in their middle, or before anything has come.
type cutting struct {
	*sim.Host
	left atomic.Int32
	says string
}

func (c *cutting) Realise(ctx context.Context, name string, f func(string), how ...nixops.Fetch) error {
	if name == target && c.left.Add(-1) >= 0 {
		f(c.says)
		return fmt.Errorf("%w: unexpected end-of-file", nixops.ErrUnreachable)
	}
	return c.Host.Realise(ctx, name, f, how...)
}

// A download that is cut off is taken up again by the agent itself, which says what it waits
// for; only one that is cut off again and again is put off.
func TestDownloadIsTakenUpAgain(t *testing.T) {
	for cuts, reported := range map[int32]bool{3: false, fetchTries: true} {
		synctest.Test(t, func(t *testing.T) {
			p := newPlane(t)
			m := newMachine(t, p, good)
			host := &cutting{Host: m.sim, says: "copying path 1 of 2"}
			host.left.Store(cuts)
			stop := m.start(host)
			m.until(func() bool { return host.left.Load() < cuts })
			m.until(func() bool { return strings.Contains(m.local().Waiting, "taken up again in 20s") })
			time.Sleep(20 * time.Minute)
			stop()
			if m.where() != all(target) || p.reported(protocol.EventRealiseFailed) != reported {
				t.Errorf("%d cuts: at %v, reports %v", cuts, m.where(), p.said())
			}
		})
	}
}

// A cache that is away is reported at once: the agent does not try by itself first.
func TestCacheThatIsAwayIsReportedAtOnce(t *testing.T) {
	bubble(t, func(t *testing.T) {
		p := newPlane(t)
		m := newMachine(t, p, good)
		host := &cutting{Host: m.sim, says: "warning: error: unable to download"}
		host.left.Store(1)
		stop := m.start(host)
		m.until(func() bool { return host.left.Load() < 1 })
		time.Sleep(8 * time.Second)
		stop()
		if !p.reported(protocol.EventRealiseFailed) {
			t.Errorf("reports %v", p.said())
		}
	})
}
