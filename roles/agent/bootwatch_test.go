package agent

import (
	"context"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"nixfleet/nixops"
	"nixfleet/nixops/sim"
	"nixfleet/roles/protocol"
)

const unread = "this agent does not read the boot loader limine"

// An activation begins, and is confirmed, on a host whose boot loader cannot be read: that proves nothing and stops
// nothing, and everybody is told.
func TestActivationUnderAnUnreadableLoader(t *testing.T) {
	bubble(t, func(t *testing.T) {
		p := newPlane(t)
		m := newMachine(t, p, good)
		m.must(m.sim.HideLoader(unread))
		stop := m.live(m.sim)
		time.Sleep(10 * time.Minute)
		stop()
		if p.confirmed() != 1 {
			t.Errorf("%d confirms, reports %v", p.confirmed(), p.said())
		}
		if b := p.seen().Boot; b == nil || b.Next != nil || b.Unknown != unread || b.Trouble() != "" {
			t.Errorf("check-in says %+v", b)
		}
		if out := m.types("status"); !strings.Contains(out, "not known: "+unread) {
			t.Errorf("status prints %s", out)
		}
		m.must(m.sim.HideLoader(""))
		if m.where() != all(target) {
			t.Errorf("it is at %v", m.where())
		}
	})
}

// An installer that fails after it has changed the boot default: the previous closure's `boot` is run whether or not
// the loader can be read.
func TestUndoOfALateInstallerFailure(t *testing.T) {
	for _, why := range []string{"", unread} {
		t.Run(why, func(t *testing.T) {
			bubble(t, func(t *testing.T) {
				p := newPlane(t)
				m := newMachine(t, p, with(sim.Closure{Script: sim.Script{BootExit: 1, BootLate: true}}))
				m.must(m.sim.HideLoader(why))
				stop := m.live(m.sim)
				time.Sleep(10 * time.Minute)
				stop()
				m.must(m.sim.HideLoader(""))
				if m.where() != all(before) || p.confirmed() != 0 || !p.reported(protocol.EventRollbackTriggered) {
					t.Errorf("it is at %v, %d confirms, reports %v", m.where(), p.confirmed(), p.said())
				}
			})
		})
	}
}

// The previous closure's installer fails as well and the loader cannot be read: that is said, and the undo ends.
func TestUndoWhoseInstallerFailsUnseen(t *testing.T) {
	bubble(t, func(t *testing.T) {
		p := newPlane(t)
		closures := with(sim.Closure{Script: sim.Script{BootExit: 1, BootLate: true}})
		closures[before] = sim.Closure{Script: sim.Script{BootExit: 1}}
		m := newMachine(t, p, closures)
		m.must(m.sim.HideLoader(unread))
		stop := m.live(m.sim)
		time.Sleep(30 * time.Minute)
		stop()
		if told := p.refusals(protocol.EventRollbackTriggered); !strings.Contains(told,
			"previous closure's boot loader installer") {
			t.Errorf("it reports %q", told)
		}
	})
}

// A boot default that is not the confirmed closure is shouted at every check-in, until it is over.
func TestBootDefaultThatWasNotConfirmed(t *testing.T) {
	bubble(t, func(t *testing.T) {
		p := newPlane(t)
		m := newMachine(t, p, good)
		stop := m.live(m.sim)
		time.Sleep(10 * time.Minute)
		if b := p.seen().Boot; b == nil || b.Next == nil || *b.Next != target || b.Trouble() != "" {
			t.Fatalf("check-in says %+v", b)
		}
		m.must(m.sim.SetBootDefault(before))
		time.Sleep(10 * time.Minute) // the loader's files have changed, so the hour is not waited for
		if b := p.seen().Boot; b == nil || b.Expected != target || *b.Next != before {
			t.Errorf("check-in says %+v", b)
		}
		if out := m.types("status"); !strings.Contains(out, "a reboot starts "+before) {
			t.Errorf("status prints %s", out)
		}
		m.must(m.sim.SetBootDefault(target))
		time.Sleep(bootHour + 10*time.Minute)
		stop()
		if b := p.seen().Boot; b == nil || b.Trouble() != "" {
			t.Errorf("check-in says %+v", b)
		}
	})
}

