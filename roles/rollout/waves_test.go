package rollout

import (
	"errors"
	"reflect"
	"strings"
	"testing"
	"time"

	"nixfleet/roles/protocol"
)

func three(soak time.Duration) spec {
	return single("s", one(soak, "a", "new-a"), one(soak, "b", "new-b", "c", "new-c"), one(soak, "d", "new-d"))
}

func TestWavesGoOneAfterAnother(t *testing.T) {
	b := start(t, three(10*time.Minute))
	b.live(5 * time.Minute)
	b.wantRollout("s", Executing, 0)
	b.live(6 * time.Minute)
	b.wantRollout("s", Executing, 1)
	b.live(9 * time.Minute)
	b.wantRollout("s", Executing, 1)
	b.live(2 * time.Minute)
	b.wantRollout("s", Executing, 2)
	b.live(12 * time.Minute)
	b.wantRollout("s", RolloutConverged, 2)
}

// A re-signed release renews its rollout: same wave, same clocks, new id.
func TestResigningSkipsNoSoak_T12(t *testing.T) {
	b := start(t, three(10*time.Minute))
	b.live(6 * time.Minute)
	again := three(10 * time.Minute)
	again.signed, again.opened = b.now, epoch
	before := b.rollout("s")
	b.accept(again)
	after := b.rollout("s")
	if after.RolloutID == before.RolloutID || after.Intent != before.Intent || after.WaveSince != before.WaveSince {
		t.Errorf("before %+v\nafter  %+v", before.Rollout, after.Rollout)
	}
	b.live(4 * time.Minute)
	b.wantRollout("s", Executing, 0)
	b.live(time.Minute)
	b.wantRollout("s", Executing, 1)
}

// A host that was on its target already soaks from when it was first seen well in this rollout.
func TestHostAlreadyOnTargetStillSoaks(t *testing.T) {
	b := start(t, three(10*time.Minute))
	b.box("a").running = "new-a"
	b.live(9 * time.Minute)
	b.wantRollout("s", Executing, 0)
	b.live(2 * time.Minute)
	b.wantRollout("s", Executing, 1)
}

func TestRunningAnotherClosureVoidsTheSoak(t *testing.T) {
	b := start(t, three(10*time.Minute))
	b.live(9 * time.Minute)
	b.box("a").running = "by-hand"
	b.takes("a")
	b.live(5 * time.Minute)
	b.wantRollout("s", Executing, 0)
	b.live(7 * time.Minute)
	b.wantRollout("s", Executing, 1)
}

// takes checks in and takes whatever comes.
func (b *bench) takes(h string) {
	if d := b.checkin(h); d.Target != nil {
		b.box(h).running = d.Target.Closure
		b.confirm(h)
	}
}

// After the database was lost the soak goes on where the hosts attest that it was: not earlier than the release was
// opened, and never shorter than declared.
func TestSoakIsRestoredFromAttestations(t *testing.T) {
	s := three(10 * time.Minute)
	for _, c := range []struct {
		name      string
		confirmed time.Duration // before the wipe at minute 8
		wait      time.Duration // after it
	}{
		{"as confirmed", 6 * time.Minute, 4 * time.Minute},
		{"clamped to openedAt", 500 * time.Hour, 2 * time.Minute},
		{"clamped to now", -time.Hour, 10 * time.Minute},
	} {
		t.Run(c.name, func(t *testing.T) {
			b := start(t, s)
			b.now = epoch.Add(8 * time.Minute)
			x := b.box("a")
			x.running, x.attest, x.confirmed = "new-a", true, ptr(b.now.Add(-c.confirmed))
			b.wipe()
			b.checkin("a")
			b.state("a", Healthy)
			b.pass(c.wait - time.Second)
			b.checkin("a")
			b.state("a", Healthy)
			b.pass(time.Second)
			b.checkin("a")
			b.state("a", Soaked)
		})
	}
	// An unverified stamp is worth nothing.
	b := start(t, s)
	x := b.box("a")
	x.running, x.confirmed = "new-a", ptr(epoch.Add(-time.Hour))
	b.wipe()
	b.now = b.now.Add(5 * time.Minute)
	b.checkin("a")
	b.pass(9 * time.Minute)
	b.checkin("a")
	b.state("a", Healthy)
}

