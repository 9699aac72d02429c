package rollout

import (
	"errors"
	"strings"
	"testing"
	"time"

	"nixfleet/nixops/fleet"
	"nixfleet/roles/protocol"
)

// nightly opens for two hours each night, ten hours after the epoch for the first time.
var nightly = &fleet.Maintenance{Windows: []fleet.MaintenanceWindow{{Opens: "22:00", Minutes: 120}}}

func windowed(m *fleet.Maintenance, waves ...waveSpec) spec {
	s := single("s", waves...)
	s.channels[0].maintenance, s.channels[0].fresh = m, 20000
	return s
}

// until ticks at every deadline up to a time after the epoch, and returns how often a host was woken in it.
func (b *bench) until(after time.Duration, h string) int {
	b.t.Helper()
	before, end := b.wakeups[h], epoch.Add(after)
	for {
		c, next := b.w.Tick(b.now)
		b.took(c)
		if next.IsZero() || next.After(end) {
			b.now = end
			return b.wakeups[h] - before
		}
		b.now = next
	}
}

func (b *bench) freeze(until time.Duration) {
	b.t.Helper()
	c, err := b.w.Freeze("s", "op", "the holidays", epoch.Add(until), b.now)
	if err != nil {
		b.t.Fatal(err)
	}
	b.took(c)
}

func (b *bench) thaw() {
	b.t.Helper()
	c, err := b.w.Thaw("s", "op", "it is over", b.now)
	if err != nil {
		b.t.Fatal(err)
	}
	b.took(c)
}

// A host is given its target while a window is open, is woken when one opens, and begins before it closes.
func TestMaintenance(t *testing.T) {
	b := start(t, windowed(nightly, one(time.Minute, "a", "new-a", "b", "new-b")))
	for _, h := range []string{"a", "b"} {
		b.box(h).wait = 72 * time.Hour
		b.refused(h, CodeMaintenance)
	}
	r := b.checkin("a").Reason
	opens := epoch.Add(10 * time.Hour)
	if r.Opens == nil || !r.Opens.Equal(opens) || !strings.Contains(r.Text, "the next one opens at 2026-03-01 22:00:00") {
		t.Errorf("reason %+v", r)
	}
	if n := b.until(10*time.Hour-time.Second, "a"); n != 0 {
		t.Errorf("woken %d times before the window opens", n)
	}
	if n := b.until(10*time.Hour+time.Second, "a"); n != 1 {
		t.Fatalf("woken %d times when the window opens", n)
	}
	b.offered("a")
	b.until(12*time.Hour-2*time.Minute, "b")
	if target := b.offered("b"); target.StartBy != 2*time.Minute {
		t.Errorf("two minutes before the window closes a host has %s to begin", target.StartBy)
	}
}

// A host whose turn was there in the last window and that was absent has missed it.
func TestMaintenanceMissed(t *testing.T) {
	b := start(t, windowed(nightly, one(time.Minute, "a", "new-a"), one(0, "b", "new-b")))
	b.pass(13 * time.Hour)
	b.refused("a", CodeMissed)
	if r := b.checkin("a").Reason; !strings.Contains(r.Text, "closed at 2026-03-02 00:00:00 UTC without it") {
		t.Errorf("reason %+v", r)
	}
	b.refused("b", CodeWave)
	b.pass(21 * time.Hour)
	b.update("a")
	b.pass(2 * time.Hour)
	b.checkin("a")
	b.refused("b", CodeMaintenance) // its wave opened after the window had closed
}

// An attempt that the end of a window cut short does not count, so that a slow download is never a failure.
func TestMaintenanceCutsNoAttempts(t *testing.T) {
	b := start(t, windowed(nightly, one(time.Minute, "a", "new-a")))
	for night := range 5 {
		b.now = epoch.Add(time.Duration(24*night+12)*time.Hour - time.Minute)
		b.offered("a")
		b.box("a").phase = &protocol.Phase{Name: protocol.PhaseFetching}
		b.until(time.Duration(24*night+13)*time.Hour, "a")
		b.box("a").phase = nil
		b.refused("a", CodeMissed)
	}
	b.state("a", Queued)
	if n := b.w.hosts.byName["a"].rec.Attempt; n != 0 {
		t.Errorf("%d attempts count", n)
	}
}

