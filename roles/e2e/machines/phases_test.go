package machines

import (
	"testing"
	"time"
)

// The phases of the journal that an update goes through which cannot be switched live,
// or which is taken back.
func init() {
	scenarios = append(scenarios,
		scenario{"power-staging", playPowerStaging},
		scenario{"cp-staged", playControlPlaneKilledStaged},
		scenario{"cp-undoing", playControlPlaneKilledUndoing},
	)
}

// The boot loader has not been told yet: what boots is what was there.
func playPowerStaging(t *testing.T, g *ground) {
	p := newPlay(t, g, g.main, "power-staging", inhibitor("one"))
	p.release(p.next("next", inhibitor("two"), knob("boot-seconds", "30")))
	p.at("staging")
	until(p, time.Minute, "the profile is set", func() string {
		if o := p.outside(); o.profile == p.first {
			return "not yet"
		}
		return ""
	})
	if found := p.powerCut(); found != "staging" {
		t.Fatalf("the power was cut at %q", found)
	}
	p.back(2*time.Minute, "power was lost", false)
	p.tell("power cut while staging, before the boot loader", onOld, "")
}

func playControlPlaneKilledStaged(t *testing.T, g *ground) {
	cp := g.ownControlPlane(t, "cp-staged")
	p := newPlay(t, g, cp, "cp-staged", inhibitor("one"))
	next := p.next("next", inhibitor("two"))
	p.release(next)
	p.staged(next)
	cp.kill()
	p.m.run("systemctl", "reboot")
	p.at("checking")
	time.Sleep(3 * time.Second)
	cp.start(t)
	p.confirmed(next)
	p.tell("control plane killed while staged, then a reboot", onNew, "deferred; converged once it was back")
}

func playControlPlaneKilledUndoing(t *testing.T, g *ground) {
	cp := g.ownControlPlane(t, "cp-undoing")
	p := newPlay(t, g, cp, "cp-undoing", knob("seconds", "5"))
	p.release(p.next("next", late))
	p.at("undoing")
	cp.kill()
	time.Sleep(10 * time.Second)
	cp.start(t)
	p.back(2*time.Minute, "late.service", true)
	p.tell("control plane killed while undoing", onOld, "")
}
