package rollout

import (
	"testing"
	"time"

	"nixfleet/roles/protocol"
)

// accusations are all events by which a host can say that its target failed.
func accusations() []Report {
	return []Report{
		{Event: protocol.EventActivationFailed, Phase: "switch: exit 1"},
		{Event: protocol.EventActivationFailed, Phase: "switch: exit 1", Unsigned: true},
		{Event: protocol.EventRollbackTriggered, Reason: "health-gate: nginx.service failed"},
		{Event: protocol.EventVerifyMismatch, Reason: "expected x, y runs"},
		{Event: protocol.EventClosureQuarantined, Closure: "new-a", Reason: "switch"},
		{Event: protocol.EventComplianceFailure, Reason: "ctl-1"},
		{Event: protocol.EventRuntimeGateError, Reason: "collector"},
		{Event: protocol.EventRealiseFailed, Closure: "new-a", Reason: "realise: no"},
	}
}

// enforced is a channel of two waves that acts on every failure it believes.
func enforced(revert bool) spec {
	s := single("s", one(time.Minute, "a", "new-a", "b", "new-b"), one(time.Minute, "c", "new-c"))
	s.channels[0].mode, s.channels[0].revert = "enforce", revert
	return s
}

// A host that was never dispatched stops nobody, whatever it says and however often, whether its wave is open or not.
func TestOnlyDispatchedHostsAccuse_T20(t *testing.T) {
	for _, revert := range []bool{false, true} {
		for _, liar := range []string{"b", "c"} {
			b := start(t, enforced(revert))
			b.offered("a")
			for range 3 {
				for _, r := range accusations() {
					if r.Closure != "" {
						r.Closure = "new-" + liar
					}
					b.report(liar, r)
				}
				b.box(liar).held = protocol.HeldQuarantined("new-" + liar)
				b.checkin(liar)
				b.pass(time.Minute)
			}
			b.wantRollout("s", Executing, 0)
			if q := b.w.Quarantines(); len(q) != 0 {
				t.Errorf("%s, revert %t: quarantined %+v", liar, revert, q)
			}
			if v, _ := b.w.Host(liar, b.now); len(v.Failures) != 0 {
				t.Errorf("%s, revert %t: failures of a host without the target are outstanding: %v", liar, revert, v.Failures)
			}
		}
	}
}

// A failure that its host should have signed and did not ends the attempt, and no more.
func TestUnsignedFailureEndsTheAttemptOnly_T20(t *testing.T) {
	for _, r := range accusations() {
		if r.Event == protocol.EventClosureQuarantined {
			continue // v1 has no signature for it
		}
		r.Unsigned = true
		b := start(t, enforced(true))
		b.offered("a")
		b.report("a", r)
		b.wantRollout("s", Executing, 0)
		if q := b.w.Quarantines(); len(q) != 0 {
			t.Errorf("%s: quarantined %+v", r.Event, q)
		}
		if v, _ := b.w.Host("a", b.now); len(v.Failures) != 0 || v.State == Failed {
			t.Errorf("%s: %s, outstanding %v", r.Event, v.State, v.Failures)
		}
	}
}

// What halts when it is signed and the host was dispatched, halts. Each event is heard.
func TestDispatchedHostsAccuse(t *testing.T) {
	for _, r := range accusations() {
		if r.Unsigned || r.Event == protocol.EventRealiseFailed {
			continue
		}
		b := start(t, enforced(false))
		b.offered("a")
		b.report("a", r)
		if got := b.rollout("s").State; got != Halted {
			t.Errorf("%s: the rollout is %s", r.Event, got)
		}
		if v, _ := b.w.Host("a", b.now); v.State != Failed && v.State != Reverted {
			t.Errorf("%s: the host is %s", r.Event, v.State)
		}
	}
}

// A host that runs its target may accuse it although no dispatch is known: it was switched by hand, say.
func TestHostOnItsTargetAccuses(t *testing.T) {
	b := start(t, enforced(false))
	b.box("c").running = "new-c"
	b.checkin("c")
	b.report("c", Report{Event: protocol.EventRollbackTriggered, Reason: "health-gate: x"})
	b.wantRollout("s", Halted, 0)
}

