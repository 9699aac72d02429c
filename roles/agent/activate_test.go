package agent

import (
	"context"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"nixfleet/nixops"
	"nixfleet/nixops/fleet"
	"nixfleet/nixops/sim"
	"nixfleet/pki"
	"nixfleet/roles/agent/journal"
	"nixfleet/roles/protocol"
)

func TestGoodReleaseIsProvenAndConfirmed(t *testing.T) {
	bubble(t, func(t *testing.T) {
		p := newPlane(t)
		m := newMachine(t, p, good)
		stop := m.start(m.sim)
		time.Sleep(2 * time.Minute)
		stop()
		if m.where() != all(target) || p.confirmed() != 1 {
			t.Errorf("at %v after %d confirms", m.where(), p.confirmed())
		}
		if j, err := journal.Directory(m.path("state")).Journal(); j != nil || err != nil {
			t.Errorf("journal left: %+v %v", j, err)
		}
		if p.seen().AttestationSignature == nil || p.seen().Phase.Name != protocol.PhaseIdle {
			t.Errorf("last check-in: %+v", p.seen())
		}
	})
}

// A clock that is behind would make the attested soak look longer than it was:
// the control plane's own time of the confirm counts where it is later.
func TestAttestedTimeOfASlowClock(t *testing.T) {
	for _, behind := range []time.Duration{0, 50 * time.Second, -50 * time.Second} {
		synctest.Test(t, func(t *testing.T) {
			p := newPlane(t)
			m := newMachine(t, p, good)
			m.adjust = func(c *Config) { c.Clock = func() time.Time { return time.Now().Add(-behind) } }
			stop := m.start(m.sim)
			const look = 100 * time.Millisecond
			for range 2000 {
				if p.confirmed() > 0 {
					break
				}
				time.Sleep(look)
			}
			confirmed := time.Now()
			time.Sleep(2 * time.Minute)
			stop()
			at := p.seen().LastConfirmedAt
			if at == nil || p.seen().AttestationSignature == nil {
				t.Fatalf("a clock behind by %s attests nothing: %+v", behind, p.seen())
			}
			if early := confirmed.Sub(at.Time); early > look {
				t.Errorf("with a clock behind by %s the attested time is %s before the confirm", behind, early)
			}
		})
	}
}

// Whatever is wrong with the new generation, the host ends where it was, and
// does not try the same again.
func TestBadReleasesAreUndone(t *testing.T) {
	for name, bad := range map[string]sim.Closure{
		"failed unit":                 {After: sim.After{FailedUnits: []string{"web.service"}}},
		"unit fails after the switch": {After: sim.After{LateUnits: []string{"web.service"}, LateAfter: 5 * time.Second}},
		"crash loop A24":              {After: sim.After{CrashLoop: []string{"web.service"}, CrashEvery: 3 * time.Second}},
		"pre-check refuses, exit 1":   {Script: sim.Script{ExitCode: 1, NoCheck: true}},
		"its own checks refuse it":    {Script: sim.Script{CheckExit: 1}},
		"its checks die":              {Script: sim.Script{CheckExit: 101}},
		"activation script fails":     {Script: sim.Script{ExitCode: 2}},
		"script dies, exit 101":       {Script: sim.Script{ExitCode: 101}},
		"boot loader refuses A10":     {Script: sim.Script{BootExit: 1}},
		"no switch script":            {NoSwitch: true},
	} {
		t.Run(name, func(t *testing.T) {
			bubble(t, func(t *testing.T) {
				p := newPlane(t)
				p.pace = 20
				m := newMachine(t, p, with(bad))
				stop := m.start(m.sim)
				time.Sleep(30 * time.Minute)
				stop()
				if m.where() != all(before) {
					t.Errorf("ended at %v", m.where())
				}
				if !p.reported(protocol.EventActivationFailed) || !p.reported(protocol.EventClosureQuarantined) ||
					p.confirmed() != 0 {
					t.Errorf("reports %v, %d confirms", p.said(), p.confirmed())
				}
			})
		})
	}
}

func TestUnitThatHadFailedBeforeIsNotBlamed_A4(t *testing.T) {
	bubble(t, func(t *testing.T) {
		p := newPlane(t)
		closures := with(sim.Closure{After: sim.After{FailedUnits: []string{"old.service"}}})
		closures[before] = sim.Closure{After: sim.After{FailedUnits: []string{"old.service"}}}
		m := newMachine(t, p, closures)
		stop := m.start(m.sim)
		time.Sleep(2 * time.Minute)
		stop()
		if m.where() != all(target) {
			t.Errorf("ended at %v", m.where())
		}
	})
}

