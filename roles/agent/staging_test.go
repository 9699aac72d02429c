package agent

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"nixfleet/nixops"
	"nixfleet/nixops/sim"
	"nixfleet/pki"
	"nixfleet/roles/agent/journal"
	"nixfleet/roles/command"
	"nixfleet/roles/protocol"
)

// staged is a target that cannot be switched to live.
func staged(c sim.Closure) map[string]sim.Closure {
	c.DBus = "broker"
	return with(c)
}

func onPolicy(policy string) func(*Config) {
	return func(c *Config) { c.RebootPolicy = policy }
}

func (m *machine) bootsOnce() string {
	m.t.Helper()
	closure, err := m.sim.BootOnce(context.Background())
	if err != nil {
		m.t.Error(err)
	}
	return closure
}

func TestDeferredUpdateWaitsForTheBoot_A17_A18(t *testing.T) {
	bubble(t, func(t *testing.T) {
		p := newPlane(t)
		p.pace = 20
		m := newMachine(t, p, staged(sim.Closure{}))
		stop := m.live(m.sim)
		time.Sleep(2 * time.Hour)
		if m.where() != all(before) || m.bootsOnce() != target || !p.reported(protocol.EventActivationDeferred) ||
			p.confirmed() != 0 {
			t.Errorf("staged: %v, boots %q once, %d confirms, reports %v", m.where(), m.bootsOnce(), p.confirmed(), p.said())
		}
		if s := m.local(); !strings.Contains(s.RebootPending, "dbus") || strings.Contains(s.RebootPending, noFallback) {
			t.Errorf("status says %q", s.RebootPending)
		}
		if out := m.types("status"); !strings.Contains(out, "boots once") ||
			!strings.Contains(out, "somebody has to reboot") {
			t.Errorf("status prints %s", out)
		}
		if p.seen().RebootPending == nil || *p.seen().RebootPending != "dbus" || p.seen().PendingGeneration == nil {
			t.Errorf("check-in says %+v", p.seen())
		}
		if err := m.sim.PowerCycle(); err != nil {
			t.Fatal(err)
		}
		time.Sleep(5 * time.Minute)
		stop()
		if m.where() != all(target) || p.confirmed() != 1 {
			t.Errorf("after the boot: %v, %d confirms", m.where(), p.confirmed())
		}
	})
}

// A release that adds a member to switch-inhibitors, or writes them in another order, is
// switched live; one that changes a member waits for a boot.
func TestSwitchInhibitors_A33(t *testing.T) {
	for name, c := range map[string]struct{ from, to, runs string }{
		"gains the file": {``, `{"systemd":"259"}`, target},
		"gains a member": {`{"systemd":"259"}`, `{"dbus-implementation":"dbus", "systemd":"259"}`, target},
		"a member moves": {`{"systemd":"259"}`, `{"systemd":"260"}`, before},
	} {
		t.Run(name, func(t *testing.T) {
			bubble(t, func(t *testing.T) {
				p := newPlane(t)
				m := newMachine(t, p, map[string]sim.Closure{before: {SwitchInhibitor: c.from}, target: {SwitchInhibitor: c.to}})
				stop := m.start(m.sim)
				time.Sleep(5 * time.Minute)
				stop()
				if m.where() != all(c.runs) || p.reported(protocol.EventActivationDeferred) != (c.runs == before) {
					t.Errorf("at %v, reports %v", m.where(), p.said())
				}
			})
		})
	}
}

// A release that wants what is staged already gets its report, and its confirm
// after the boot.
func TestStagedForOneReleaseServesTheNext_C18(t *testing.T) {
	bubble(t, func(t *testing.T) {
		p := newPlane(t)
		m := newMachine(t, p, staged(sim.Closure{}))
		stop := m.live(m.sim)
		time.Sleep(10 * time.Minute)
		first := p.id
		p.release(target, time.Now())
		time.Sleep(10 * time.Minute)
		told := map[string]int{}
		for _, r := range p.said() {
			if r.Event == protocol.EventActivationDeferred {
				told[*r.Rollout]++
			}
		}
		if told[first] == 0 || told[p.id] == 0 || told[first]+told[p.id] > 25 || first == p.id {
			t.Errorf("reported as deferred: %v", told)
		}
		if err := m.sim.PowerCycle(); err != nil {
			t.Fatal(err)
		}
		time.Sleep(5 * time.Minute)
		stop()
		j := journal.Optional[journal.Journal](journal.Directory(m.path("state")), committedFile,
			func(err error) { t.Error(err) })
		if m.where() != all(target) || p.confirmed() != 1 || j == nil || j.ChannelRef != p.id {
			t.Errorf("at %v, confirmed %+v", m.where(), j)
		}
	})
}