// One dispatch is one failure: after a resume the same words, and others about the same dispatch, stop nothing.
func TestOneFailurePerDispatch_T20(t *testing.T) {
	for _, first := range accusations() {
		if first.Unsigned || first.Event == protocol.EventRealiseFailed {
			continue
		}
		b := start(t, enforced(false))
		b.offered("a")
		b.report("a", first)
		b.wantRollout("s", Halted, 0)
		b.hold(protocol.ActionResume)
		b.wantRollout("s", Executing, 0)
		for range 3 {
			for _, again := range accusations() {
				b.report("a", again)
			}
			b.box("a").held = protocol.HeldQuarantined("new-a")
			b.checkin("a")
			b.pass(time.Minute)
			b.restart()
		}
		if got := b.rollout("s"); got.State != Executing {
			t.Errorf("after %s and a resume the rollout is %s: %s", first.Event, got.State, got.HaltReason)
		}
		b.state("a", Skipped)
	}
}

// Probes that fail again after a resume are the failure that the operator has seen.
func TestProbesDoNotHaltAgainAfterResume_T20(t *testing.T) {
	b := start(t, enforced(false))
	a := b.box("a")
	a.mode, a.probe = "enforce", "pass"
	b.update("a")
	failFor := func() {
		a.probe = "fail"
		for range 5 {
			b.checkin("a")
			b.pass(30 * time.Second)
		}
	}
	failFor()
	b.wantRollout("s", Halted, 0)
	b.hold(protocol.ActionResume)
	a.confirmed, a.attest = ptr(b.now), true
	failFor()
	b.wantRollout("s", Executing, 0)
	a.probe = "pass"
	b.checkin("a")
	b.state("a", Soaked)
	failFor()
	b.wantRollout("s", Executing, 0)
	b.state("a", Skipped)
}

// A retry is a new dispatch: what is told of the last one before the new one is given does not count, and what is told
// of the new one does.
func TestRetryIsJudgedByItsOwnFailure_T20(t *testing.T) {
	b := start(t, enforced(false))
	b.offered("a")
	b.report("a", Report{Event: protocol.EventActivationFailed, Phase: "switch"})
	b.hold(protocol.ActionResume)
	b.retry("a")
	b.report("a", Report{Event: protocol.EventActivationFailed, Phase: "switch"})
	b.report("a", Report{Event: protocol.EventClosureQuarantined, Closure: "new-a", Reason: "switch"})
	b.wantRollout("s", Executing, 0)
	b.offered("a")
	b.report("a", Report{Event: protocol.EventClosureQuarantined, Closure: "new-a", Reason: "switch"})
	b.wantRollout("s", Executing, 0)
	b.report("a", Report{Event: protocol.EventActivationFailed, Phase: "switch"})
	b.wantRollout("s", Halted, 0)
}

// After the database was lost a host's own word about its declared closure counts without a known dispatch, for one
// lease plus confirm window and not a moment longer.
func TestAccusationsAfterAnEmptyStart_T20(t *testing.T) {
	limits := DefaultLimits()
	window := limits.Lease + limits.ConfirmWindow
	for _, c := range []struct {
		after time.Duration
		r     Report
		want  RolloutState
	}{
		{0, Report{Event: protocol.EventActivationFailed, Phase: "switch"}, Halted},
		{window - time.Second, Report{Event: protocol.EventActivationFailed, Phase: "switch"}, Halted},
		{window, Report{Event: protocol.EventActivationFailed, Phase: "switch"}, Executing},
		{0, Report{Event: protocol.EventActivationFailed, Phase: "switch", Unsigned: true}, Executing},
		{0, Report{Event: protocol.EventClosureQuarantined, Closure: "new-a"}, Halted},
		{0, Report{Event: protocol.EventClosureQuarantined, Closure: "old-a"}, Executing},
		{window, Report{Event: protocol.EventClosureQuarantined, Closure: "new-a"}, Executing},
	} {
		b := start(t, enforced(false))
		b.wipe()
		b.pass(c.after)
		b.report("a", c.r)
		if got := b.rollout("s").State; got != c.want {
			t.Errorf("%s after %s: %s, want %s", c.r.Event, c.after, got, c.want)
		}
	}
}