// A retry, a recall and a release that declares an emergency pass closed windows and a freeze.
func TestCalendarLetsPass(t *testing.T) {
	shut := map[string]func(b *bench){
		"windows": func(*bench) {},
		"freeze":  func(b *bench) { b.now = epoch.Add(10 * time.Hour); b.freeze(72 * time.Hour) },
	}
	for name, act := range shut {
		t.Run(name, func(t *testing.T) {
			s := windowed(nightly, one(time.Minute, "a", "new-a", "b", "new-b"))
			s.channels[0].revert = true
			b := start(t, s)
			act(b)
			code := b.checkin("a").Reason.Code
			if code != CodeMaintenance && code != CodeFrozen {
				t.Fatalf("held by %s", code)
			}
			b.retry("a")
			b.offered("a")
			b.offered("a") // told again
			b.refused("b", code)
			b.retry("b")
			b.offered("b")
			b.box("a").running = "new-a"
			b.report("b", Report{Event: "activation-failed", Phase: "switch"})
			if d := b.checkin("a"); d.Rollback == nil {
				t.Errorf("a recall is held: %+v", d.Reason)
			}

			s.channels[0].emergency = "CVE-2026-0001"
			s.channels[0].waves = []waveSpec{one(time.Minute, "a", "newer-a", "b", "newer-b")}
			s.signed = b.now
			b.accept(s)
			if target := b.offered("b"); target.StartBy != b.w.limits.Lease {
				t.Errorf("an emergency is cut to %s", target.StartBy)
			}
		})
	}
}

// A channel whose windows cannot be read is closed and says why: the words come from a release that was not checked.
func TestMaintenanceUnreadable(t *testing.T) {
	m := &fleet.Maintenance{Windows: []fleet.MaintenanceWindow{{Opens: "whenever", Minutes: 60}}}
	b := start(t, windowed(m, one(time.Minute, "a", "new-a")))
	b.refused("a", CodeMaintenance)
	if r := b.checkin("a").Reason; r.Opens != nil || !strings.Contains(r.Text, `"whenever" is not a calendar expression`) {
		t.Errorf("reason %+v", r)
	}
	b.accept(windowed(&fleet.Maintenance{Windows: []fleet.MaintenanceWindow{{Opens: "2020-01-01", Minutes: 60}}},
		one(time.Minute, "a", "new-a")))
	if r := b.checkin("a").Reason; r.Opens != nil || !strings.Contains(r.Text, "none opens any more") {
		t.Errorf("reason %+v", r)
	}
}

// A freeze holds whatever comes until its end, then wakes; it outlives a restart, a newer release and a renewal.
func TestFreeze(t *testing.T) {
	s := single("s", one(time.Minute, "a", "new-a"), one(0, "b", "new-b"))
	b := start(t, s)
	b.box("a").wait, b.box("b").wait = 200*time.Hour, 200*time.Hour
	b.checkin("b")
	b.freeze(48 * time.Hour)
	b.refused("a", CodeFrozen)
	r := b.w.Rollouts(b.now)[0].Reason
	if r.Code != CodeFrozen || r.Opens == nil || !r.Opens.Equal(epoch.Add(48*time.Hour)) {
		t.Errorf("the rollout says %+v", r)
	}
	state := b.disk.state()
	b.w = New(state, DefaultLimits(), b.now)
	b.took(b.w.Accept(b.rel, b.now))
	b.refused("a", CodeFrozen)

	s.channels[0].waves[0] = one(time.Minute, "a", "newer-a")
	s.signed = b.now.Add(time.Minute)
	b.accept(s)
	b.refused("a", CodeFrozen)
	if got := b.w.Freezes(b.now); len(got) != 1 || got[0].By != "op" || got[0].Reason != "the holidays" {
		t.Errorf("frozen are %+v", got)
	}
	b.rel.Fleet.Channels["s"] = fleet.Channel{RolloutPolicy: "s", FreshnessWindow: 20000}
	b.took(b.w.Accept(b.rel, b.now))
	if n := b.until(48*time.Hour-time.Second, "a"); n != 0 {
		t.Errorf("woken %d times in the freeze", n)
	}
	if n := b.until(48*time.Hour+time.Second, "a"); n != 1 {
		t.Fatalf("woken %d times when it ends", n)
	}
	b.offered("a")
	if got := b.w.Freezes(b.now); len(got) != 0 {
		t.Errorf("frozen are %+v", got)
	}
	if f := b.disk.freezes["s"]; !f.Thawed {
		t.Errorf("stored is %+v", f)
	}
}