// A wave that was handed out and of which nobody was heard again proves nothing.
func TestSilentCanaryOpensNoWave(t *testing.T) {
	b := start(t, three(time.Minute))
	b.update("a")
	b.box("a").away = true
	b.live(2 * time.Hour)
	b.wantRollout("s", Executing, 0)
	if c := b.rollout("s").Reason.Code; c != CodeWaveUnproven {
		t.Errorf("reason %s", c)
	}
	// An operator may go on without it.
	b.hold(protocol.ActionResume)
	b.live(time.Hour)
	b.wantRollout("s", RolloutConverged, 2)
}

// A host that fell silent after it had started halts the rollout; what that means is known when it is back.
func TestCanaryLostInActivationHalts(t *testing.T) {
	s := three(time.Minute)
	s.channels[0].revert = true
	b := start(t, s)
	b.offered("a")
	b.report("a", Report{Event: "activation-started"})
	b.box("a").away = true
	b.live(30 * time.Minute)
	b.wantRollout("s", Halted, 0)
	b.state("a", Failed)
	b.report("a", Report{Event: "rollback-triggered", Reason: "health gate: nginx.service failed"})
	b.state("a", Reverted)
	b.wantRollout("s", RolloutReverted, 0)
}

// A wave of which no host was heard opens no other one, however long it was open. It does as soon as one of its hosts
// has soaked, or when a release says that it may be empty, which is not another rollout.
func TestWaveThatNobodyTriedOpensNone(t *testing.T) {
	s := three(30 * time.Minute)
	for _, way := range []string{"a host comes back", "it may be empty"} {
		b := start(t, s)
		b.box("a").away = true
		b.live(3 * time.Hour)
		b.wantRollout("s", Executing, 0)
		if r := b.rollout("s").Reason; r.Code != CodeWaveAbsent || !strings.Contains(r.Next, "mayBeEmpty") {
			t.Errorf("the rollout says %+v", r)
		}
		b.refused("b", CodeWave)
		p := b.w.Plan(nil, PlanOptions{}, b.now)
		if c := p.Channels[0]; len(p.Moves) > 0 || c.Reason == nil || c.Reason.Code != CodeWaveAbsent {
			t.Errorf("the plan is %+v, %+v", p.Moves, c.Reason)
		}
		b.restart()
		b.live(time.Hour)
		b.wantRollout("s", Executing, 0)
		if way == "it may be empty" {
			declared := s
			declared.signed, declared.opened, declared.maybe = b.now, epoch, true
			b.accept(declared)
		} else {
			b.box("a").away = false
			b.live(31 * time.Minute)
		}
		b.wantRollout("s", Executing, 1)
	}
}

// One host that is away keeps no wave from opening, when another one of its wave has soaked.
func TestWaveDoesNotWaitForOneAbsentHost(t *testing.T) {
	b := start(t, single("s", one(30*time.Minute, "a", "new-a", "b", "new-b"), one(time.Hour, "c", "new-c")))
	b.box("a").away = true
	b.live(32 * time.Minute)
	b.wantRollout("s", Executing, 1)
}

// A wave that may be empty stays open for its soak time all the same.
func TestAbsentWaveStaysOpenForItsSoak(t *testing.T) {
	s := three(30 * time.Minute)
	s.maybe = true
	b := start(t, s)
	b.box("a").away = true
	b.live(29 * time.Minute)
	b.wantRollout("s", Executing, 0)
	b.live(2 * time.Minute)
	b.wantRollout("s", Executing, 1)
}