// elsewhere is a machine on which root switched to the staged closure by hand after the loader had fallen back.
type elsewhere struct {
	*sim.Host
	started string
}

func (e *elsewhere) StartedBy(context.Context) (string, error) { return e.started, nil }

var _ nixops.Host = (*elsewhere)(nil)

// Only the kernel's command line says what was booted: neither the variable that is gone nor the system that runs now.
func TestFallbackOfTheLoader(t *testing.T) {
	bubble(t, func(t *testing.T) {
		p := newPlane(t)
		p.pace = 20
		m := newMachine(t, p, staged(sim.Closure{}))
		host := &elsewhere{Host: m.sim}
		stop := m.live(host)
		time.Sleep(30 * time.Minute)
		host.started = before
		m.must(m.sim.PowerCycle())
		time.Sleep(10 * time.Minute)
		stop()
		if p.confirmed() != 0 || !strings.Contains(m.local().Waiting, "fallback by the boot loader: "+before) {
			t.Errorf("%d confirms, status says %q", p.confirmed(), m.local().Waiting)
		}
	})
}

// becoming is a machine whose loader takes the entry for one boot as its default, by its name or number.
type becoming struct {
	*sim.Host
	staged bool
}

func (b *becoming) SetStaged(ctx context.Context, closure string) error {
	b.staged = closure != ""
	return b.Host.SetStaged(ctx, closure)
}

func (b *becoming) BootDefault(ctx context.Context) (string, error) {
	if b.staged {
		return target, nil
	}
	return b.Host.BootDefault(ctx)
}

// What is staged for one boot must not be what every boot starts.
func TestStagedEntryThatBecomesTheDefault(t *testing.T) {
	bubble(t, func(t *testing.T) {
		p := newPlane(t)
		m := newMachine(t, p, staged(sim.Closure{}))
		stop := m.live(&becoming{Host: m.sim})
		time.Sleep(10 * time.Minute)
		stop()
		if m.where() != all(before) || m.bootsOnce() != "" || !strings.Contains(m.local().Waiting,
			"became the boot loader's") {
			t.Errorf("it is at %v, boots %q once, status says %q", m.where(), m.bootsOnce(), m.local().Waiting)
		}
	})
}

// A boot partition without room for the new kernel and initrd is this host's trouble, before anything is changed. An
// installer that meets a full disk all the same is not the release's fault either.
func TestBootPartitionWithoutRoom(t *testing.T) {
	bubble(t, func(t *testing.T) {
		p := newPlane(t)
		m := newMachine(t, p, with(sim.Closure{Cache: sim.Cache{BootSize: 90 << 20}}))
		m.must(m.sim.SetSpace(nixops.Space{StoreFree: 1 << 40, BootFree: 60 << 20}))
		stop := m.live(m.sim)
		time.Sleep(2 * time.Minute)
		told := p.refusals(protocol.EventRealiseFailed)
		if !strings.Contains(told, "/boot lacks 31 MiB") || p.reported(protocol.EventActivationStarted) ||
			p.reported(protocol.EventActivationFailed) {
			t.Errorf("it reports %q, %v", told, p.said())
		}
		m.must(m.sim.SetSpace(nixops.Space{StoreFree: 1 << 40, BootFree: 100 << 20}))
		time.Sleep(time.Hour)
		stop()
		if m.where() != all(target) || p.confirmed() != 1 {
			t.Errorf("with room it is at %v", m.where())
		}
	})
}

// fullBoot is a machine whose installer meets a disk that cannot be written.
type fullBoot struct {
	*sim.Host
	says string
}

