package rollout

import (
	"strings"
	"testing"
	"time"

	"nixfleet/nixops/fleet"
	"nixfleet/roles/protocol"
)

func pair() spec { return single("s", one(time.Minute, "a", "new-a"), one(time.Minute, "b", "new-b")) }

func TestLostAnswerIsToldAgainWithinTheLease(t *testing.T) {
	b := start(t, pair())
	first := b.offered("a")
	b.pass(100 * time.Second)
	again := b.offered("a")
	if !again.Resent || again.Closure != first.Closure || again.StartBy != first.StartBy-100*time.Second {
		t.Errorf("told again: %+v", again)
	}
	if !b.last.Empty() {
		t.Errorf("telling again changed %+v", b.last)
	}
	b.pass(200 * time.Second)
	b.refused("a", CodeLease) // start-by has passed
	b.pass(361 * time.Second)
	if got := b.offered("a"); got.Resent || got.StartBy != 300*time.Second {
		t.Errorf("after the lease: %+v", got)
	}
}

func TestTargetIsSentOncePerDispatchToV1Agents(t *testing.T) {
	b := start(t, pair())
	b.box("a").v1 = true
	b.offered("a")
	for range 5 {
		b.pass(time.Minute)
		b.refused("a", CodeLease)
	}
	b.pass(61 * time.Second)
	b.offered("a")
}

func TestDownloadProlongsItsLease(t *testing.T) {
	b := start(t, pair())
	b.box("a").mode = ""
	got := b.offered("a")
	b.box("a").phase = &protocol.Phase{Name: "fetching", Intent: got.Intent, ClosureHash: got.Closure}
	for range 60 {
		b.pass(time.Minute)
		if tg := b.offered("a"); !tg.Resent || tg.StartBy <= 0 {
			t.Fatalf("after %s: %+v", b.now.Sub(epoch), tg)
		}
	}
	if len(b.disk.dispatches) != 1 {
		t.Errorf("%d dispatches", len(b.disk.dispatches))
	}
	// It has its own limit.
	for range 240 {
		b.pass(time.Minute)
		b.checkin("a")
	}
	if len(b.disk.dispatches) == 1 {
		t.Error("a download of four hours is prolonged for ever")
	}
}

func TestActivationStartRestartsTheDeadline(t *testing.T) {
	b := start(t, pair())
	b.box("a").v1 = true
	b.offered("a")
	b.pass(300 * time.Second)
	b.report("a", Report{Event: "activation-started"})
	b.state("a", Activating)
	b.pass(300 * time.Second) // 600 s after the dispatch
	b.box("a").running = "new-a"
	if !b.confirm("a") {
		t.Error("a confirm within the restarted window is refused")
	}
	b.state("a", Healthy)
}

func TestUnconfirmedDispatchIsOfferedAgainThenFails(t *testing.T) {
	b := start(t, pair())
	offers := 0
	var gaps []time.Duration
	last := b.now
	for range 60 {
		if d := b.checkin("a"); d.Target != nil && !d.Target.Resent {
			offers++
			gaps = append(gaps, b.now.Sub(last))
			last = b.now
		}
		b.box("a").phase = &protocol.Phase{Name: "staged", ClosureHash: "something else"}
		b.pass(time.Minute)
	}
	if offers != 3 {
		t.Errorf("%d offers, want 3 (%v)", offers, gaps)
	}
	b.state("a", Failed)
	b.wantRollout("s", Halted, 0)
	if len(b.w.Quarantines()) != 0 {
		t.Error("silence quarantined a closure")
	}
}

// A25: an undo only because the control plane was unreachable quarantines nothing and is tried again.
func TestUnreachableControlPlaneQuarantinesNothing_A25(t *testing.T) {
	b := start(t, pair())
	b.offered("a")
	b.report("a", Report{Event: "activation-started"})
	b.report("a", Report{Event: "rollback-triggered", Reason: "control-plane-unreachable"})
	b.wantRollout("s", Executing, 0)
	if len(b.w.Quarantines()) != 0 {
		t.Fatal("quarantined")
	}
	b.pass(time.Minute)
	b.offered("a")
}

