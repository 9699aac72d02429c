package rollout

import (
	"slices"
	"testing"
	"time"

	"nixfleet/nixops/fleet"
)

// A closure that runs is compared by its full name, so it is not dispatched again.
func TestRunningClosureIsNotDispatchedAgain_C3(t *testing.T) {
	b := start(t, single("s", one(0, "a", "0a1b-nixos-system-a")))
	b.update("a")
	for range 5 {
		b.pass(time.Minute)
		if d := b.checkin("a"); d.Target != nil {
			t.Fatalf("dispatched again: %+v", d.Target)
		}
	}
	b.state("a", Converged)
}

// The answer to a check-in and the explanation come from the same gates with the same observations.
func TestExplainAndCheckinAgree_C4(t *testing.T) {
	b := start(t, spec{
		channels: []channelSpec{{name: "s",
			waves: []waveSpec{one(time.Minute, "a", "new-a", "b", "new-b"), one(0, "c", "new-c")}}},
		budgets: []budgetSpec{{tag: "x", hosts: []string{"a", "b"}, max: 1}},
	})
	for _, h := range []string{"a", "b", "c"} {
		d := b.checkin(h)
		e := b.w.Decide(h, b.now)
		if d.Target == nil && d.Reason != e.Reason {
			t.Errorf("%s: told %+v, explained %+v", h, d.Reason, e.Reason)
		}
	}
}

func TestAllAtOnceWaitsForItsHosts_C5(t *testing.T) {
	b := start(t, single("s", one(0, "a", "new-a", "b", "new-b")))
	b.pass(time.Second)
	b.wantRollout("s", Executing, 0)
	b.update("a")
	b.wantRollout("s", Executing, 0)
	b.update("b")
	b.wantRollout("s", RolloutConverged, 0)

	none := start(t, single("s", one(0, "a", "new-a")))
	none.pass(48 * time.Hour)
	none.wantRollout("s", Executing, 0)
}

func TestChannelEdgeWantsTheNewestPredecessor_C6(t *testing.T) {
	two := func(v string, signed time.Time) spec {
		return spec{signed: signed, order: [][2]string{{"edge", "stable"}}, channels: []channelSpec{
			{name: "edge", waves: []waveSpec{one(0, "e", v+"-e")}},
			{name: "stable", waves: []waveSpec{one(0, "s", v+"-s")}},
		}}
	}
	b := start(t, two("v1", epoch))
	b.refused("s", CodeChannelEdge)
	if d := b.w.Deferrals(b.now); len(d) != 1 || d[0].BlockedBy != "edge" {
		t.Fatalf("deferrals: %+v", d)
	}
	b.update("e")
	if !slices.Contains(b.last.Wake, "s") && b.wakeups["s"] == 0 {
		t.Error("the successor was not woken")
	}
	b.update("s")
	b.wantRollout("stable", RolloutConverged, 0)
	// The finished rollout of release 1 does not release release 2.
	b.accept(two("v2", epoch.Add(time.Hour)))
	b.refused("s", CodeChannelEdge)
	b.update("e")
	b.update("s")

	// A predecessor without hosts holds nobody.
	empty := start(t, spec{order: [][2]string{{"edge", "stable"}}, channels: []channelSpec{
		{name: "edge", waves: []waveSpec{one(0, "e", "")}},
		{name: "stable", waves: []waveSpec{one(0, "s", "new-s")}},
	}})
	empty.refused("e", CodeNoClosure)
	empty.offered("s")
}

func TestSoakZeroStillWantsProbes_C7(t *testing.T) {
	b := start(t, spec{channels: []channelSpec{
		{name: "s", waves: []waveSpec{one(0, "a", "new-a"), one(time.Second, "b", "new-b")}}}})
	b.box("a").mode, b.box("a").probe = "enforce", "unknown"
	b.update("a")
	b.refused("a", CodeProbesNotRun)
	b.refused("b", CodeWave)
	b.box("a").probe = "pass"
	b.checkin("a")
	b.state("a", Soaked)
	b.offered("b")

	// Even without probes a check-in of the new system is needed.
	c := start(t, single("s", one(0, "a", "new-a"), one(time.Second, "b", "new-b")))
	c.offered("a")
	c.box("a").running = "new-a"
	c.confirm("a")
	c.refused("b", CodeWave)
	c.checkin("a")
	c.offered("b")
}

