package rollout

import (
	"strings"
	"testing"
	"time"

	"nixfleet/roles/protocol"
)

// speaker is one of those that answer under the name of a host.
type speaker struct {
	boot    string
	started time.Time // of its agent
	closure string
	v1      bool
}

// speaks checks in for a machine with what it said at a time.
func (b *bench) speaks(h string, m speaker, said time.Time) Decision {
	d, c := b.w.Checkin(h, Observation{
		Closure: m.closure, BootID: m.boot, KnowsLease: !m.v1, Uptime: said.Sub(m.started).Truncate(time.Second),
	}, b.now)
	b.took(c)
	return d
}

// Two machines of one identity are noticed when both go on speaking, and named. Neither is given a target, nothing they
// say is counted, and that is so after a restart, until a person acts.
func TestTwoMachinesOfOneName(t *testing.T) {
	for way, act := range map[string]func(b *bench) (Change, error){
		"retry":  func(b *bench) (Change, error) { return b.w.Retry("a", "ann", "the clone is off", b.now) },
		"revoke": func(b *bench) (Change, error) { return b.w.Revoked("a", b.now), nil },
	} {
		t.Run(way, func(t *testing.T) {
			b := start(t, single("s", one(0, "a", "new-a", "b", "new-b"), one(0, "c", "new-c")))
			original, clone := speaker{boot: "boot-1", started: b.now.Add(-time.Hour), closure: "old-a"},
				speaker{boot: "boot-2", started: b.now, closure: "old-a"}
			b.update("b")
			given := b.speaks("a", original, b.now)
			if given.Target == nil {
				t.Fatal("one machine is not given its target")
			}
			for range 2 {
				b.pass(20 * time.Second)
				b.speaks("a", clone, b.now)
				b.pass(20 * time.Second)
				b.speaks("a", original, b.now)
			}
			for range 2 {
				for _, m := range []speaker{clone, original} {
					if d := b.speaks("a", m, b.now); d.Target != nil || d.Reason.Code != CodeTwoMachines ||
						!strings.HasPrefix(d.Reason.Text, "two machines answer as a, with boot ids boot-") {
						t.Fatalf("%s is told %+v", m.boot, d)
					}
					b.pass(10 * time.Second)
				}
				b.restart()
			}
			b.report("a", Report{Event: protocol.EventActivationFailed, Closure: "new-a", Phase: "health-gate: a unit failed"})
			if r := b.rollout("s"); r.State != Executing && r.State != RolloutConverged || len(b.w.Quarantines()) > 0 {
				t.Errorf("what a clone said counted: %s, %+v", r.State, b.w.Quarantines())
			}
			if v, _ := b.w.Host("a", b.now); v.Twins == nil || !v.Twins.Held || v.State != Skipped {
				t.Errorf("the view of the host is %+v", v)
			}
			b.box("b").wait = time.Hour
			b.checkin("b")
			b.offered("c") // nobody waits for it
			c, err := act(b)
			if err != nil {
				t.Fatal(err)
			}
			b.took(c)
			b.pass(5 * time.Second)
			if d := b.speaks("a", original, b.now); d.Target == nil {
				t.Errorf("after a person has acted it is told %+v", d.Reason)
			}
			b.restart()
			if v, _ := b.w.Host("a", b.now); v.Twins != nil {
				t.Errorf("it is remembered although a person has acted: %+v", v.Twins)
			}
		})
	}
}

// Two connections in use at once prove it when boot ids cannot.
func TestTwoConnectionsOfOneName(t *testing.T) {
	b := start(t, pair())
	o := b.observation("a")
	b.checkin("a")
	o.Twin = true
	d, c := b.w.Checkin("a", o, b.now)
	if b.took(c); d.Reason.Code != CodeTwoMachines || !strings.Contains(d.Reason.Text, "both with boot id boot-1") {
		t.Errorf("it is told %+v", d)
	}
}