// A restart of the control plane in the middle of an activation takes nobody for lost before it could report.
func TestRestartDuringActivationLosesNobody_A25(t *testing.T) {
	b := start(t, pair())
	b.offered("a")
	b.report("a", Report{Event: "activation-started"})
	b.now = b.now.Add(time.Hour) // the control plane is down
	b.restart()
	b.pass(5 * time.Minute)
	b.wantRollout("s", Executing, 0)
	b.box("a").running = "new-a"
	if !b.confirm("a") {
		t.Error("the late confirm of the current rollout is refused")
	}
	b.state("a", Healthy)
}

func TestConfirm(t *testing.T) {
	b := start(t, pair())
	b.offered("a")
	id := b.id("a")
	for _, c := range []struct {
		name, host, id, closure string
		ok                      bool
	}{
		{"unknown host", "zz", id, "new-a", false},
		{"other rollout", "b", id[1:] + "0", "new-b", false},
		{"right", "a", id, "new-a", true},
		{"again", "a", id, "new-a", true},
		{"other closure after", "a", id, "old-a", false},
		{"recovery without a dispatch", "b", id, "new-b", true},
	} {
		ok, ch := b.w.Confirm(c.host, c.id, c.closure, b.now)
		b.took(ch)
		if ok != c.ok {
			t.Errorf("%s: %t", c.name, ok)
		}
	}

	wrong := start(t, pair())
	wrong.offered("a")
	wrong.box("a").running = "other"
	if wrong.confirm("a") {
		t.Error("a confirm of another closure than the dispatched one counts")
	}
	for _, d := range wrong.disk.dispatches {
		if d.State != DispatchRolledBack {
			t.Errorf("dispatch is %s", d.State)
		}
	}
}

// A confirm told again after a newer release must not roll a healthy host back.
func TestRepeatedConfirmAfterNewerRelease(t *testing.T) {
	b := start(t, pair())
	b.update("a")
	id := b.id("a")
	next := single("s", one(time.Minute, "a", "newer-a"), one(time.Minute, "b", "newer-b"))
	next.signed = b.now
	b.accept(next)
	if ok, _ := b.w.Confirm("a", id, "new-a", b.now); !ok {
		t.Error("refused")
	}
	b.restart()
	if ok, _ := b.w.Confirm("a", id, "new-a", b.now); !ok {
		t.Error("refused after a restart")
	}
}

// A confirm that came too late for its dispatch, or after the database was lost, is remembered like any other: its
// answer may be lost, and 410 to what is said again would roll a healthy host back.
func TestLateConfirmIsRemembered(t *testing.T) {
	for name, before := range map[string]func(*bench){
		"its dispatch had ended": func(b *bench) { b.pass(time.Hour) },
		"the database was lost":  (*bench).wipe,
		"it was found on its target": func(b *bench) {
			b.wipe()
			b.checkin("a")
			b.state("a", Healthy)
		},
	} {
		b := start(t, pair())
		b.offered("a")
		b.box("a").running = "new-a"
		id := b.id("a")
		before(b)
		if !b.confirm("a") {
			t.Fatalf("%s: the late confirm is refused", name)
		}
		b.state("a", Healthy)
		confirmed := 0
		for _, d := range b.disk.dispatches {
			if d.Host == "a" && d.State == DispatchConfirmed && d.ConfirmedAt != nil && d.RolloutID == id {
				confirmed++
			}
		}
		if confirmed != 1 {
			t.Errorf("%s: %d rows say that it confirmed: %v", name, confirmed, b.disk.dispatches)
		}
		if b.confirm("a"); len(b.last.Dispatches) > 0 {
			t.Errorf("%s: said again it makes another row", name)
		}
		next := single("s", one(time.Minute, "a", "newer-a"), one(time.Minute, "b", "newer-b"))
		next.signed = b.now
		b.accept(next)
		if ok, _ := b.w.Confirm("a", id, "new-a", b.now); !ok {
			t.Errorf("%s: refused after a newer release", name)
		}
		b.restart()
		if ok, _ := b.w.Confirm("a", id, "new-a", b.now); !ok {
			t.Errorf("%s: refused after a newer release and a restart", name)
		}
	}
}

