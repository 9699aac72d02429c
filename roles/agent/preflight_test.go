package agent

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"nixfleet/nixops"
	"nixfleet/nixops/fleet"
	"nixfleet/nixops/sim"
	"nixfleet/pki"
	"nixfleet/roles/agent/journal"
	"nixfleet/roles/agent/verify"
	"nixfleet/roles/protocol"
)

// refusals are the reports of a kind, as text.
func (p *plane) refusals(event string) string {
	var out []string
	for _, r := range p.said() {
		if r.Event == event {
			out = append(out, string(r.Details))
		}
	}
	return strings.Join(out, "\n")
}

// What this host lacks is said and reported before anything is changed, blames no
// release, and is tried again for as long as it takes.
func TestPreflightRefusesAndTriesAgain_A5_A13_A14_A20(t *testing.T) {
	for name, c := range map[string]struct {
		harm, mend func(t *testing.T, m *machine)
		want       string
	}{
		"store full A14": {
			func(t *testing.T, m *machine) { m.space(100<<20, 1<<30) },
			func(t *testing.T, m *machine) { m.space(1<<40, 1<<30) }, "no-space: 100 MiB are left in the store",
		},
		"boot full A14": {
			func(t *testing.T, m *machine) { m.space(1<<40, 3<<20) },
			func(t *testing.T, m *machine) { m.space(1<<40, 1<<30) }, "no-space: 3 MiB are left in /boot",
		},
		"store too small for it A14": {
			func(t *testing.T, m *machine) { m.size(1 << 40) },
			func(t *testing.T, m *machine) { m.size(1) }, "no-space: ",
		},
		"state directory nearly full": {
			func(t *testing.T, m *machine) { m.mountState("mode=700,size=8m") },
			func(t *testing.T, m *machine) { m.remountState("size=64m") },
			"no-space: 7 MiB are left in the state directory",
		},
		"state directory full": {
			func(t *testing.T, m *machine) { m.mountState("mode=700,size=200k") },
			func(t *testing.T, m *machine) { m.remountState("size=64m") }, "no-space: reserve: ",
		},
		"lock held A5": {
			func(t *testing.T, m *machine) { m.must(m.sim.HoldLock(true)) },
			func(t *testing.T, m *machine) { m.must(m.sim.HoldLock(false)) }, "lock-held",
		},
		"cache unreachable A20": {
			func(t *testing.T, m *machine) {
				m.must(os.WriteFile(filepath.Join(m.dir, "cache/unreachable"), nil, 0o600))
			},
			func(t *testing.T, m *machine) { m.must(os.Remove(filepath.Join(m.dir, "cache/unreachable"))) }, "realise: ",
		},
		"no root A13": {
			func(t *testing.T, m *machine) { m.broken = "realise" },
			func(t *testing.T, m *machine) { m.broken = "" }, "realise: ",
		},
	} {
		t.Run(name, func(t *testing.T) {
			bubble(t, func(t *testing.T) {
				p := newPlane(t)
				p.pace = 20
				m := newMachine(t, p, good)
				c.harm(t, m)
				host := &ailing{Host: m.sim, m: m}
				stop := m.start(host)
				// Longer than any number of tries that would give up.
				time.Sleep(45 * time.Minute)
				if got := p.refusals(protocol.EventRealiseFailed); !strings.Contains(got, c.want) {
					t.Errorf("reported %s", got)
				}
				if m.where() != all(before) || p.reported(protocol.EventClosureQuarantined) ||
					p.reported(protocol.EventActivationStarted) || host.switched {
					t.Errorf("at %v, reports %v", m.where(), p.said())
				}
				if s := m.local(); !strings.Contains(s.Waiting, c.want) {
					t.Errorf("status says %q", s.Waiting)
				}
				c.mend(t, m)
				p.release(target, time.Now())
				time.Sleep(30 * time.Minute)
				stop()
				if m.where() != all(target) {
					t.Errorf("afterwards: %v, status %+v", m.where(), m.local())
				}
			})
		})
	}
}

// ailing is a machine of which something is broken.
type ailing struct {
	*sim.Host
	m        *machine
	switched bool
}

func (a *ailing) Realise(ctx context.Context, closure string, progress func(string), how ...nixops.Fetch) error {
	if a.m.broken == "realise" {
		return errors.New("root for it: read-only file system")
	}
	return a.Host.Realise(ctx, closure, progress, how...)
}

func (a *ailing) Switch(ctx context.Context, r nixops.SwitchRequest) (nixops.Exit, error) {
	a.switched = true
	return a.Host.Switch(ctx, r)
}

func (m *machine) must(err error) {
	m.t.Helper()
	if err != nil {
		m.t.Fatal(err)
	}
}

func (m *machine) space(store, boot uint64) {
	m.t.Helper()
	m.must(m.sim.SetSpace(nixops.Space{StoreFree: store, BootFree: boot}))
}

// size is how much of the store the target takes.
func (m *machine) size(n uint64) {
	m.t.Helper()
	m.must(sim.WriteClosure(filepath.Join(m.dir, "cache"), target,
		sim.Closure{Agent: "self", TrustJSON: string(m.p.trust), Cache: sim.Cache{Size: n}}))
}

// A refusal of the target's own checks comes before anything of it has run.
func TestTargetsOwnChecksComeFirst(t *testing.T) {
	bubble(t, func(t *testing.T) {
		p := newPlane(t)
		m := newMachine(t, p, with(sim.Closure{Script: sim.Script{CheckExit: 1}}))
		stop := m.start(m.sim)
		time.Sleep(10 * time.Minute)
		stop()
		if p.reported(protocol.EventActivationStarted) ||
			!strings.Contains(p.refusals(protocol.EventActivationFailed), "pre-switch check") {
			t.Errorf("reports %v", p.said())
		}
		if q := journal.Optional[quarantine](journal.Directory(m.path("state")), quarantineFile,
			func(err error) { t.Error(err) }); q == nil || q.Failures == 0 {
			t.Errorf("not quarantined: %+v", q)
		}
	})
}