// Below its threshold a policy that recalls halts; from it on it recalls, also what it had halted before. A host that
// an operator went on without is not counted.
func TestFailureThreshold(t *testing.T) {
	fails := func(b *bench, h string) {
		b.report(h, Report{Event: "activation-started"})
		b.report(h, Report{Event: "activation-failed", Phase: "health-gate: a unit failed"})
	}
	for name, c := range map[string]struct {
		hosts, percent uint32
		want           int // failures until it recalls
	}{
		"none": {0, 0, 1}, "hosts": {2, 0, 2}, "percent": {0, 40, 2}, "rounded up": {0, 41, 3}, "both": {2, 60, 3},
	} {
		s := single("s", one(time.Hour, "a", "new-a", "b", "new-b", "c", "new-c", "d", "new-d", "e", "new-e"))
		s.channels[0].revert, s.channels[0].minHosts, s.channels[0].minPercent = true, c.hosts, c.percent
		b := start(t, s)
		for _, h := range []string{"a", "b", "c", "d", "e"} {
			b.offered(h)
		}
		for i, h := range []string{"a", "b", "c"}[:c.want] {
			fails(b, h)
			want := Halted
			if i+1 == c.want {
				want = Reverting
			}
			if b.wantRollout("s", want, 0); want == Halted && !strings.Contains(b.rollout("s").HaltReason, "recalls") {
				t.Errorf("%s: it halts and says %q", name, b.rollout("s").HaltReason)
			}
			b.restart()
		}
	}
	s := single("s", one(time.Hour, "a", "new-a", "b", "new-b", "c", "new-c"))
	s.channels[0].revert, s.channels[0].minHosts = true, 2
	b := start(t, s)
	for _, h := range []string{"a", "b", "c"} {
		b.offered(h)
	}
	fails(b, "a")
	if _, err := b.w.Hold(b.id("a"), protocol.ActionResume, "op", "", b.now); err != nil {
		t.Fatal(err)
	}
	fails(b, "b")
	b.wantRollout("s", Halted, 0)
}

func TestRollbackAndHalt(t *testing.T) {
	s := three(5 * time.Minute)
	s.channels[0].revert = true
	b := start(t, s)
	b.live(8 * time.Minute) // a soaked, b and c healthy
	b.state("a", Soaked)
	b.report("b", Report{Event: "activation-failed", Phase: "health", Reason: "unit failed"})
	b.state("b", Failed)
	b.wantRollout("s", Reverting, 1)
	for _, h := range []string{"a", "c"} {
		for range 2 { // repeated until the report arrives
			d := b.checkin(h)
			if d.Rollback == nil || d.Rollback.TargetRef != "old-"+h || d.Target != nil {
				t.Fatalf("%s: %+v", h, d)
			}
			b.restart()
		}
		b.box(h).running = "old-" + h
		b.report(h, Report{Event: "rollback-triggered", Reason: "control plane asked"})
		b.state(h, Reverted)
	}
	b.wantRollout("s", Reverting, 1)
	b.box("b").running = "old-b"
	b.checkin("b") // back on its previous closure, although the report got lost
	b.state("b", Reverted)
	b.wantRollout("s", RolloutReverted, 1)
	b.refused("d", CodeReverting)
	if _, err := b.w.Hold(b.id("a"), protocol.ActionResume, "op", "", b.now); !errors.Is(err, ErrRecalled) {
		t.Errorf("resume: %v", err)
	}
	if _, err := b.w.Retry("b", "op", "", b.now); !errors.Is(err, ErrRecalled) {
		t.Errorf("retry: %v", err)
	}
}

// A confirm during a recall is refused, so that the host goes back by itself.
func TestConfirmDuringRecallIsRefused(t *testing.T) {
	s := single("s", one(time.Minute, "a", "new-a", "b", "new-b"))
	s.channels[0].revert = true
	b := start(t, s)
	b.offered("a")
	b.offered("b")
	b.report("a", Report{Event: "activation-failed", Phase: "switch"})
	b.box("b").running = "new-b"
	if b.confirm("b") {
		t.Error("confirmed")
	}
}