// Until the booted target is proven, a power cycle is a rollback.
func TestPowerCutWhileTheBootedTargetIsProven_A11(t *testing.T) {
	bubble(t, func(t *testing.T) {
		p := newPlane(t)
		m := newMachine(t, p, staged(sim.Closure{}))
		stop := m.live(m.sim)
		time.Sleep(2 * time.Minute)
		p.set(func() { p.away = true })
		for _, want := range []string{target, before} {
			if err := m.sim.PowerCycle(); err != nil {
				t.Fatal(err)
			}
			time.Sleep(30 * time.Second)
			if m.where()[0] != want {
				t.Errorf("runs %s, want %s", m.where()[0], want)
			}
		}
		time.Sleep(10 * time.Minute)
		stop()
		if m.where() != all(before) {
			t.Errorf("ended at %v", m.where())
		}
	})
}

// A loader that cannot fall back is left to people, whatever the policy says.
func TestNothingRebootsWithoutAFallback(t *testing.T) {
	bubble(t, func(t *testing.T) {
		p := newPlane(t)
		p.pace = 20
		m := newMachine(t, p, staged(sim.Closure{}))
		m.adjust = onPolicy("immediate")
		if err := m.sim.SetLoader("grub"); err != nil {
			t.Fatal(err)
		}
		stop := m.live(m.sim)
		boot := m.boot()
		time.Sleep(2 * time.Hour)
		if got := m.where(); got != [3]string{before, target, target} || m.boot() != boot {
			t.Errorf("staged: %v, boot %s", got, m.boot())
		}
		if s := m.local(); !strings.Contains(s.RebootPending, noFallback) {
			t.Errorf("status says %q", s.RebootPending)
		}
		if err := m.sim.PowerCycle(); err != nil {
			t.Fatal(err)
		}
		time.Sleep(5 * time.Minute)
		stop()
		if m.where() != all(target) || p.confirmed() != 1 {
			t.Errorf("after the boot: %v, %d confirms", m.where(), p.confirmed())
		}
	})
}

func TestRebootAtOnce(t *testing.T) {
	bubble(t, func(t *testing.T) {
		p := newPlane(t)
		m := newMachine(t, p, staged(sim.Closure{}))
		m.adjust = onPolicy("immediate")
		stop := m.live(m.sim)
		boot := m.boot()
		time.Sleep(10 * time.Minute)
		stop()
		if m.where() != all(target) || p.confirmed() != 1 || m.boot() == boot {
			t.Errorf("ended at %v after %d confirms", m.where(), p.confirmed())
		}
		// The control plane knows that this host is away for a moment.
		for _, r := range p.said() {
			if r.Event == protocol.EventActivationDeferred && !strings.Contains(string(r.Details), `"reboots":"immediate"`) {
				t.Errorf("report %s", r.Details)
			}
		}
		if roots, err := m.sim.Roots(context.Background()); err != nil || roots["staged"] != "" ||
			roots["current"] != target || roots["previous"] != before {
			t.Errorf("roots %v, %v", roots, err)
		}
	})
}

// Kernel changes are switched live and wait for a boot; a host that lists them
// has them staged instead.
func TestKernelIsSwitchedLiveUnlessTheHostDefersIt(t *testing.T) {
	for _, deferred := range []bool{false, true} {
		synctest.Test(t, func(t *testing.T) {
			p := newPlane(t)
			p.pace = 20
			m := newMachine(t, p, with(sim.Closure{Kernel: "6.13"}))
			m.adjust = func(c *Config) {
				c.RebootPolicy = "immediate"
				if deferred {
					c.DeferOn = []string{"kernel"}
				}
			}
			stop := m.live(m.sim)
			boot := m.boot()
			time.Sleep(time.Hour)
			stop()
			if m.where() != all(target) || p.confirmed() != 1 || (m.boot() != boot) != deferred {
				t.Errorf("deferred %v: ended at %v, rebooted %v", deferred, m.where(), m.boot() != boot)
			}
			if pending := p.seen().RebootPending; (pending == nil) != deferred {
				t.Errorf("deferred %v: reboot pending %v", deferred, pending)
			}
		})
	}
}

func TestRebootInItsWindow(t *testing.T) {
	bubble(t, func(t *testing.T) {
		p := newPlane(t)
		p.pace = 20
		m := newMachine(t, p, staged(sim.Closure{}))
		m.adjust = onPolicy("window:Sat 01:30")
		stop := m.live(m.sim)
		boot := m.boot()
		// Bubbles begin at midnight of a Saturday.
		time.Sleep(89 * time.Minute)
		if m.boot() != boot || m.bootsOnce() != target {
			t.Error("rebooted before its window")
		}
		if s := m.local(); !strings.Contains(s.Waiting, "2000-01-01T01:30:00Z") {
			t.Errorf("status says %q", s.Waiting)
		}
		// An agent that comes back within the window has not missed it.
		stop()
		time.Sleep(20 * time.Minute)
		p.release(target, time.Now())
		stop = m.live(m.sim)
		time.Sleep(10 * time.Minute)
		stop()
		if m.where() != all(target) || m.boot() == boot || p.confirmed() != 1 {
			t.Errorf("after the window: %v, %d confirms", m.where(), p.confirmed())
		}
	})
}