// A clock that is behind what is known to have passed would date what the host
// confirms; nothing is begun under it.
func TestClockBehindWhatIsKnown_A22(t *testing.T) {
	bubble(t, func(t *testing.T) {
		p := newPlane(t)
		m := newMachine(t, p, good)
		// This host had verified its release before it lost the time.
		later := time.Now().Add(30 * time.Minute)
		p.release(target, later)
		head, err := fleet.ParseHead(p.head)
		m.must(err)
		dir, err := journal.Open(m.path("state"))
		m.must(err)
		m.must(dir.Write(verify.MarkFile, &verify.Mark{SignedAt: *head.Meta.SignedAt, Intent: head.Intent}))
		stop := m.start(m.sim)
		time.Sleep(20 * time.Minute)
		if got := p.refusals(protocol.EventRealiseFailed); !strings.Contains(got, "preflight: clock: ") ||
			m.where() != all(before) {
			t.Errorf("reported %s, at %v", got, m.where())
		}
		time.Sleep(40 * time.Minute)
		stop()
		if m.where() != all(target) || p.reported(protocol.EventClosureQuarantined) {
			t.Errorf("with the clock right again: %v", m.where())
		}
	})
}

// A clock that is set back after the release was verified is this host's trouble,
// whenever that is, and never the release's.
func TestClockThatIsSetBackBlamesNoRelease_A22(t *testing.T) {
	for name, after := range map[string]time.Duration{"as the download begins": 0, "as it ends": 59 * time.Second,
		"after it": 61 * time.Second} {
		t.Run(name, func(t *testing.T) {
			bubble(t, func(t *testing.T) {
				p := newPlane(t)
				m := newMachine(t, p, map[string]sim.Closure{before: {}, target: {},
					another: {Cache: sim.Cache{FetchTime: time.Minute}}})
				var back atomic.Int64 // nanoseconds
				m.adjust = func(c *Config) { c.Clock = func() time.Time { return time.Now().Add(-time.Duration(back.Load())) } }
				stop := m.start(m.sim)
				time.Sleep(30 * time.Minute)
				stop()
				// What this agent knows to have passed is older than its start.
				stop = m.start(m.sim)
				time.Sleep(30 * time.Minute)
				p.release(another, time.Now())
				for rooted := false; !rooted; { // as the download begins
					time.Sleep(time.Second)
					roots, err := m.sim.Roots(context.Background())
					m.must(err)
					_, rooted = roots[another]
				}
				time.Sleep(after)
				back.Store(int64(20 * time.Minute))
				time.Sleep(40 * time.Minute)
				back.Store(0)
				time.Sleep(40 * time.Minute)
				stop()
				if m.where() != all(another) || p.reported(protocol.EventClosureQuarantined) ||
					p.reported(protocol.EventActivationFailed) {
					t.Errorf("at %v, %v", m.where(), p.reports)
				}
			})
		})
	}
}

// A board without a clock of its own starts in the past, where the control plane's
// certificate is not yet valid. What it knows to have passed lets it in.
func TestCertificatesAreValidByWhatIsKnown_A22(t *testing.T) {
	const lost = 100 * 24 * time.Hour
	for name, c := range map[string]struct {
		know func(m *machine)
		in   bool
	}{
		"nothing": {func(*machine) {}, false},
		"a release": {func(m *machine) {
			dir, err := journal.Open(m.path("state"))
			m.must(err)
			m.must(dir.Write(verify.MarkFile, &verify.Mark{SignedAt: pki.At(time.Now().Add(lost)), Intent: "i"}))
		}, true},
		"the source of its system": {func(m *machine) {
			version := "25.11." + time.Now().Add(lost).Format("20060102") + ".4f1c0a9"
			m.must(sim.WriteClosure(filepath.Join(m.dir, "cache"), before,
				sim.Closure{Agent: "self", TrustJSON: string(m.p.trust), Version: version}))
			m.must(m.sim.Install(before))
		}, true},
	} {
		t.Run(name, func(t *testing.T) {
			bubble(t, func(t *testing.T) {
				p := newPlane(t)
				p.noTarget = true
				m := newMachine(t, p, good)
				c.know(m)
				p.serve(time.Now().Add(lost - 48*time.Hour))
				stop := m.start(m.sim)
				time.Sleep(5 * time.Minute)
				stop()
				if (p.seen().Hostname == testHost) != c.in {
					t.Errorf("checked in as %q; status %+v", p.seen().Hostname, m.local())
				}
			})
		})
	}
}

// On a state directory that a reboot empties the agent does not start.
func TestVolatileStateIsRefused_A26(t *testing.T) {
	volatile, _, err := nixops.Volatile("/dev/shm")
	if err != nil || !volatile {
		t.Skip("no tmpfs at /dev/shm")
	}
	dir, err := os.MkdirTemp("/dev/shm", "nixfleet-")
	if err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(dir)
	c := Config{StateDir: filepath.Join(dir, "not", "there", "yet")}
	if err := c.volatileState(); err == nil || !strings.Contains(err.Error(), "tmpfs") {
		t.Errorf("accepted: %v", err)
	}
	c = Config{StateDir: "/", ClientCert: filepath.Join(dir, "agent-cert.pem")}
	if err := c.volatileState(); err == nil || !strings.Contains(err.Error(), "certificate directory") {
		t.Errorf("accepted: %v", err)
	}
	c.AllowVolatile = true
	if err := c.volatileState(); err != nil {
		t.Errorf("although allowed: %v", err)
	}
}