// What is in flight ends and soaks, and no wave opens; a thaw lets it go on at once.
func TestFreezeAndThaw(t *testing.T) {
	b := start(t, single("s", one(time.Minute, "a", "new-a"), one(0, "b", "new-b")))
	b.box("b").wait = time.Hour
	b.checkin("b")
	b.offered("a")
	b.freeze(48 * time.Hour)
	b.refused("a", CodeFrozen) // it is not told again
	b.box("a").running = "new-a"
	if !b.confirm("a") {
		t.Fatal("a confirm is refused")
	}
	b.checkin("a")
	b.pass(time.Minute)
	b.checkin("a")
	b.state("a", Soaked)
	if w := b.rollout("s").Wave; w != 0 {
		t.Errorf("wave %d opened", w)
	}
	b.thaw()
	if b.wakeups["b"] != 1 {
		t.Errorf("b was woken %d times", b.wakeups["b"])
	}
	b.offered("b")
	kinds := ""
	for _, e := range b.disk.events {
		if e.Kind == protocol.LogFrozen || e.Kind == protocol.LogThawed {
			kinds += e.Kind + " by " + e.Actor + ": " + e.Detail + "\n"
		}
	}
	if kinds != "channel-frozen by op: until 2026-03-03 12:00:00 UTC (the holidays)\nchannel-thawed by op: it is over\n" {
		t.Errorf("events:\n%s", kinds)
	}
}

func TestFreezeRefuses(t *testing.T) {
	b := start(t, single("s", one(time.Minute, "a", "new-a")))
	for _, c := range []struct {
		channel string
		until   time.Duration
		want    error
	}{{"t", time.Hour, ErrNoChannel}, {"s", 0, ErrUntil}, {"s", -time.Hour, ErrUntil},
		{"s", MaxFreeze + time.Hour, ErrUntil}} {
		change, err := b.w.Freeze(c.channel, "op", "why", epoch.Add(c.until), b.now)
		if !errors.Is(err, c.want) || !change.Empty() {
			t.Errorf("freeze %s for %s: %v, %+v", c.channel, c.until, err, change)
		}
	}
	if _, err := b.w.Thaw("s", "op", "why", b.now); !errors.Is(err, ErrNotFrozen) {
		t.Errorf("thaw: %v", err)
	}
	b.offered("a")
}

// A plan moves hosts in the windows, and after a freeze.
func TestPlanKeepsWindows(t *testing.T) {
	b := start(t, windowed(nightly, one(time.Hour, "a", "new-a"), one(time.Hour, "b", "new-b"), one(0, "c", "new-c")))
	for _, h := range []string{"a", "b", "c"} {
		b.checkin(h)
	}
	b.freeze(24 * time.Hour)
	moves := ""
	for _, m := range b.w.Plan(nil, PlanOptions{}, b.now).Moves {
		moves += m.Host + " " + m.At.UTC().Format("02T15:04:05") + "\n"
	}
	if moves != "a 02T22:00:00\nb 02T23:01:00\nc 03T22:00:00\n" {
		t.Errorf("the plan:\n%s", moves)
	}
	b.state("a", Queued)
	if got := b.w.Freezes(b.now); len(got) != 1 {
		t.Errorf("the plan thawed the channel: %+v", got)
	}
}