func TestHeldHostDoesNotReboot(t *testing.T) {
	bubble(t, func(t *testing.T) {
		p := newPlane(t)
		p.pace = 20
		m := newMachine(t, p, staged(sim.Closure{}))
		m.adjust = onPolicy("window:01:00")
		stop := m.live(m.sim)
		boot := m.boot()
		time.Sleep(30 * time.Minute)
		stop()
		if err := journal.Directory(m.path("state")).Write(journal.HoldFile,
			holdState{Kind: "paused", At: pki.At(time.Now())}); err != nil {
			t.Fatal(err)
		}
		stop = m.live(m.sim)
		time.Sleep(2 * time.Hour)
		stop()
		if m.boot() != boot {
			t.Error("a paused host rebooted")
		}
	})
}

// Whatever is wrong with what was booted, the host ends where it was, and does
// not boot the same again.
func TestBadStagedReleasesAreLeft(t *testing.T) {
	for name, bad := range map[string]sim.Closure{
		"does not come up":  {NoBoot: true},
		"a unit fails":      {After: sim.After{FailedUnits: []string{"web.service"}}},
		"its agent is dead": {After: sim.After{AgentBroken: true}},
		"its own installer": {Script: sim.Script{BootExit: 1}},
	} {
		for _, policy := range []string{"never", "immediate"} {
			t.Run(name+" "+policy, func(t *testing.T) {
				bubble(t, func(t *testing.T) {
					p := newPlane(t)
					p.pace = 20
					m := newMachine(t, p, staged(bad))
					m.adjust = onPolicy(policy)
					stop := m.live(m.sim)
					time.Sleep(5 * time.Minute)
					if policy == "never" {
						p.set(func() { p.noTarget = true }) // it would be tried once more
						if err := m.sim.PowerCycle(); err != nil {
							t.Fatal(err)
						}
					}
					time.Sleep(30 * time.Minute)
					if policy == "never" && bad.After.AgentBroken {
						// Undone by its deadline and without a boot, so that nobody has told the agent.
						stop()
						stop = m.live(m.sim)
						time.Sleep(time.Minute)
					}
					boot := m.boot()
					time.Sleep(20 * time.Minute)
					stop()
					booted, err := m.sim.BootedSystem(context.Background())
					if m.where() != all(before) || m.bootsOnce() != "" || m.boot() != boot || err != nil {
						t.Errorf("ended at %v, boots %q once, boot %s then %s", m.where(), m.bootsOnce(), boot, m.boot())
					}
					if policy == "immediate" && booted != before {
						t.Errorf("booted is %s", booted)
					}
					if !p.reported(protocol.EventClosureQuarantined) || p.confirmed() != 0 {
						t.Errorf("reports %v, %d confirms", p.said(), p.confirmed())
					}
				})
			})
		}
	}
}

func TestHeldLockDefersStaging_A5(t *testing.T) {
	bubble(t, func(t *testing.T) {
		p := newPlane(t)
		p.pace = 20
		m := newMachine(t, p, staged(sim.Closure{}))
		s := &lockedBoot{Host: m.sim}
		stop := m.live(s)
		time.Sleep(30 * time.Minute)
		stop()
		if m.bootsOnce() != target || p.reported(protocol.EventClosureQuarantined) || s.left != 0 {
			t.Errorf("boots %q once, reports %v", m.bootsOnce(), p.said())
		}
	})
}

// lockedBoot finds the lock held at its first two boots.
type lockedBoot struct {
	nixops.Host
	tries, left int
}

func (l *lockedBoot) Switch(ctx context.Context, r nixops.SwitchRequest) (nixops.Exit, error) {
	if l.tries++; r.Action == nixops.ActionBoot && l.tries <= 2 {
		return nixops.Exit{Code: 11}, fmt.Errorf("boot: %w", nixops.ErrLockHeld)
	}
	return l.Host.Switch(ctx, r)
}