// After the database was lost, halts come back from what the agents report.
func TestHaltReturnsFromReportsAfterWipe(t *testing.T) {
	b := start(t, three(time.Minute))
	b.offered("a")
	b.report("a", Report{Event: "activation-failed", Phase: "switch"})
	b.wipe()
	b.wantRollout("s", Executing, 0)
	b.report("a", Report{Event: "closure-quarantined", Closure: "new-a", Reason: "failed twice"})
	told := start(t, three(time.Minute))
	told.wipe()
	told.box("a").held = "quarantined new-a"
	told.checkin("a")
	told.wantRollout("s", Halted, 0)
	b.wantRollout("s", Halted, 0)
	if q := b.w.Quarantines(); len(q) != 1 || q[0].Closure != "new-a" {
		t.Errorf("quarantines %+v", q)
	}
}

func TestHaltEndsWithNewIntentOrResume(t *testing.T) {
	b := start(t, three(time.Minute))
	b.offered("a")
	b.report("a", Report{Event: "activation-failed", Phase: "switch"})
	b.wantRollout("s", Halted, 0)
	b.hold(protocol.ActionResume)
	b.state("a", Skipped)
	b.live(time.Hour)
	b.wantRollout("s", RolloutConverged, 2)
	b.refused("a", CodeTolerated)

	next := single("s", one(0, "a", "newer-a"))
	next.signed = b.now
	b.accept(next)
	b.offered("a")
	if len(b.w.Quarantines()) != 0 {
		t.Error("a quarantine of what nothing declares is kept")
	}
}

func TestRetryPassesTheHaltForOneHost(t *testing.T) {
	b := start(t, single("s", one(time.Minute, "a", "new-a", "b", "new-b")))
	b.offered("a")
	b.report("a", Report{Event: "activation-failed", Phase: "switch"})
	b.refused("b", CodeHalted)
	b.retry("a")
	b.update("a")
	b.state("a", Healthy)
	b.refused("b", CodeHalted)
	b.hold(protocol.ActionResume)
	b.offered("b")
}

func TestReportsThatDoNotCountChangeNothing(t *testing.T) {
	b := start(t, three(time.Minute))
	b.offered("a")
	for _, r := range []Report{
		{Event: "activation-failed", RolloutID: b.id("a"), Phase: "switch"}, // bad signature
		{Event: "activation-failed", RolloutID: "elsewhere", Phase: "switch", Counts: true},
		{Event: "no-such-event", RolloutID: b.id("a"), Counts: true},
		{Event: "closure-quarantined", RolloutID: b.id("a"), Closure: "some-other-closure", Counts: true},
	} {
		if c := b.w.Report("a", r, b.now); !c.Empty() {
			t.Errorf("%+v changed %+v", r, c)
		}
	}
	if c := b.w.Report("zz", Report{Event: "activation-failed", Counts: true}, b.now); !c.Empty() {
		t.Error("an unknown host changed something")
	}
}

func TestProbeModes(t *testing.T) {
	p := func(status ...string) (out []protocol.ProbeResult) {
		for _, s := range status {
			out = append(out, protocol.ProbeResult{Status: s})
		}
		return
	}
	for _, c := range []struct {
		mode   string
		probes []protocol.ProbeResult
		want   health
	}{
		{"enforce", p("pass", "pass"), well},
		{"enforce", p("pass", "unknown"), notRun},
		{"enforce", p("pass", "fail"), failing},
		{"enforce", nil, notRun},
		{"permissive", p("pass", "unknown"), well},
		{"permissive", p("unknown"), notRun},
		{"permissive", p("pass", "fail"), failing},
		{"disabled", p("unknown", "fail"), well},
		{"", p("fail"), well},
		{"nonsense", p("fail"), well},
	} {
		if got := judge(c.mode, c.probes); got != c.want {
			t.Errorf("%s %v: %d, want %d", c.mode, c.probes, got, c.want)
		}
	}
}

