package rollout

import (
	"testing"
	"time"
)

// The strategy's name takes no declared wave or soak time away, and nothing waits for a reconcile interval: what is
// due is done when it is due. Both are v1's, which does not read them either.
func TestStrategyAndReconcileIntervalHoldNobody(t *testing.T) {
	for _, strategy := range []string{"canary", "staged", "all-at-once"} {
		for _, minutes := range []uint32{1, 100000} {
			b := &bench{t: t, now: epoch, disk: newDisk(), boxes: map[string]*box{}, wakeups: map[string]int{}}
			b.w = New(State{}, DefaultLimits(), b.now)
			b.rel = pair().release()
			for name, c := range b.rel.Fleet.Channels {
				p := b.rel.Fleet.RolloutPolicies[c.RolloutPolicy]
				c.ReconcileIntervalMinutes, p.Strategy = minutes, strategy
				b.rel.Fleet.Channels[name], b.rel.Fleet.RolloutPolicies[c.RolloutPolicy] = c, p
			}
			b.took(b.w.Accept(b.rel, b.now))
			b.update("a")
			b.refused("b", CodeWave)
			soak := b.rel.Fleet.Waves["s"][0].Soak()
			b.pass(soak - time.Second)
			b.checkin("a")
			b.refused("b", CodeWave)
			b.pass(time.Second)
			b.checkin("a")
			b.offered("b")
		}
	}
}

// An operator's retry is for a host that had its turn; it lets nobody in before its wave.
func TestRetryWaitsForTheWave(t *testing.T) {
	b := start(t, pair())
	b.refused("b", CodeWave)
	b.retry("b")
	b.refused("b", CodeWave)
	b.update("a")
	b.pass(time.Minute)
	b.checkin("a")
	b.offered("b")
}

// A wave does not open while a host of the one before, soaked as it is, fails its probes; it does when they pass again.
func TestWaveWaitsForFailingProbesOfSoakedHosts(t *testing.T) {
	for _, recovers := range []bool{true, false} {
		b := start(t, single("s", one(time.Minute, "a", "new-a", "b", "new-b"), one(time.Minute, "c", "new-c")))
		b.box("a").mode, b.box("a").probe = "enforce", "pass"
		b.update("a")
		b.pass(50 * time.Second)
		b.update("b")
		b.pass(10 * time.Second)
		b.checkin("a")
		b.state("a", Soaked)
		b.pass(30 * time.Second)
		b.box("a").probe = "fail"
		b.checkin("a")
		b.pass(25 * time.Second)
		b.checkin("b")
		b.state("b", Soaked)
		b.wantRollout("s", Executing, 0)
		if recovers {
			b.box("a").probe = "pass"
			b.checkin("a")
			b.wantRollout("s", Executing, 1)
			continue
		}
		b.pass(40 * time.Second)
		b.checkin("a")
		b.wantRollout("s", Halted, 0)
	}
}