func (f *fullBoot) UnitOutput(ctx context.Context, unit string) (string, error) {
	text, err := f.Host.UnitOutput(ctx, unit)
	if strings.HasPrefix(unit, "nixfleet-boot") {
		text += "OSError: " + f.says + ": '/boot/EFI/nixos/x.efi'\n"
	}
	return text, err
}

func TestInstallerWithoutSpaceIsTheHosts(t *testing.T) {
	for says, cause := range map[string]string{"[Errno 28] No space left on device": "no-space",
		"[Errno 30] Read-only file system": "preflight"} {
		synctest.Test(t, func(t *testing.T) {
			p := newPlane(t)
			m := newMachine(t, p, with(sim.Closure{Script: sim.Script{BootExit: 1}}))
			stop := m.live(&fullBoot{m.sim, says})
			time.Sleep(3 * time.Minute)
			stop()
			told := p.refusals(protocol.EventRollbackTriggered)
			if m.where() != all(before) || p.reported(protocol.EventActivationFailed) || !strings.Contains(told, cause) ||
				!strings.Contains(told, says) {
				t.Errorf("it is at %v and reports %q, %v", m.where(), told, p.said())
			}
		})
	}
}

// A boot partition that cannot be written is found before anything is changed, and blames nobody.
func TestBootPartitionThatIsReadOnly(t *testing.T) {
	bubble(t, func(t *testing.T) {
		p := newPlane(t)
		m := newMachine(t, p, good)
		m.must(m.sim.SetSpace(nixops.Space{StoreFree: 1 << 40, BootFree: 1 << 40, BootReadOnly: "/boot"}))
		stop := m.live(m.sim)
		time.Sleep(2 * time.Minute)
		told := p.refusals(protocol.EventRealiseFailed)
		if !strings.Contains(told, "/boot is mounted read-only") || p.reported(protocol.EventActivationStarted) {
			t.Errorf("it reports %q, %v", told, p.said())
		}
		m.must(m.sim.SetSpace(nixops.Space{StoreFree: 1 << 40, BootFree: 1 << 40}))
		time.Sleep(time.Hour)
		stop()
		if m.where() != all(target) || p.confirmed() != 1 {
			t.Errorf("when it can be written the host is at %v", m.where())
		}
	})
}

// A generation that was booted is watched when its boot is over, and is not proven before the boot loader was told
// that the boot went well. What keeps that from happening is the release's fault only where a unit is in the way.
func TestBootIsOverAndBlessed(t *testing.T) {
	waits := nixops.ThisBoot{Over: true, Blessing: nixops.BlessingWaits, Why: "boot-complete.target is inactive"}
	failed := nixops.ThisBoot{Over: true, Blessing: nixops.BlessingFailed, Why: "systemd-bless-boot.service failed"}
	for name, c := range map[string]struct {
		boot, later nixops.ThisBoot
		at          [3]string
		says        string // while it waits
		told        string
		blamed      bool
	}{
		"not over": {nixops.ThisBoot{}, nixops.ThisBoot{Over: true}, all(target), "the boot of " + target + " to be over",
			"", false},
		"blessed late": {waits, nixops.ThisBoot{Over: true, Blessing: nixops.Blessed}, all(target), "systemd to bless", "",
			false},
		"never over":    {nixops.ThisBoot{}, nixops.ThisBoot{}, all(target), "to be over", "", false},
		"never blessed": {waits, waits, all(before), "systemd to bless", "health-gate: the boot loader was not told", true},
		"cannot be":     {failed, failed, all(before), "", "preflight: the boot loader was not told", false},
	} {
		t.Run(name, func(t *testing.T) {
			bubble(t, func(t *testing.T) {
				p := newPlane(t)
				p.pace = 20
				m := newMachine(t, p, staged(sim.Closure{}))
				stop := m.live(m.sim)
				time.Sleep(30 * time.Minute)
				p.set(func() { p.noTarget = true })
				m.must(m.sim.SetThisBoot(c.boot))
				m.must(m.sim.PowerCycle())
				time.Sleep(45 * time.Second)
				if c.says != "" && (p.confirmed() != 0 || !strings.Contains(m.local().Waiting, c.says)) {
					t.Errorf("%d confirms, status says %q", p.confirmed(), m.local().Waiting)
				}
				m.must(m.sim.SetThisBoot(c.later))
				time.Sleep(30 * time.Minute)
				stop()
				if m.where() != c.at || (p.confirmed() == 1) != (c.at == all(target)) {
					t.Errorf("it is at %v, %d confirms, reports %v", m.where(), p.confirmed(), p.said())
				}
				if told := p.refusals(protocol.EventRollbackTriggered); !strings.Contains(told, c.told) ||
					c.told == "" && told != "" || p.reported(protocol.EventClosureQuarantined) != c.blamed {
					t.Errorf("it reports %q, %v", told, p.said())
				}
			})
		})
	}
}