// Killed at any moment of staging, rebooting and proving, with or without a power
// cut, the host ends at the proven target or at exactly what it had.
func TestKilledWhileStaging(t *testing.T) {
	bubble(t, func(t *testing.T) {
		p := newPlane(t)
		m := newMachine(t, p, staged(sim.Closure{}))
		m.adjust = onPolicy("immediate")
		s := &snapshots{Host: m.sim, m: m}
		stop := m.live(s)
		time.Sleep(10 * time.Minute)
		stop()
		if m.where() != all(target) || len(s.taken) < 12 {
			t.Fatalf("the uninterrupted run ended at %v after %v", m.where(), s.calls)
		}
		for i, dir := range s.taken {
			for _, power := range []bool{false, true} {
				k := &machine{t: t, dir: filepath.Join(dir, fmt.Sprint("run-", power)), p: p, adjust: m.adjust}
				for to, from := range map[string]string{"host": filepath.Join(dir, "host"),
					"cache": filepath.Join(m.dir, "cache")} {
					if err := os.CopyFS(filepath.Join(k.dir, to), os.DirFS(from)); err != nil {
						t.Fatal(err)
					}
				}
				p.release(target, time.Now())
				k.open()
				if power {
					if err := k.sim.PowerCycle(); err != nil {
						t.Fatal(err)
					}
					if err := k.undoer().Guard(context.Background()); err != nil {
						t.Errorf("guard after a cut at %d (%s): %v", i, s.calls[i], err)
					}
				}
				stop := k.live(k.sim)
				time.Sleep(30 * time.Minute)
				stop()
				if got := k.where(); got != all(target) && got != all(before) {
					t.Errorf("killed at %d (%s), power cut %v: ended at %v", i, s.calls[i], power, got)
				}
				if j, err := journal.Directory(k.path("state")).Journal(); j != nil || err != nil {
					t.Errorf("killed at %d (%s), power cut %v: journal %+v, %v", i, s.calls[i], power, j, err)
				}
			}
		}
	})
}

func TestRebootPolicies(t *testing.T) {
	for text, want := range map[string]rebootPolicy{
		"": {mode: rebootNever}, "never": {mode: rebootNever}, "immediate": {mode: rebootImmediate},
		"window:Sun 03:00": {rebootWindow, "Sun 03:00"}, "window: *-*-* 03:00:00 ": {rebootWindow, "*-*-* 03:00:00"},
	} {
		if got, err := parseRebootPolicy(text); err != nil || got != want {
			t.Errorf("%q: %+v, %v", text, got, err)
		}
	}
	for _, text := range []string{"always", "window", "window: ", "never:03:00", "immediate:", "Never"} {
		if got, err := parseRebootPolicy(text); err == nil {
			t.Errorf("%q: %+v", text, got)
		}
	}
}

// A window that nobody can read is refused when the agent starts: the release
// that brings it does not prove itself.
func TestUnreadableWindowIsRefused(t *testing.T) {
	bubble(t, func(t *testing.T) {
		m := newMachine(t, newPlane(t), good)
		m.adjust = onPolicy("window:when the moon is full")
		err := Run(context.Background(), m.config(m.sim))
		if hint := (*command.Error)(nil); !errors.Is(err, nixops.ErrCalendar) || !errors.As(err, &hint) {
			t.Errorf("started: %v", err)
		}
	})
}

// A simulated machine reboots as a whole: its agent ends and another starts.
func TestSimulatedMachineReboots(t *testing.T) {
	bubble(t, func(t *testing.T) {
		p := newPlane(t)
		m := newMachine(t, p, staged(sim.Closure{}))
		m.adjust = onPolicy("immediate")
		ctx, cancel := context.WithCancel(context.Background())
		ended := make(chan error, 1)
		go func() { ended <- runSimulated(ctx, m.config(m.sim), m.sim) }()
		time.Sleep(10 * time.Minute)
		cancel()
		if err := <-ended; err != nil || m.where() != all(target) || p.confirmed() != 1 {
			t.Errorf("ended with %v at %v after %d confirms", err, m.where(), p.confirmed())
		}
	})
}

func TestCheckConfigReadsTheWindow(t *testing.T) {
	m := newMachine(t, newPlane(t), good)
	defer m.p.net.Close()
	for policy, good := range map[string]bool{"window:Sun 03:00": true, "window:whenever": false, "window:": false,
		"sometimes": false} {
		out, err := m.root("run", "--check-config", "--control-plane-url", "https://cp", "--machine-id", testHost,
			"--trust-file", m.path("trust.json"), "--client-key", m.path("key"), "--reboot-policy", policy)
		if (err == nil) != good {
			t.Errorf("%s: %q, %v", policy, out, err)
		}
	}
}

func TestCheckConfigRefusesAPollIntervalThatWrapsAround(t *testing.T) {
	m := newMachine(t, newPlane(t), good)
	defer m.p.net.Close()
	for secs, good := range map[string]bool{"1": true, "31622400": true, "31622401": false, "18446744134": false,
		"-1": false, "-18446744013": false} {
		out, err := m.root("run", "--check-config", "--control-plane-url", "https://cp", "--machine-id", testHost,
			"--trust-file", m.path("trust.json"), "--client-key", m.path("key"), "--poll-interval", secs)
		if (err == nil) != good {
			t.Errorf("%s: %q, %v", secs, out, err)
		}
	}
}
