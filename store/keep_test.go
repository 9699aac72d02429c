package store

import (
	"fmt"
	"testing"
	"time"

	"nixfleet/roles/rollout"
)

// history stores n rollouts of a channel, a day apart, each superseded by the
// next, with a host row and a confirmed dispatch each, and returns when the last began.
func history(t *testing.T, s *Store, channel string, n int) time.Time {
	t.Helper()
	var last time.Time
	for i := range n {
		at := t0.AddDate(0, 0, i)
		c := change()
		r, h, d := &c.Rollouts[0], &c.Hosts[0], &c.Dispatches[0]
		r.Channel, h.Channel, d.Channel, h.Host, d.Host = channel, channel, channel, channel+"-host", channel+"-host"
		r.Intent = fmt.Sprint(channel, i)
		h.Intent, d.Intent, r.CreatedAt, h.Since, d.DispatchedAt, d.SlotUntil = r.Intent, r.Intent, at, at, at, at
		d.State, d.ConfirmedAt = rollout.DispatchConfirmed, &at
		if i < n-1 {
			over := at.AddDate(0, 0, 1)
			r.State, r.TerminalAt, r.SupersededAt, r.SupersededBy = rollout.RolloutSuperseded, &over, &over, "next"
		}
		if err := s.SubmitRollout(c).Wait(t.Context()); err != nil {
			t.Fatal(err)
		}
		last = at
	}
	return last
}

func TestLoadingIsBoundedWhateverTheHistory(t *testing.T) {
	s := fresh(t)
	history(t, s, "edge", 40)
	history(t, s, "stable", 3)
	st, err := s.LoadRollouts(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if len(st.Rollouts) != rolloutsLoaded+3 || len(st.Hosts) != 2 || len(st.Dispatches) != 2 {
		t.Errorf("%d rollouts, %d host rows, %d dispatches", len(st.Rollouts), len(st.Hosts), len(st.Dispatches))
	}
	if st.Hosts[0].Intent != "edge39" || st.Dispatches[0].Intent != "edge39" {
		t.Errorf("not the newest: %+v %+v", st.Hosts[0], st.Dispatches[0])
	}
}

// [C18] A staged dispatch of a superseded rollout keeps its host's row.
func TestAnOpenDispatchKeepsItsHostRows_C18(t *testing.T) {
	s := fresh(t)
	history(t, s, "edge", 3)
	c := change()
	c.Hosts[0].Intent, c.Hosts[0].Host = "edge0", "staged"
	c.Dispatches[0].Intent, c.Dispatches[0].Host, c.Dispatches[0].State = "edge0", "staged", rollout.DispatchDeferred
	if err := s.SubmitRollout(rollout.Change{Hosts: c.Hosts, Dispatches: c.Dispatches}).Wait(t.Context()); err != nil {
		t.Fatal(err)
	}
	st, err := s.LoadRollouts(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	found := false
	for _, h := range st.Hosts {
		found = found || h.Host == "staged"
	}
	if !found {
		t.Errorf("host rows %+v", st.Hosts)
	}
}

func TestPruningKeepsTheNewestOfEach(t *testing.T) {
	s := fresh(t)
	last := history(t, s, "edge", 5)
	if err := s.Audit(t.Context(),
		AuditEntry{At: t0, Actor: "jo", Action: "pause", Subject: "edge", Reason: "lunch"}); err != nil {
		t.Fatal(err)
	}
	count := func(table string) (n int) {
		t.Helper()
		if err := s.read.QueryRow(`SELECT count(*) FROM ` + table).Scan(&n); err != nil {
			t.Fatal(err)
		}
		return n
	}
	for _, step := range []struct {
		after                             time.Duration
		rollouts, hosts, dispatches, logs int
	}{
		{0, 5, 5, 5, 5},
		{8 * 24 * time.Hour, 5, 1, 5, 5},
		{400 * 24 * time.Hour, 1, 1, 1, 0},
	} {
		if err := s.Prune(t.Context(), last.Add(step.after)); err != nil {
			t.Fatal(err)
		}
		got := []int{count("rollouts"), count("rollout_hosts"), count("pending_confirms"), count("rollout_events")}
		if want := []int{step.rollouts, step.hosts, step.dispatches, step.logs}; fmt.Sprint(got) != fmt.Sprint(want) {
			t.Errorf("after %s: rollouts, hosts, dispatches, events %v, want %v", step.after, got, want)
		}
	}
	if count("dispatch_leases") != 1 {
		t.Errorf("%d leases of 1 dispatch", count("dispatch_leases"))
	}
	if count("audit") != 1 {
		t.Error("what operators did was forgotten")
	}
	if st, err := s.LoadRollouts(t.Context()); err != nil || len(st.Rollouts) != 1 || st.Empty {
		t.Errorf("%+v %v", st, err)
	}
}

// An event's number is never given twice, also after the newest were pruned.
func TestEventNumbersOnlyGrow(t *testing.T) {
	s := fresh(t)
	if err := s.SubmitRollout(change()).Wait(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := s.Prune(t.Context(), t0.AddDate(1, 0, 0)); err != nil {
		t.Fatal(err)
	}
	if err := s.SubmitRollout(change()).Wait(t.Context()); err != nil {
		t.Fatal(err)
	}
	if events, err := s.Events(t.Context(), "", 0, 10); err != nil || len(events) != 1 || events[0].Seq != 2 {
		t.Errorf("%+v %v", events, err)
	}
}

func TestTimesCompareAsText_C1(t *testing.T) {
	times := []time.Time{{}, t0, t0.Add(time.Millisecond), t0.In(time.FixedZone("", 7200)).Add(time.Second),
		t0.AddDate(7000, 0, 0), t0.AddDate(9000, 0, 0)}
	for i := 1; i < len(times); i++ {
		if a, b := text(times[i-1]), text(times[i]); a >= b {
			t.Errorf("%s is not before %s", a, b)
		}
	}
	for _, at := range times[:4] {
		if back, err := parseTime(text(at)); err != nil || !back.Equal(at) {
			t.Errorf("%s: %s %v", at, back, err)
		}
	}
}

func FuzzParseTime(f *testing.F) {
	for _, s := range []string{"2026-03-01 12:00:00.120", "2026-03-01T12:00:00Z", "2026-03-01", "now", "1772366400"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		at, err := parseTime(s)
		if err != nil {
			return
		}
		if at.Year() < 0 || at.Year() > 9999 {
			return // text clamps the far end; nobody writes the other
		}
		at = at.Truncate(time.Millisecond)
		if back, err := parseTime(text(at)); err != nil || !back.Equal(at) {
			t.Errorf("%q: %s written as %s, read as %s, %v", s, at, text(at), back, err)
		}
	})
}
