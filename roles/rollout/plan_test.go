package rollout

import (
	"reflect"
	"slices"
	"testing"
	"time"

	"nixfleet/nixops/fleet"
)

// A plan is what then happens, when every host takes a minute and nothing fails.
func TestPlanForesees(t *testing.T) {
	s := spec{
		channels: []channelSpec{
			{name: "edge", waves: []waveSpec{one(10*time.Minute, "a", "new-a"), one(5*time.Minute, "b", "new-b", "c", "new-c")}},
			{name: "stable", waves: []waveSpec{one(0, "d", "new-d", "e", "new-e")}},
		},
		order:   [][2]string{{"edge", "stable"}},
		budgets: []budgetSpec{{tag: "x", hosts: []string{"b", "c"}, max: 1}},
	}
	first := s
	first.channels = []channelSpec{
		{name: "edge", waves: []waveSpec{one(0, "a", "old-a", "b", "old-b", "c", "old-c", "d", "old-d", "e", "old-e")}}}
	b := start(t, first)
	b.box("e").away = true
	for range 3 {
		for _, h := range []string{"a", "b", "c", "d"} {
			b.checkin(h)
		}
		b.pass(time.Minute)
	}
	b.pass(time.Hour)
	for _, h := range []string{"a", "b", "c", "d"} {
		b.checkin(h)
	}
	s.signed, s.until = b.now, fleet.SlotConfirmed
	before := b.w.State()
	v := b.w.Plan(s.release(), PlanOptions{}, b.now)
	if !reflect.DeepEqual(before, b.w.State()) {
		t.Fatal("planning changed the world")
	}
	var got []string
	for _, m := range v.Moves {
		got = append(got, m.Host+" "+m.At.Sub(b.now).String()+" "+*m.From+" to "+m.To)
	}
	want := []string{
		"a 0s old-a to new-a", "b 11m0s old-b to new-b", "c 12m0s old-c to new-c", "d 18m0s old-d to new-d",
	}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("moves\n got %q\nwant %q", got, want)
	}
	// Where slots are held until the soak is over, as in v1, the plan says how long that takes.
	longer := s
	longer.until = ""
	moves := b.w.Plan(longer.release(), PlanOptions{}, b.now).Moves
	if at := moves[2].At.Sub(b.now); moves[2].Host != "c" || at != 17*time.Minute {
		t.Errorf("the plan has %s move at %s", moves[2].Host, at)
	}
	if len(v.Waves) != 3 || v.Waves[1].Wave != 1 || v.Waves[1].At.Sub(b.now) != 11*time.Minute ||
		v.Waves[2].Channel != "stable" {
		t.Errorf("waves %+v", v.Waves)
	}
	if len(v.Blocked) != 1 || v.Blocked[0].Host != "e" || v.Blocked[0].Reason.Code != CodeOffline {
		t.Errorf("blocked %+v", v.Blocked)
	}
	for _, c := range v.Channels {
		if c.State != string(RolloutConverged) || c.Renewed {
			t.Errorf("channel %+v", c)
		}
	}
}

// A wait ends between two milliseconds, a tick does not: one that came back for
// it at the same moment for ever kept a plan from ending.
func TestTicksGoOn(t *testing.T) {
	b := start(t, spec{
		channels: []channelSpec{{name: "edge", waves: []waveSpec{one(time.Minute, "a", "new", "b", "new")}}},
		budgets:  []budgetSpec{{tag: "x", hosts: []string{"a", "b"}, max: 1}},
	})
	for _, h := range []string{"a", "b"} {
		b.w.Checkin(h, Observation{Closure: "old", KnowsLease: true, Wait: 3*time.Minute + 910903}, b.now)
	}
	now, n := b.now, 0
	for _, next := b.w.Tick(now); !next.IsZero() && n < 100; n++ {
		if !next.After(now) {
			t.Fatalf("the tick at %s wants to come back at %s", now, next)
		}
		now = next
		_, next = b.w.Tick(now)
	}
	if n < 2 {
		t.Errorf("only %d ticks", n)
	}
}