// The dispatch of a release before is not what a host confirms that runs what the current one declares.
func TestConfirmOfCurrentLeavesOldDispatchUnconfirmed(t *testing.T) {
	b := start(t, pair())
	b.box("a").v1 = true
	b.offered("a")
	next := single("s", one(time.Minute, "a", "newer-a"))
	next.signed = b.now
	b.accept(next)
	b.box("a").running = "newer-a" // by hand, say
	if !b.confirm("a") {
		t.Fatal("refused")
	}
	for _, d := range b.disk.dispatches {
		if want := map[string]string{"new-a": DispatchCancelled, "newer-a": DispatchConfirmed}[d.Closure]; d.State != want {
			t.Errorf("the dispatch of %s is %s, want %s", d.Closure, d.State, want)
		}
	}
}

// A confirm that names an older id of the same intent counts (additions.md §2).
func TestConfirmAcrossResigning_T12(t *testing.T) {
	b := start(t, pair())
	b.offered("a")
	old := b.id("a")
	again := pair()
	again.signed, again.opened = b.now.Add(time.Hour), epoch
	b.now = b.now.Add(5 * time.Minute)
	b.accept(again)
	ok, c := b.w.Confirm("a", old, "new-a", b.now)
	b.took(c)
	if !ok {
		t.Error("refused")
	}
	b.state("a", Healthy)
	if n := len(b.rollout("s").IDs); n != 2 {
		t.Errorf("%d ids", n)
	}
}

// A staged update waits for its reboot as long as people like, holds no slot, and confirms after it.
func TestDeferredUpdateWaitsForPeople_A17_A18(t *testing.T) {
	s := spec{
		channels: []channelSpec{{name: "s", fresh: 100000, waves: []waveSpec{one(time.Minute, "a", "new-a", "b", "new-b")}}},
		budgets:  []budgetSpec{{tag: "x", hosts: []string{"a", "b"}, max: 1}},
	}
	b := start(t, s)
	b.offered("a")
	b.report("a", Report{Event: "activation-deferred", Closure: "new-a"})
	b.offered("b")
	b.box("b").running = "new-b"
	b.confirm("b")
	for range 72 {
		b.pass(time.Minute)
		b.refused("a", CodeDeferred)
		b.checkin("b")
	}
	b.wantRollout("s", Executing, 0)
	b.restart()
	b.refused("a", CodeDeferred)
	b.box("a").boot, b.box("a").running = "boot-2", "new-a"
	b.checkin("a")
	if !b.confirm("a") {
		t.Error("the confirm after the reboot is refused")
	}
	b.pass(time.Minute)
	b.checkin("a")
	b.checkin("b")
	b.wantRollout("s", RolloutConverged, 0)
}

// What waits for a reboot says who does it; a policy of an unknown form says nothing.
func TestDeferredHostSaysWhoReboots(t *testing.T) {
	for policy, want := range map[string]string{
		"": "reboot the host", `{"mode":"never"}`: "reboot the host", `{"mode":1}`: "reboot the host",
		`[]`:                                     "reboot the host",
		`{"mode":"window","window":"Sun 03:00"}`: "in its window, Sun 03:00", `{"mode":"immediate","window":null}`: "at once",
	} {
		s := single("s", one(time.Minute, "a", "new-a"))
		s.reboots = map[string]string{"a": policy}
		b := start(t, s)
		b.offered("a")
		b.report("a", Report{Event: "activation-deferred", Closure: "new-a"})
		if r := b.w.Decide("a", b.now).Reason; r.Code != CodeDeferred || !strings.Contains(r.Text+"; "+r.Next, want) {
			t.Errorf("%s: %+v", policy, r)
		}
	}
}

// A host that reboots by itself and at once holds its slot while it is away, and not for ever.
func TestRebootAtOnceHoldsItsSlot(t *testing.T) {
	s := spec{
		channels: []channelSpec{{name: "s", fresh: 100000, waves: []waveSpec{one(time.Minute, "a", "new-a", "b", "new-b")}}},
		budgets:  []budgetSpec{{tag: "x", hosts: []string{"a", "b"}, max: 1}},
		until:    fleet.SlotConfirmed,
	}
	for _, back := range []bool{true, false} {
		b := start(t, s)
		b.offered("a")
		b.report("a", Report{Event: "activation-deferred", Closure: "new-a", Reboots: true})
		b.refused("b", CodeBudget)
		b.restart()
		b.checkin("a")
		b.refused("b", CodeBudget)
		if back {
			b.pass(2 * time.Minute)
			b.refused("b", CodeBudget)
			b.box("a").boot, b.box("a").running = "boot-2", "new-a"
			b.checkin("a")
			if !b.confirm("a") {
				t.Error("the confirm after the reboot is refused")
			}
		} else {
			b.pass(DefaultLimits().Lease + DefaultLimits().ConfirmWindow + DefaultLimits().Margin)
		}
		b.offered("b")
	}
}