func TestHeldLockIsTriedAgain_A5(t *testing.T) {
	bubble(t, func(t *testing.T) {
		p := newPlane(t)
		m := newMachine(t, p, good)
		if err := m.sim.HoldLock(true); err != nil {
			t.Fatal(err)
		}
		stop := m.start(m.sim)
		time.Sleep(time.Minute)
		if err := m.sim.HoldLock(false); err != nil {
			t.Fatal(err)
		}
		time.Sleep(30 * time.Minute)
		stop()
		if m.where() != all(target) {
			t.Errorf("ended at %v", m.where())
		}
	})
}

// An outage in the middle of an activation undoes it and blames nobody.
func TestOutageQuarantinesNothing_A25(t *testing.T) {
	bubble(t, func(t *testing.T) {
		p := newPlane(t)
		p.pace = 20
		m := newMachine(t, p, good)
		stop := m.start(m.sim)
		for range 600 {
			if m.where()[0] == target {
				break
			}
			time.Sleep(100 * time.Millisecond)
		}
		p.set(func() { p.away = true })
		time.Sleep(time.Hour)
		if m.where() != all(before) {
			t.Errorf("during the outage: %v", m.where())
		}
		p.set(func() { p.away = false })
		time.Sleep(time.Hour)
		stop()
		if m.where() != all(target) || p.reported(protocol.EventClosureQuarantined) {
			t.Errorf("after the outage: %v, quarantined %v", m.where(), p.reported(protocol.EventClosureQuarantined))
		}
	})
}

func TestGoneUndoesBoth(t *testing.T) {
	bubble(t, func(t *testing.T) {
		p := newPlane(t)
		p.confirm = http.StatusGone
		m := newMachine(t, p, good)
		stop := m.start(m.sim)
		time.Sleep(2 * time.Minute)
		p.set(func() { p.noTarget = true })
		time.Sleep(10 * time.Minute)
		stop()
		if m.where() != all(before) {
			t.Errorf("after 410: %v", m.where())
		}
	})
}

func TestRollbackIsHonouredOnceAndOnlyToWhatWasRecorded_A6(t *testing.T) {
	bubble(t, func(t *testing.T) {
		p := newPlane(t)
		m := newMachine(t, p, good)
		stop := m.start(m.sim)
		time.Sleep(2 * time.Minute)
		p.set(func() {
			p.noTarget = true
			p.tamper = func(r *protocol.CheckinResponse) {
				r.Rollback = &protocol.Rollback{Rollout: p.id, TargetRef: another, Reason: "recall"}
			}
		})
		time.Sleep(10 * time.Minute)
		stop()
		if m.where() != all(before) || !p.reported(protocol.EventRollbackTriggered) {
			t.Errorf("after a recall repeated many times: %v", m.where())
		}
	})
}

// A control plane that lies changes nothing on the host.
func TestLiesAreRefused_T2(t *testing.T) {
	for name, lie := range map[string]func(*plane){
		"another closure": func(p *plane) {
			p.tamper = func(r *protocol.CheckinResponse) {
				if r.Target != nil {
					r.Target.ClosureHash = another
				}
			}
		},
		"a path for a closure": func(p *plane) {
			p.tamper = func(r *protocol.CheckinResponse) {
				if r.Target != nil {
					r.Target.ClosureHash = "../../etc"
				}
			}
		},
		"another wave": func(p *plane) {
			p.tamper = func(r *protocol.CheckinResponse) {
				if wave := uint32(7); r.Target != nil {
					r.Target.WaveIndex = &wave
				}
			}
		},
		"another host's proof": func(p *plane) {
			p.proof.Leaf = fleet.Leaf(fleet.HostEntry{Hostname: "web-02", TargetClosure: target})
		},
		"no head": func(p *plane) {
			p.tamper = func(r *protocol.CheckinResponse) { r.Head = nil }
		},
		"unsigned head": func(p *plane) { p.headSig = make([]byte, pki.SignatureSize) },
		"head by another key": func(p *plane) {
			p.headSig, _ = p.org.Sign(p.head)
		},
		"stale head": func(p *plane) {
			p.mu.Unlock()
			p.release(target, time.Now().Add(-3*time.Hour))
			p.mu.Lock()
		},
		"future head T8": func(p *plane) {
			p.mu.Unlock()
			p.release(target, time.Now().Add(3*time.Hour))
			p.mu.Lock()
		},
		"forged rollback": func(p *plane) {
			p.noTarget = true
			p.tamper = func(r *protocol.CheckinResponse) {
				r.Rollback = &protocol.Rollback{Rollout: p.id, TargetRef: another, Reason: "because"}
			}
		},
	} {
		t.Run(name, func(t *testing.T) {
			bubble(t, func(t *testing.T) {
				p := newPlane(t)
				p.set(func() { lie(p) })
				m := newMachine(t, p, good)
				stop := m.start(m.sim)
				time.Sleep(10 * time.Minute)
				stop()
				if m.where() != all(before) {
					t.Errorf("ended at %v", m.where())
				}
			})
		})
	}
}