func TestFailureThatIsNotSustainedIsForgiven(t *testing.T) {
	b := start(t, three(10*time.Minute))
	b.box("a").mode, b.box("a").probe = "enforce", "pass"
	b.update("a")
	for range 5 {
		b.box("a").probe = "fail"
		b.checkin("a")
		b.pass(45 * time.Second)
		b.box("a").probe = "pass"
		b.checkin("a")
		b.pass(30 * time.Second)
	}
	b.wantRollout("s", Executing, 0)
	// Unknown neither fails nor soaks.
	b.box("a").probe = "unknown"
	for range 30 {
		b.checkin("a")
		b.pass(time.Minute)
	}
	b.wantRollout("s", Executing, 0)
	b.state("a", Healthy)
}

// A host held by an edge to an absent host is not waited for either, and comes back with it.
func TestEdgeToAbsentHostHoldsNobody_C17(t *testing.T) {
	s := single("s", one(time.Minute, "a", "new-a", "b", "new-b", "c", "new-c"))
	s.edges = [][2]string{{"a", "b"}}
	b := start(t, s)
	b.box("a").away = true
	b.live(15 * time.Minute)
	b.wantRollout("s", RolloutConverged, 0)
	b.state("b", Skipped)
	b.box("a").away = false
	b.live(10 * time.Minute)
	b.state("a", Converged)
	b.state("b", Converged)
}

// A World made of what was stored, or of its own export, decides like the one that went on.
func TestRestartDecidesTheSame(t *testing.T) {
	s := spec{
		channels: []channelSpec{{name: "s", waves: []waveSpec{
			one(time.Minute, "a", "new-a", "b", "new-b"), one(time.Minute, "c", "new-c", "d", "new-d"),
		}}},
		budgets: []budgetSpec{{tag: "x", hosts: []string{"a", "b", "c", "d"}, max: 1}},
	}
	b := start(t, s)
	for i := range 120 {
		b.pass(17 * time.Second)
		h := []string{"a", "b", "c", "d"}[(i*7)%4]
		switch d := b.checkin(h); {
		case d.Target != nil && i%3 == 0:
			b.report(h, Report{Event: "activation-started"})
		case d.Target != nil || b.w.hosts.byName[h].lease != nil:
			b.box(h).running = "new-" + h
			b.confirm(h)
		}
		if i < 40 {
			continue // let the database get old enough to be believed
		}
		stored := New(b.disk.state(), DefaultLimits(), b.now)
		stored.Accept(b.rel, b.now)
		exported := New(b.w.State(), DefaultLimits(), b.now)
		exported.Accept(b.rel, b.now)
		for _, x := range []string{"a", "b", "c", "d"} {
			want := b.w.Decide(x, b.now)
			for name, w := range map[string]*World{"stored": stored, "exported": exported} {
				o := b.observation(x)
				w.hosts.observe(w.hosts.byName[x], &o, b.now)
				if got := w.Decide(x, b.now); !reflect.DeepEqual(got, want) && b.w.hosts.byName[x].contact.seen.Equal(b.now) {
					t.Fatalf("step %d, %s, %s:\n got %+v\nwant %+v", i, name, x, got, want)
				}
			}
		}
	}
	b.wantRollout("s", RolloutConverged, 1)
}

func TestHoldErrors(t *testing.T) {
	b := start(t, three(time.Minute))
	for _, c := range []struct {
		id, action string
		want       error
	}{
		{"nothing", protocol.ActionPause, ErrNoRollout},
		{b.id("a"), "explode", ErrAction},
	} {
		if _, err := b.w.Hold(c.id, c.action, "op", "", b.now); !errors.Is(err, c.want) {
			t.Errorf("%s %s: %v", c.action, c.id, err)
		}
	}
	if _, err := b.w.Retry("zz", "op", "", b.now); !errors.Is(err, ErrNoHost) {
		t.Errorf("retry of an unknown host: %v", err)
	}
	b.hold(protocol.ActionCancel)
	for _, action := range []string{protocol.ActionPause, protocol.ActionCancel} {
		if _, err := b.w.Hold(b.id("a"), action, "op", "", b.now); !errors.Is(err, ErrOver) {
			t.Errorf("%s of a cancelled rollout: %v", action, err)
		}
	}
}