func TestWaveSurvivesRestart_C8(t *testing.T) {
	b := start(t, single("s", one(time.Minute, "a", "new-a"), one(10*time.Minute, "b", "new-b")))
	b.update("a")
	b.live(2 * time.Minute)
	b.wantRollout("s", Executing, 1)
	b.restart()
	b.wantRollout("s", Executing, 1)
	b.live(10 * time.Minute)
	b.wantRollout("s", RolloutConverged, 1)
}

// Only what was dispatched counts as in flight, and what the same moment dispatched does count.
func TestBudgetCountsDispatchesOfTheSameMoment_C10(t *testing.T) {
	b := start(t, spec{
		channels: []channelSpec{{name: "s", waves: []waveSpec{one(0, "a", "new-a", "b", "new-b", "c", "new-c")}}},
		budgets:  []budgetSpec{{tag: "x", hosts: []string{"a", "b", "c"}, max: 2}},
	})
	b.offered("a")
	b.offered("b")
	b.refused("c", CodeBudget)
}

// A wave list that names hosts of another channel does not wait for them: only the manifest's hosts count.
func TestForeignHostInWaveIsIgnored_C11(t *testing.T) {
	b := start(t, single("s", one(time.Second, "a", "new-a"), one(time.Second, "b", "new-b")))
	b.rel.Fleet.Waves["s"][0].Hosts = append(b.rel.Fleet.Waves["s"][0].Hosts, "stranger")
	b.rel.Fleet.Hosts["stranger"] = b.rel.Fleet.Hosts["a"]
	b.took(b.w.Accept(b.rel, b.now))
	b.update("a")
	b.live(time.Minute)
	b.state("b", Converged)
}

func TestFailuresReachThePolicyAndStay_C12(t *testing.T) {
	for _, c := range []struct {
		name string
		fail func(b *bench)
	}{
		{"activation", func(b *bench) {
			b.offered("a")
			b.report("a", Report{Event: "activation-failed", Phase: "switch", Reason: "exit 4"})
		}},
		{"probes", func(b *bench) {
			b.box("a").mode, b.box("a").probe = "enforce", "pass"
			b.update("a")
			b.box("a").probe = "fail"
			b.checkin("a")
			b.pass(30 * time.Second)
			b.checkin("a")
			b.wantRollout("s", Executing, 0)
			b.pass(31 * time.Second)
			b.checkin("a")
		}},
		{"rollback", func(b *bench) {
			b.offered("a")
			b.report("a", Report{Event: "rollback-triggered", Reason: "health gate: unit nginx failed"})
		}},
	} {
		t.Run(c.name, func(t *testing.T) {
			b := start(t, single("s", one(time.Minute, "a", "new-a"), one(time.Minute, "b", "new-b")))
			c.fail(b)
			b.wantRollout("s", Halted, 0)
			b.restart()
			b.wantRollout("s", Halted, 0)
			b.live(time.Hour)
			b.refused("b", CodeHalted)
		})
	}
}

func TestOnlineExpires_C13(t *testing.T) {
	b := start(t, single("s", one(0, "a", "new-a")))
	b.checkin("a")
	online := func() bool { v, _ := b.w.Host("a", b.now); return v.Online }
	if !online() {
		t.Fatal("offline right after a check-in")
	}
	b.pass(179 * time.Second)
	if !online() {
		t.Error("offline too early")
	}
	b.pass(2 * time.Second)
	if online() {
		t.Error("online for ever")
	}
	// A held request counts as presence for as long as it is held.
	b.box("a").wait = 300 * time.Second
	b.checkin("a")
	b.pass(400 * time.Second)
	if !online() {
		t.Error("a host with a held request is offline")
	}
	b.w.Gone("a", b.now)
	b.pass(181 * time.Second)
	if online() {
		t.Error("a host whose held request broke stays online")
	}
}