func TestOlderReleaseIsRefusedAndWithholdingIsVisible_T17(t *testing.T) {
	bubble(t, func(t *testing.T) {
		p := newPlane(t)
		p.pace = 20
		m := newMachine(t, p, good)
		start := time.Now()
		stop := m.start(m.sim)
		time.Sleep(10 * time.Minute)
		p.release(another, start.Add(-time.Hour))
		time.Sleep(20 * time.Minute)
		if m.where() != all(target) {
			t.Errorf("went back to an older release: %v", m.where())
		}
		time.Sleep(3 * time.Hour)
		stop()
		var s status
		if err := journal.Directory(m.path("state")).Read(statusName, &s); err != nil ||
			!strings.Contains(s.Stale, "release-stale") {
			t.Errorf("status says %q, %v", s.Stale, err)
		}
		if !p.reported(protocol.EventOther) {
			t.Error("release-stale was not reported")
		}
	})
}

func TestReleaseThatWouldLockTheHostOut_T16(t *testing.T) {
	bubble(t, func(t *testing.T) {
		p := newPlane(t)
		m := newMachine(t, p, good)
		stranger, err := pki.GenerateKey(pki.AlgorithmEd25519)
		if err != nil {
			t.Fatal(err)
		}
		public := stranger.Public()
		trust, err := (&pki.Trust{SchemaVersion: 1, CIReleaseKey: pki.KeySlot{Current: &public}}).Marshal()
		if err != nil {
			t.Fatal(err)
		}
		if err := sim.WriteClosure(filepath.Join(m.dir, "cache"), target,
			sim.Closure{Agent: "self", TrustJSON: string(trust)}); err != nil {
			t.Fatal(err)
		}
		stop := m.start(m.sim)
		time.Sleep(10 * time.Minute)
		stop()
		if m.where() != all(before) || !p.reported(protocol.EventActivationFailed) {
			t.Errorf("ended at %v", m.where())
		}
	})
}

// snapshots copies the machine and the agent's state at every call that changes
// the host: what a kill at that moment would leave.
type snapshots struct {
	nixops.Host
	m     *machine
	taken []string
	calls []string
	stop  func() // instead of a copy, at call number at
	at    int
}

func (s *snapshots) take(call string) {
	if s.stop != nil {
		if s.calls = append(s.calls, call); len(s.calls) == s.at {
			s.stop()
		}
		return
	}
	to := s.m.t.TempDir()
	if err := os.CopyFS(filepath.Join(to, "host"), os.DirFS(s.m.path(""))); err != nil {
		s.m.t.Errorf("snapshot: %v", err)
	}
	s.taken, s.calls = append(s.taken, to), append(s.calls, call)
}

