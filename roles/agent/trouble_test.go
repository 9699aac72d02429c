package agent

import (
	"context"
	"errors"
	"os"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"nixfleet/nixops"
	"nixfleet/nixops/sim"
	"nixfleet/pki"
	"nixfleet/roles/agent/journal"
	"nixfleet/roles/protocol"
)

// slowDisarm is a machine on which taking a deadline back takes its time, so that the
// agent's check-ins come between an undo and what follows it.
type slowDisarm struct{ nixops.Host }

func (s slowDisarm) DisarmDeadline(ctx context.Context, unit string) error {
	time.Sleep(20 * time.Second)
	return s.Host.DisarmDeadline(ctx, unit)
}

// Between the undo of a switch that wants a reboot and its staging, no check-in
// settles the undo as if it were the end.
func TestCheckinsLeaveAnUndoToItsWorker_A3(t *testing.T) {
	bubble(t, func(t *testing.T) {
		p := newPlane(t)
		m := newMachine(t, p, with(sim.Closure{Script: sim.Script{ExitCode: 100}}))
		stop := m.start(slowDisarm{m.sim})
		time.Sleep(2 * time.Minute)
		stop()
		if m.bootsOnce() != target || !p.reported(protocol.EventActivationDeferred) ||
			p.reported(protocol.EventRollbackTriggered) {
			t.Errorf("boots %q once, reports %v", m.bootsOnce(), p.said())
		}
	})
}

// deaf is a machine whose systemd does not answer some question for a while.
type deaf struct {
	nixops.Host
	to    string
	times *atomic.Int32
}

func (d deaf) answer(question string) error {
	if question == d.to && d.times.Add(-1) >= 0 {
		return errors.New("systemctl: Transport endpoint is not connected")
	}
	return nil
}

func (d deaf) Units(ctx context.Context) ([]nixops.Unit, error) {
	if err := d.answer("units"); err != nil {
		return nil, err
	}
	return d.Host.Units(ctx)
}

func (d deaf) CurrentSystem(ctx context.Context) (string, error) {
	if err := d.answer("current system"); err != nil {
		return "", err
	}
	return d.Host.CurrentSystem(ctx)
}

// Trouble of the host in the middle of an activation is waited out, not left to the
// deadline, which would blame the release.
func TestHostThatDoesNotAnswerForAWhile(t *testing.T) {
	for _, question := range []string{"units", "current system"} {
		t.Run(question, func(t *testing.T) {
			bubble(t, func(t *testing.T) {
				p := newPlane(t)
				m := newMachine(t, p, good)
				left := new(atomic.Int32)
				stop := m.start(deaf{m.sim, question, left})
				for m.where()[0] != target {
					time.Sleep(100 * time.Millisecond)
				}
				left.Store(5)
				time.Sleep(4 * time.Minute)
				stop()
				if m.where() != all(target) || left.Load() >= 0 || p.reported(protocol.EventClosureQuarantined) {
					t.Errorf("at %v, %d questions left, reports %v", m.where(), left.Load(), p.said())
				}
			})
		})
	}
}

// ill is a machine of which one thing does not work for the target.
type ill struct {
	nixops.Host
	what string
}

func (i ill) SetProfile(ctx context.Context, closure string) error {
	if i.what == "profile" && closure == target {
		return errors.New("nix-env: database is locked")
	}
	return i.Host.SetProfile(ctx, closure)
}

func (i ill) Switch(ctx context.Context, r nixops.SwitchRequest) (nixops.Exit, error) {
	if r.Action == nixops.ActionBoot && r.Closure == target {
		switch i.what {
		case "unit":
			return nixops.Exit{}, errors.New("systemd-run: failed to start transient unit")
		case "hang":
			<-ctx.Done()
			return nixops.Exit{}, ctx.Err()
		}
	}
	return i.Host.Switch(ctx, r)
}

// A commit that fails is undone, also one that hangs, and the release is blamed only
// for its own script.
func TestCommitThatFails(t *testing.T) {
	for what, blamed := range map[string]bool{"profile": false, "unit": false, "hang": true} {
		t.Run(what, func(t *testing.T) {
			bubble(t, func(t *testing.T) {
				p := newPlane(t)
				m := newMachine(t, p, good)
				stop := m.start(ill{m.sim, what})
				time.Sleep(10 * time.Minute)
				stop()
				if m.where() != all(before) || !p.reported(protocol.EventRollbackTriggered) ||
					p.reported(protocol.EventClosureQuarantined) != blamed {
					t.Errorf("at %v, reports %v", m.where(), p.said())
				}
				if words := p.refusals(protocol.EventRollbackTriggered); !blamed &&
					!strings.Contains(words, `"reason":"preflight: `) {
					t.Errorf("reported %s", words)
				}
			})
		})
	}
}