// Agents of v1 are named, and go on as they did.
func TestTwoMachinesOfV1AreNamed(t *testing.T) {
	b := start(t, pair())
	x, y := speaker{boot: "boot-1", started: b.now.Add(-time.Hour), closure: "old-a", v1: true},
		speaker{boot: "boot-2", started: b.now.Add(-time.Minute), closure: "old-a", v1: true}
	for range 3 {
		b.speaks("a", x, b.now)
		b.pass(time.Minute)
		b.speaks("a", y, b.now)
		b.pass(time.Minute)
	}
	v, _ := b.w.Host("a", b.now)
	if v.Twins == nil || v.Twins.Held || v.Reason.Code == CodeTwoMachines {
		t.Errorf("two agents of v1 are %+v, %+v", v.Twins, v.Reason)
	}
	named := 0
	for _, e := range b.disk.events {
		if e.Kind == protocol.LogTwoMachines && e.Host == "a" {
			named++
		}
	}
	if named != 1 {
		t.Errorf("they were named %d times", named)
	}
}

// A reboot, an agent that was started anew, a request that was on its way for long or comes again, and a snapshot that
// was restored are one machine.
func TestOneMachineIsNotTwo(t *testing.T) {
	begin := epoch.Add(-time.Hour)
	first, second := speaker{boot: "boot-1", started: begin, closure: "old-a"},
		speaker{boot: "boot-2", started: epoch.Add(90 * time.Second), closure: "old-a"}
	for name, story := range map[string]func(b *bench){
		"reboots": func(b *bench) {
			for i := range 5 {
				m := speaker{boot: "boot-" + string(rune('3'+i)), started: b.now, closure: "old-a"}
				for range 3 {
					b.pass(time.Minute)
					b.speaks("a", m, b.now)
				}
			}
		},
		"late requests": func(b *bench) {
			for range 4 {
				b.pass(time.Minute)
				b.speaks("a", second, b.now)
				b.pass(time.Second)
				b.speaks("a", first, epoch.Add(80*time.Second))
			}
		},
		"a late request that is as old as a live agent would be": func(b *bench) {
			for range 3 {
				b.pass(time.Minute)
				b.speaks("a", second, b.now)
			}
			b.speaks("a", first, b.now)
			for range 3 {
				b.pass(time.Minute)
				b.speaks("a", second, b.now)
			}
		},
		"an agent started anew": func(b *bench) {
			for i := range 4 {
				m := first
				m.started = b.now
				b.pass(time.Minute)
				b.speaks("a", m, b.now)
				if i == 1 {
					b.speaks("a", first, epoch.Add(time.Minute))
				}
			}
		},
		"a restored snapshot": func(b *bench) {
			b.pass(10 * time.Minute)
			b.speaks("a", second, b.now)
			b.pass(time.Hour)
			back := b.now
			for range 5 {
				b.pass(time.Minute)
				b.speaks("a", first, epoch.Add(b.now.Sub(back)))
			}
		},
	} {
		t.Run(name, func(t *testing.T) {
			b := start(t, pair())
			b.speaks("a", first, b.now)
			b.pass(time.Minute)
			b.speaks("a", first, b.now)
			story(b)
			if v, _ := b.w.Host("a", b.now); v.Twins != nil {
				t.Errorf("%s is taken for two machines: %+v", name, v.Twins)
			}
		})
	}
}

// A request that is left of an earlier run of the agent comes after a reboot: it is older than what that boot said
// last, although its agent had been running for longer.
func TestRequestOfAnEarlierRunIsNotOfAnotherMachine(t *testing.T) {
	b := start(t, single("s", one(0, "a", "new-a")))
	first := speaker{boot: "boot-1", started: b.now.Add(-2 * time.Hour), closure: "old-a"}
	second := speaker{boot: "boot-1", started: b.now, closure: "old-a"}
	left := b.now.Add(-time.Minute)
	b.speaks("a", first, b.now)
	b.pass(30 * time.Second)
	b.speaks("a", second, b.now)
	b.pass(2 * time.Minute)
	b.speaks("a", second, b.now)
	b.pass(time.Minute)
	rebooted := speaker{boot: "boot-2", started: b.now.Add(-10 * time.Second), closure: "old-a"}
	b.speaks("a", rebooted, b.now)
	for range 3 {
		b.pass(5 * time.Minute)
		b.speaks("a", first, left)
		b.pass(time.Second)
		b.speaks("a", rebooted, b.now)
	}
	if v, _ := b.w.Host("a", b.now); v.Twins != nil {
		t.Errorf("two machines are seen: %+v", v.Twins)
	}
}