func TestPlanWithoutControlPlane(t *testing.T) {
	w := New(State{}, DefaultLimits(), epoch)
	v := w.Plan(three(time.Minute).release(), PlanOptions{AssumePresent: true}, epoch)
	if len(v.Moves) != 4 || len(v.Blocked) != 0 || v.Channels[0].State != string(RolloutConverged) {
		t.Errorf("%+v", v)
	}
	if empty := w.Plan(nil, PlanOptions{}, epoch); len(empty.Moves) != 0 {
		t.Errorf("a plan without a release: %+v", empty)
	}
}

// What is blocked in earnest is blocked in the plan, for the same reason.
func TestPlanShowsWhatBlocks(t *testing.T) {
	b := start(t, three(time.Minute))
	b.offered("a")
	b.report("a", Report{Event: "activation-failed", Phase: "switch"})
	b.checkin("b")
	v := b.w.Plan(nil, PlanOptions{}, b.now)
	if len(v.Moves) != 0 || v.Channels[0].State != string(Halted) || !v.Channels[0].Renewed ||
		v.Channels[0].Reason.Code != CodeHalted {
		t.Errorf("%+v", v)
	}
	for _, x := range v.Blocked {
		if x.Host == "b" && x.Reason.Code != CodeHalted {
			t.Errorf("%+v", x)
		}
	}
}

// A host that has its target and has yet to confirm it is under way, not offered it again later.
func TestPlanKnowsWhoIsUnderWay(t *testing.T) {
	b := start(t, three(time.Minute))
	b.offered("a")
	offered := b.now
	b.pass(10 * time.Second)
	b.checkin("b")
	v := b.w.Plan(nil, PlanOptions{}, b.now)
	if len(v.Moves) == 0 || v.Moves[0].Host != "a" || !v.Moves[0].At.Equal(offered) {
		t.Fatalf("moves %+v", v.Moves)
	}
	for _, m := range v.Moves[1:] {
		if m.Host == "a" || m.At.Before(b.now) {
			t.Errorf("%+v", m)
		}
	}
}

// Without a release a plan is of the one in force, also when a copy is asked: the control plane plans with one.
func TestPlanOfACopy(t *testing.T) {
	b := start(t, three(time.Minute))
	b.checkin("a")
	v, of := b.w.Plan(nil, PlanOptions{}, b.now), b.w.Clone(b.now).Plan(nil, PlanOptions{}, b.now)
	if len(v.Moves) == 0 || len(v.Channels) != 1 || !v.Channels[0].Renewed {
		t.Fatalf("%+v", v)
	}
	if !reflect.DeepEqual(v, of) {
		t.Errorf("a copy plans\n%+v\nthe world\n%+v", of, v)
	}
}

// A plan asks each host a few times, however few may change at the same time and however many waves there are.
func TestPlanAsksSeldom(t *testing.T) {
	all, asked := gates, 0
	defer func() { gates = all }()
	gates = slices.Clone(all)
	for i := range gates {
		if check := gates[i].check; gates[i].name == "convergence" {
			gates[i].check = func(s subject) *hold {
				asked++
				return check(s)
			}
		}
	}
	const n = 900
	for _, waves := range []int{1, 4, 90} {
		for _, budget := range []budgetSpec{{max: 1}, {max: 30}, {pct: 10, max: -1}, {max: -1}} {
			asked = 0
			v := New(State{}, DefaultLimits(), epoch).
				Plan(fleetOf(n, waves, budget).release(), PlanOptions{AssumePresent: true}, epoch)
			if len(v.Moves) != n || asked > 6*n {
				t.Errorf("%d waves, budget %+v: %d moves, %d questions", waves, budget, len(v.Moves), asked)
			}
		}
	}
}

// The hosts that are there stay there: what a reboot holds up is not offline because the plan's time is over.
func TestPlanEndsBeforeItsHostsLeave(t *testing.T) {
	b := start(t, three(time.Minute))
	b.offered("a")
	b.report("a", Report{Event: "activation-deferred"})
	for _, h := range []string{"b", "c", "d"} {
		b.refused(h, CodeWave)
	}
	v := b.w.Plan(nil, PlanOptions{}, b.now)
	if len(v.Blocked) != 4 || v.Blocked[0].Reason.Code != CodeDeferred {
		t.Errorf("blocked %+v", v.Blocked)
	}
	for _, x := range v.Blocked[1:] {
		if x.Reason.Code != CodeWave {
			t.Errorf("blocked %+v", x)
		}
	}
}