func (s *snapshots) Realise(ctx context.Context, c string, f func(string), how ...nixops.Fetch) error {
	s.take("realise")
	return s.Host.Realise(ctx, c, f, how...)
}
func (s *snapshots) ArmDeadline(ctx context.Context, d nixops.Deadline) error {
	s.take("arm")
	defer s.take("armed")
	return s.Host.ArmDeadline(ctx, d)
}
func (s *snapshots) Switch(ctx context.Context, r nixops.SwitchRequest) (nixops.Exit, error) {
	s.take("switch " + string(r.Action))
	defer s.take("switched " + string(r.Action))
	return s.Host.Switch(ctx, r)
}
func (s *snapshots) Units(ctx context.Context) ([]nixops.Unit, error) {
	if n := len(s.calls); n > 0 && s.calls[n-1] != "gate" {
		s.take("gate")
	}
	return s.Host.Units(ctx)
}
func (s *snapshots) SetProfile(ctx context.Context, c string) error {
	s.take("profile")
	defer s.take("profile set")
	return s.Host.SetProfile(ctx, c)
}
func (s *snapshots) SetStaged(ctx context.Context, c string) error {
	s.take("stage")
	defer s.take("staged")
	return s.Host.SetStaged(ctx, c)
}
func (s *snapshots) SetBootOnce(ctx context.Context, c string) error {
	s.take("boot once")
	defer s.take("boots once")
	return s.Host.SetBootOnce(ctx, c)
}
func (s *snapshots) Reboot(ctx context.Context) error {
	s.take("reboot")
	defer s.take("rebooted")
	return s.Host.Reboot(ctx)
}
func (s *snapshots) RestoreCurrent(ctx context.Context, c string) error {
	s.take("restore")
	defer s.take("restored")
	return s.Host.RestoreCurrent(ctx, c)
}
func (s *snapshots) DisarmDeadline(ctx context.Context, u string) error {
	s.take("disarm")
	defer s.take("disarmed")
	return s.Host.DisarmDeadline(ctx, u)
}

// An agent that is stopped at any moment and started again goes on to the end.
func TestStoppedAtEveryStepGoesOn(t *testing.T) {
	for at := 1; ; at++ {
		more := true
		synctest.Test(t, func(t *testing.T) {
			p := newPlane(t)
			m := newMachine(t, p, good)
			ctx, cancel := context.WithCancel(context.Background())
			s := &snapshots{Host: m.sim, m: m, stop: cancel, at: at}
			done := make(chan error, 1)
			go func() { done <- Run(ctx, m.config(s)) }()
			time.Sleep(2 * time.Minute)
			cancel()
			<-done
			if more = len(s.calls) >= at; !more {
				return
			}
			stop := m.start(m.sim)
			time.Sleep(15 * time.Minute)
			stop()
			if m.where() != all(target) {
				t.Errorf("stopped at %d (%s): ended at %v", at, s.calls[at-1], m.where())
			}
		})
		if !more {
			if at < 8 {
				t.Errorf("only %d calls", at)
			}
			return
		}
	}
}

// Killed at any moment and found again after its deadline, with or without a
// power cut, the host ends at the proven target or at exactly what it had, and
// at the latter when the target is bad.
func TestKilledAtEveryStep(t *testing.T) {
	for _, c := range []struct {
		name     string
		closures map[string]sim.Closure
		want     [3]string
	}{
		{"good", good, all(target)},
		{"bad", with(sim.Closure{After: sim.After{FailedUnits: []string{"web.service"}}}), all(before)},
	} {
		synctest.Test(t, func(t *testing.T) {
			p := newPlane(t)
			p.pace = 30 // the journal is what counts here, and not check-ins
			m := newMachine(t, p, c.closures)
			s := &snapshots{Host: m.sim, m: m}
			stop := m.start(s)
			time.Sleep(3 * time.Minute)
			stop()
			if m.where() != c.want || len(s.taken) < 8 {
				t.Fatalf("%s: the uninterrupted run ended at %v after %v", c.name, m.where(), s.calls)
			}
			for i, dir := range s.taken {
				for _, power := range []bool{false, true} {
					k := &machine{t: t, dir: filepath.Join(dir, fmt.Sprint("run-", power)), p: p}
					for to, from := range map[string]string{"host": filepath.Join(dir, "host"),
						"cache": filepath.Join(m.dir, "cache")} {
						if err := os.CopyFS(filepath.Join(k.dir, to), os.DirFS(from)); err != nil {
							t.Fatal(err)
						}
					}
					k.open()
					if power {
						if err := k.sim.PowerCycle(); err != nil {
							t.Fatal(err)
						}
						if err := k.undoer().Guard(context.Background()); err != nil {
							t.Errorf("%s: guard after a cut at %d (%s): %v", c.name, i, s.calls[i], err)
						}
					}
					stop := k.start(k.sim)
					time.Sleep(15 * time.Minute)
					stop()
					if got := k.where(); got != c.want && got != all(before) {
						t.Errorf("%s: killed at %d (%s), power cut %v: ended at %v, want %v", c.name, i, s.calls[i], power, k.where(),
							c.want)
					}
					p.release(target, time.Now())
				}
			}
		})
	}
}