// A v1 agent that deferred its target forgets the dispatch over the reboot. It runs its declared closure under a new
// boot id then.
func TestDeferredV1HostArrivesByItsReboot(t *testing.T) {
	for _, restart := range []bool{false, true} {
		b := start(t, single("s", one(time.Minute, "a", "new-a")))
		a := b.box("a")
		a.v1 = true
		b.offered("a")
		b.report("a", Report{Event: protocol.EventActivationDeferred, Closure: "new-a"})
		b.pass(time.Hour)
		b.refused("a", CodeDeferred)
		if restart {
			b.restart()
		}
		a.boot, a.running = "boot-2", "new-a"
		b.refused("a", CodeSoaking)
		b.state("a", Healthy)
		b.pass(time.Minute)
		b.checkin("a")
		b.wantRollout("s", RolloutConverged, 0)
		for _, d := range b.disk.dispatches {
			if d.State != DispatchConfirmed {
				t.Errorf("the dispatch is %s", d.State)
			}
		}
	}
	// An agent of ours proves its target first, and says so with a confirm.
	b := start(t, single("s", one(time.Minute, "a", "new-a")))
	b.offered("a")
	b.report("a", Report{Event: protocol.EventActivationDeferred, Closure: "new-a"})
	b.box("a").boot, b.box("a").running = "boot-2", "new-a"
	b.checkin("a")
	b.state("a", Deferred)
	// Nor has a v1 host arrived that runs it without a reboot.
	v1 := start(t, single("s", one(time.Minute, "a", "new-a")))
	v1.box("a").v1 = true
	v1.offered("a")
	v1.report("a", Report{Event: protocol.EventActivationDeferred, Closure: "new-a"})
	v1.box("a").running = "new-a"
	v1.checkin("a")
	v1.state("a", Deferred)
}

// The reboot of a deferred v1 host may come after the next release, which wants the same closure or another one.
func TestDeferredV1HostArrivesInANewerRelease(t *testing.T) {
	for closure, want := range map[string]string{"new-a": CodeSoaking, "newer-a": ""} {
		b := start(t, single("s", one(time.Minute, "a", "new-a")))
		a := b.box("a")
		a.v1 = true
		b.offered("a")
		b.report("a", Report{Event: protocol.EventActivationDeferred, Closure: "new-a"})
		next := single("s", one(2*time.Minute, "a", closure))
		next.signed = epoch.Add(time.Minute)
		b.pass(time.Minute)
		b.accept(next)
		a.boot, a.running = "boot-2", "new-a"
		if d := b.checkin("a"); want != "" && d.Reason.Code != want ||
			want == "" && (d.Target == nil || d.Target.Closure != closure) {
			t.Errorf("%s: %+v", closure, d)
		}
		if v, _ := b.w.Host("a", b.now); v.PendingReboot {
			t.Errorf("%s: a reboot is still waited for", closure)
		}
	}
}

// A v1 agent tells verify-mismatch when its switch ended on a third closure. It has gone back and quarantined the
// target by then.
func TestV1VerifyMismatchIsAFailureAtOnce(t *testing.T) {
	b := start(t, single("s", one(time.Minute, "a", "new-a", "b", "new-b")))
	b.box("a").v1 = true
	b.offered("a")
	b.report("a", Report{Event: protocol.EventVerifyMismatch, Reason: "expected new-a, third runs"})
	b.wantRollout("s", Halted, 0)
	b.report("a", Report{Event: protocol.EventRollbackTriggered, Reason: "post-switch verify mismatch"})
	b.state("a", Reverted)
	if q := b.w.Quarantines(); len(q) != 1 || q[0].Closure != "new-a" {
		t.Errorf("quarantines %+v", q)
	}
}

// A v1 agent that has quarantined its target answers an offer with closure-quarantined. It counts for the leased
// closure alone.
func TestV1QuarantineAnswersAnOffer(t *testing.T) {
	for _, wiped := range []bool{false, true} {
		b := start(t, single("s", one(time.Minute, "a", "new-a", "b", "new-b")))
		b.box("a").v1 = true
		if wiped {
			b.wipe()
			b.pass(time.Hour)
		}
		b.offered("a")
		b.report("a", Report{Event: protocol.EventClosureQuarantined, Closure: "older-a", Reason: "phase=switch"})
		b.wantRollout("s", Executing, 0)
		b.report("a", Report{Event: protocol.EventClosureQuarantined, Closure: "new-a", Reason: "phase=switch"})
		b.wantRollout("s", Halted, 0)
	}
}