func TestRebootThatFellBackIsAnAttempt(t *testing.T) {
	b := start(t, single("s", one(time.Minute, "a", "new-a")))
	b.checkin("a")
	b.report("a", Report{Event: "activation-deferred", Closure: "new-a"})
	b.box("a").boot = "boot-2"
	b.offered("a") // once more, at once
	if got := b.w.hosts.byName["a"].rec.Attempt; got != 2 {
		t.Errorf("attempt %d", got)
	}
}

// A superseded lease ends before a v1 agent gets the next target; one that knows leases drops it by itself.
func TestSupersededLease(t *testing.T) {
	for _, v1 := range []bool{true, false} {
		b := start(t, pair())
		b.box("a").v1 = v1
		b.offered("a")
		b.pass(time.Minute)
		next := single("s", one(time.Minute, "a", "newer-a"))
		next.signed = b.now
		b.accept(next)
		if v1 {
			b.refused("a", CodeOldLease)
			b.pass(301 * time.Second)
		}
		if got := b.offered("a"); got.Closure != "newer-a" {
			t.Errorf("offered %s", got.Closure)
		}
	}
}

// A request that comes late shows a host on the closure before and has its target dispatched once more. The host, which
// has confirmed and signed so, does not take part, and nobody blames the release for its silence.
func TestLateRequestOfConfirmedHostBlamesNothing(t *testing.T) {
	s := pair()
	s.channels[0].revert = true
	b := start(t, s)
	late := b.observation("a")
	b.update("a")
	x := b.box("a")
	x.confirmed, x.attest, x.phase = ptr(b.now), true, &protocol.Phase{Name: protocol.PhaseIdle}
	b.checkin("a")
	for range DefaultLimits().MaxAttempts {
		b.pass(2 * time.Minute)
		d, c := b.w.Checkin("a", late, b.now)
		b.took(c)
		if d.Target == nil {
			t.Fatal("a late request is not answered like another")
		}
		b.pass(time.Second)
		b.checkin("a")
		b.state("a", Soaked)
	}
	b.pass(time.Hour)
	if q := b.w.Quarantines(); len(q) > 0 {
		t.Errorf("quarantined: %+v", q)
	}
	if r := b.rollout("s"); r.HaltReason != "" {
		t.Errorf("halted: %s", r.HaltReason)
	}
}

// A host that never confirmed is asked to go back, and does. That says no more against its closure than its silence
// did.
func TestGoingBackAsAskedQuarantinesNothing(t *testing.T) {
	s := pair()
	s.channels[0].revert = true
	b := start(t, s)
	for range DefaultLimits().MaxAttempts {
		b.offered("a")
		b.box("a").running = "new-a"
		for range 30 {
			b.pass(time.Minute)
			b.checkin("a")
		}
		b.box("a").running = "old-a"
	}
	b.state("a", Failed)
	b.box("a").running = "new-a"
	if b.checkin("a").Rollback == nil {
		t.Fatal("the host is not asked to go back")
	}
	b.box("a").running = "old-a"
	b.report("a", Report{
		Event: protocol.EventClosureQuarantined, Closure: "new-a", Reason: string(protocol.CauseRecalled),
	})
	if q := b.w.Quarantines(); len(q) > 0 {
		t.Errorf("quarantined before the host said that it went back: %+v", q)
	}
	b.report("a", Report{Event: protocol.EventRollbackTriggered, Reason: protocol.CauseRecalled.With(CodeUnconfirmed)})
	b.state("a", Reverted)
	if q := b.w.Quarantines(); len(q) > 0 {
		t.Errorf("quarantined: %+v", q)
	}
}