func TestComplianceFailuresAreCountedOnce_C15(t *testing.T) {
	b := start(t, spec{channels: []channelSpec{
		{name: "s", mode: "permissive", waves: []waveSpec{one(time.Hour, "a", "new-a")}}}})
	b.update("a")
	for range 10 {
		b.report("a", Report{Event: "compliance-failure", Reason: "ctl-1"})
		b.checkin("a")
	}
	b.report("a", Report{Event: "compliance-failure", Reason: "ctl-0"})
	v, _ := b.w.Host("a", b.now)
	if want := []string{"compliance:ctl-0", "compliance:ctl-1"}; !slices.Equal(v.Failures, want) {
		t.Errorf("failures %v, want %v", v.Failures, want)
	}
}

// One host that is off neither blocks the rest nor is forgotten; one host that cannot fetch does not end it.
func TestOneAbsentHostHoldsNobody_C17(t *testing.T) {
	b := start(t, single("s", one(time.Minute, "a", "new-a", "z", "new-z"), one(time.Minute, "b", "new-b")))
	b.box("z").away = true
	b.live(30 * time.Minute)
	b.wantRollout("s", RolloutConverged, 1)
	b.state("z", Skipped)
	b.box("z").away = false
	b.live(5 * time.Minute)
	b.state("z", Converged)

	c := start(t, single("s", one(time.Minute, "a", "new-a", "z", "new-z"), one(time.Minute, "b", "new-b")))
	for range 12 {
		c.pass(5 * time.Minute)
		if d := c.checkin("z"); d.Target != nil && !d.Target.Resent {
			c.report("z", Report{Event: "realise-failed", Reason: "no space left on device"})
		}
		for _, h := range []string{"a", "b"} {
			if d := c.checkin(h); d.Target != nil {
				c.box(h).running = d.Target.Closure
				c.confirm(h)
			}
		}
	}
	c.wantRollout("s", RolloutConverged, 1)
	c.state("z", Skipped)
}

func TestStagedUpdateIsSuperseded_C18(t *testing.T) {
	b := start(t, single("s", one(time.Minute, "a", "v1-a")))
	b.offered("a")
	b.report("a", Report{Event: "activation-deferred", Closure: "v1-a"})
	b.state("a", Deferred)
	b.pass(24 * time.Hour)
	b.refused("a", CodeDeferred)
	next := single("s", one(time.Minute, "a", "v2-a"))
	next.signed = b.now
	b.accept(next)
	if got := b.offered("a"); got.Closure != "v2-a" {
		t.Fatalf("offered %s", got.Closure)
	}
	for _, d := range b.disk.dispatches {
		if d.Closure == "v1-a" && d.State != DispatchCancelled {
			t.Errorf("the staged dispatch is %s", d.State)
		}
	}
}

// A budget spreads an all-at-once rollout; each freed slot wakes as many as it can take, not everybody.
func TestFreedSlotWakesOneWaiter_C19(t *testing.T) {
	b := start(t, spec{
		channels: []channelSpec{{name: "s", waves: []waveSpec{one(0, "a", "n-a", "b", "n-b", "c", "n-c", "d", "n-d")}}},
		budgets:  []budgetSpec{{tag: "x", hosts: []string{"a", "b", "c", "d"}, max: 1}},
		until:    fleet.SlotConfirmed,
	})
	b.offered("a")
	for _, h := range []string{"b", "c", "d"} {
		b.refused(h, CodeBudget)
	}
	b.box("a").running = "n-a"
	clear(b.wakeups)
	b.confirm("a")
	if len(b.wakeups) != 1 {
		t.Errorf("woken: %v", b.wakeups)
	}
}

// A host that went silent is visible: its reason says so and since when.
func TestSilentHostHasAReason_C20(t *testing.T) {
	b := start(t, single("s", one(time.Hour, "c", "new-c"), one(time.Minute, "a", "new-a", "b", "new-b")))
	b.checkin("a")
	b.pass(10 * time.Minute)
	v, _ := b.w.Host("a", b.now)
	if v.Online || v.Reason.Code != CodeOffline || v.LastSeen == nil || !v.LastSeen.Equal(epoch) {
		t.Errorf("view: %+v", v)
	}
	v, _ = b.w.Host("b", b.now)
	if v.Reason.Code != CodeOffline {
		t.Errorf("a host never heard of: %+v", v.Reason)
	}
}