// A recall that the agent does not live to see through is gone on with as one: it is
// reported, done once, and no switch by hand.
func TestRecallOutlivesTheAgent_A6(t *testing.T) {
	for at := 1; ; at++ {
		more := true
		synctest.Test(t, func(t *testing.T) {
			p := newPlane(t)
			p.pace = 20
			m := newMachine(t, p, good)
			stop := m.start(m.sim)
			time.Sleep(2 * time.Minute)
			stop()
			p.set(func() {
				p.noTarget = true
				p.tamper = func(r *protocol.CheckinResponse) {
					r.Rollback = &protocol.Rollback{Rollout: p.id, TargetRef: another, Reason: "recall"}
				}
			})
			ctx, cancel := context.WithCancel(context.Background())
			s := &snapshots{Host: m.sim, m: m, stop: cancel, at: at}
			done := make(chan error, 1)
			go func() { done <- Run(ctx, m.config(s)) }()
			time.Sleep(time.Minute)
			cancel()
			<-done
			if more = len(s.calls) >= at; !more {
				return
			}
			stop = m.start(m.sim)
			time.Sleep(15 * time.Minute)
			stop()
			var q quarantine
			m.must(journal.Directory(m.path("state")).Read(quarantineFile, &q))
			_, held := os.Stat(m.path("state/" + journal.HoldFile))
			if m.where() != all(before) || q.Closure != target || q.Failures != 1 || held == nil ||
				!strings.Contains(p.refusals(protocol.EventRollbackTriggered), "recall") {
				t.Errorf("stopped at %d (%s): at %v, %+v, reports %v", at, s.calls[at-1], m.where(), q, p.said())
			}
		})
		if !more {
			if at < 4 {
				t.Errorf("only %d calls", at)
			}
			return
		}
	}
}

// Units are watched for as long as probes are waited for.
func TestUnitsAreWatchedWhileProbesAreWaitedFor_A24(t *testing.T) {
	bubble(t, func(t *testing.T) {
		p := newPlane(t)
		m := newMachine(t, p, with(sim.Closure{
			After: sim.After{LateUnits: []string{"late.service"}, LateAfter: 40 * time.Second, Inactive: []string{"web.service"},
				InactiveFor: 50 * time.Second}}))
		m.checks(`{"units":[{"name":"site","unit":"web.service","intervalSeconds":5,"gracePeriodSeconds":120}]}`)
		m.adjust = func(c *Config) { c.HealthChecks = m.path("checks.json") }
		stop := m.start(m.sim)
		time.Sleep(5 * time.Minute)
		stop()
		if m.where() != all(before) || !strings.Contains(p.refusals(protocol.EventActivationFailed), "late.service") {
			t.Errorf("at %v, reports %v", m.where(), p.said())
		}
	})
}

// Power is lost after the loader was told what to boot once and before that was written
// down as done; what is booted has an agent that does not run.
func TestPowerLostWhileStagingABrokenAgent(t *testing.T) {
	bubble(t, func(t *testing.T) {
		p := newPlane(t)
		m := newMachine(t, p, staged(sim.Closure{After: sim.After{AgentBroken: true}}))
		stop := m.start(m.sim)
		time.Sleep(2 * time.Minute)
		stop()
		dir := journal.Directory(m.path("state"))
		_, err := dir.Advance(time.Now(), []journal.Step{journal.Staged}, journal.Staging, nil)
		m.must(err)
		m.must(m.sim.PowerCycle())
		if m.where()[0] != target {
			t.Fatalf("booted %v", m.where())
		}
		m.must(m.undoer().Guard(context.Background()))
		time.Sleep(15 * time.Minute)
		if m.where() != all(before) {
			t.Errorf("ended at %v", m.where())
		}
	})
}

// A clock that is set in the middle of an activation, as a board without one does when
// it reaches its time server, ends no window early.
func TestClockThatIsSetMeanwhile_A22(t *testing.T) {
	bubble(t, func(t *testing.T) {
		p := newPlane(t)
		m := newMachine(t, p, good)
		a, err := newAgent(m.config(m.sim))
		m.must(err)
		defer a.client.CloseIdle()
		j := anyJournal()
		j.WindowSecs = 400
		ctx := context.Background()
		m.must(m.sim.ArmDeadline(ctx, nixops.Deadline{Unit: j.Units.Deadline, After: time.Hour,
			Command: []string{"/bin/true"}}))
		for _, c := range []struct {
			ago  time.Duration
			used bool
		}{{0, false}, {299 * time.Second, false}, {301 * time.Second, true}, {400 * 24 * time.Hour, false}} {
			j.StartedAt = pki.At(time.Now().Add(-c.ago))
			if got := a.activator.prover.windowUsed(ctx, j); got != c.used {
				t.Errorf("begun %s ago: %v", c.ago, got)
			}
		}
		m.must(m.sim.DisarmDeadline(ctx, j.Units.Deadline))
		if !a.activator.prover.windowUsed(ctx, j) {
			t.Error("without a deadline the window is never used")
		}
	})
}