// The same release again is the same rollout, so that a cancelled one goes on when it is resumed, until there is a
// newer one.
func TestACancelledRolloutHasAWayOn(t *testing.T) {
	b := start(t, three(time.Minute))
	b.hold(protocol.ActionCancel)
	d := b.checkin("a")
	if d.Target != nil || d.Reason.Code != CodeCancelled ||
		!strings.Contains(d.Reason.Next, "nixfleet rollout resume "+b.id("a")+" --reason") {
		t.Fatalf("cancelled: %+v", d)
	}
	b.hold(protocol.ActionResume)
	v, _ := b.w.Rollout(b.id("a"), b.now)
	if v.State != Executing || v.TerminalAt != nil || v.HaltReason != "" {
		t.Errorf("resumed: %+v", v.Rollout)
	}
	if d := b.checkin("a"); d.Target == nil {
		t.Errorf("resumed, and its first host is told nothing: %+v", d.Reason)
	}
}

// A host that moves to another channel takes that channel's rollout, and the old one no longer counts it (T15).
func TestHostMovesBetweenChannels_T15(t *testing.T) {
	two := func(a, bb map[string]string, at time.Time) spec {
		return spec{signed: at, channels: []channelSpec{
			{name: "one", waves: []waveSpec{{soak: time.Second, hosts: a}}},
			{name: "two", waves: []waveSpec{{soak: time.Second, hosts: bb}}},
		}}
	}
	b := start(t, two(map[string]string{"a": "v1-a", "b": "v1-b"}, map[string]string{"c": "v1-c"}, epoch))
	b.offered("a")
	b.accept(two(map[string]string{"b": "v2-b"}, map[string]string{"a": "v2-a", "c": "v2-c"}, epoch.Add(time.Minute)))
	if got := b.offered("a"); got.Channel != "two" || got.Closure != "v2-a" {
		t.Errorf("offered %+v", got)
	}
	checkCounters(t, b.w)
	b.live(20 * time.Minute)
	b.wantRollout("one", RolloutConverged, 0)
	b.wantRollout("two", RolloutConverged, 0)
}

// A release accepted twice changes nothing; a channel that vanished and came back starts anew.
func TestAcceptAgain(t *testing.T) {
	b := start(t, three(time.Minute))
	if c := b.w.Accept(b.rel, b.now); !c.Empty() {
		t.Errorf("changed %+v", c)
	}
	b.live(2 * time.Minute)
	gone := single("other", one(0, "z", "new-z"))
	gone.signed = b.now
	b.accept(gone)
	b.refused("a", CodeNotDeclared)
	b.restart()
	back := three(time.Minute)
	back.signed = b.now
	b.accept(back)
	b.wantRollout("s", Executing, 0)
	b.state("a", Queued)
	checkCounters(t, b.w)
}

// A late joiner that fails after its rollout has converged halts nothing: no wave is left to protect. Others still get
// theirs.
func TestLateJoinerThatFailsHaltsNothing(t *testing.T) {
	for _, revert := range []bool{false, true} {
		s := single("s", one(time.Minute, "a", "new-a", "b", "new-b", "c", "new-c"))
		s.channels[0].revert = revert
		b := start(t, s)
		b.box("b").away, b.box("c").away = true, true
		b.live(20 * time.Minute)
		b.wantRollout("s", RolloutConverged, 0)
		b.box("b").away, b.box("c").away = false, false
		b.offered("b")
		b.report("b", Report{Event: "activation-failed", Phase: "switch"})
		b.state("b", Failed)
		b.refused("b", CodeFailed)
		b.wantRollout("s", RolloutConverged, 0)
		if q := b.w.Quarantines(); len(q) != 1 || q[0].Closure != "new-b" {
			t.Errorf("quarantined: %+v", q)
		}
		b.update("c")
		b.state("a", Converged)
	}
}