// A boot loader that leaves the confirmed generation is told of, and is not taken for a person. What it has no tries
// left for is not switched to again; otherwise the fleet leads the host back.
func TestFallbackFromTheConfirmedGeneration(t *testing.T) {
	for _, usedUp := range []bool{true, false} {
		synctest.Test(t, func(t *testing.T) {
			p := newPlane(t)
			p.pace = 20
			m := newMachine(t, p, good)
			stop := m.live(m.sim)
			time.Sleep(10 * time.Minute)
			from := target
			if !usedUp {
				from = another
			}
			p.set(func() { p.noTarget = usedUp }) // a control plane does not offer what is quarantined
			m.must(m.sim.FallBack(from, before))
			time.Sleep(time.Hour)
			stop()
			at := [3]string{target, target, target}
			if usedUp {
				at = [3]string{before, target, before}
			}
			told := p.refusals(protocol.EventOther)
			if m.where() != at || !strings.Contains(told, "fallback by the boot loader: "+before) ||
				m.local().Held != "" && !usedUp || strings.Contains(m.local().Held, holdByHand) ||
				p.reported(protocol.EventClosureQuarantined) != usedUp {
				t.Errorf("used up %t: it is at %v, held %q, reports %q, %v", usedUp, m.where(), m.local().Held, told, p.said())
			}
		})
	}
}

// A boot is not held back from its blessing but for a generation that has yet to pass its health gate, which no
// outage keeps from doing so.
func TestBootComplete(t *testing.T) {
	for name, c := range map[string]struct {
		away, bad bool
		want      string
	}{"healthy": {}, "without a control plane": {away: true}, "a unit fails": {bad: true, want: "was not proven"}} {
		t.Run(name, func(t *testing.T) {
			bubble(t, func(t *testing.T) {
				p := newPlane(t)
				p.pace = 20
				closure := sim.Closure{}
				if c.bad {
					closure.After.FailedUnits = []string{"web.service"}
				}
				m := newMachine(t, p, staged(closure))
				if err := m.undoer().BootComplete(t.Context()); err != nil {
					t.Errorf("without an activation: %v", err)
				}
				stop := m.live(m.sim)
				time.Sleep(30 * time.Minute)
				if err := m.undoer().BootComplete(t.Context()); err != nil {
					t.Errorf("in the boot before: %v", err)
				}
				p.set(func() { p.away, p.noTarget = c.away, true })
				m.must(m.sim.PowerCycle())
				began := time.Now()
				err := m.undoer().BootComplete(t.Context())
				if (c.want == "") != (err == nil) || err != nil && !strings.Contains(err.Error(), c.want) {
					t.Errorf("BootComplete: %v", err)
				}
				if took := time.Since(began); !c.bad && took < 10*time.Second || took > time.Minute {
					t.Errorf("it took %s, and a good generation is watched for 15 s", took)
				}
				stop()
			})
		})
	}
}
