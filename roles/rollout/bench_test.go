package rollout

import (
	"fmt"
	"runtime"
	"syscall"
	"testing"
	"time"

	"nixfleet/roles/protocol"
)

// large is a fleet of n hosts in four waves with one budget.
func large(n int) spec { return fleetOf(n, 4, budgetSpec{pct: 10, max: -1}) }

func fleetOf(n, waves int, b budgetSpec) spec {
	b.tag = "all"
	s := spec{channels: []channelSpec{{name: "s"}}, budgets: []budgetSpec{b}}
	for i := range waves {
		wv := waveSpec{soak: time.Minute, hosts: map[string]string{}}
		for k := i; k < n; k += waves {
			h := fmt.Sprintf("host-%06d", k)
			wv.hosts[h] = "1b2c3d4f5g6h7i8j9k0l1m2n3p4q5r6s-nixos-system-" + h
			s.budgets[0].hosts = append(s.budgets[0].hosts, h)
		}
		s.channels[0].waves = append(s.channels[0].waves, wv)
	}
	return s
}

var sizes = []int{100, 10_000, 100_000}

// idle is a converged world of n hosts that all reported.
func idle(tb testing.TB, n int) (*World, []string, []Observation, time.Time) {
	rel := large(n).release()
	now := epoch
	w := New(State{}, DefaultLimits(), now)
	w.Accept(rel, now)
	var names []string
	var seen []Observation
	for _, e := range rel.Channels["s"].Manifest.HostSet {
		names = append(names, e.Hostname)
		seen = append(seen, Observation{Closure: e.TargetClosure, BootID: "b", KnowsLease: true, Wait: 5 * time.Minute})
	}
	for range 6 {
		now = now.Add(time.Minute)
		for i, h := range names {
			w.Checkin(h, seen[i], now)
		}
		w.Tick(now)
	}
	if r := w.Rollouts(now)[0]; r.State != RolloutConverged {
		tb.Fatalf("not converged: %s wave %d %+v", r.State, r.Wave, r.Reason)
	}
	w.Tick(now.Add(time.Hour))
	return w, names, seen, now
}

func BenchmarkIdleTick(b *testing.B) {
	for _, n := range sizes {
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			w, _, _, now := idle(b, n)
			for b.Loop() {
				now = now.Add(time.Second)
				w.Tick(now)
			}
		})
	}
}

func BenchmarkIdleCheckin(b *testing.B) {
	for _, n := range sizes {
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			w, names, seen, now := idle(b, n)
			b.ReportAllocs()
			i := 0
			for b.Loop() {
				now = now.Add(time.Millisecond)
				if _, c := w.Checkin(names[i%n], seen[i%n], now); !c.Empty() {
					b.Fatalf("an idle check-in changed %+v", c)
				}
				i++
			}
		})
	}
}

func BenchmarkAcceptFirst(b *testing.B) {
	for _, n := range sizes {
		rel := large(n).release()
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			before := processor(b)
			for b.Loop() {
				New(State{}, DefaultLimits(), epoch).Accept(rel, epoch)
			}
			b.ReportMetric((processor(b)-before).Seconds()*1000/float64(b.N), "cpu-ms/op")
		})
	}
}

func BenchmarkAcceptRenewal(b *testing.B) {
	for _, n := range sizes {
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			w, _, _, now := idle(b, n)
			s := large(n)
			s.signed, s.opened = now, epoch
			rel := s.release()
			for b.Loop() {
				w.Accept(rel, now)
			}
		})
	}
}

// BenchmarkPlan plans whole rollouts, to their end, and reports processor time: the collector works beside.
func BenchmarkPlan(b *testing.B) {
	for _, shape := range []struct {
		name   string
		waves  int
		budget budgetSpec
	}{
		{"tenth", 4, budgetSpec{pct: 10, max: -1}},
		{"hundredth", 4, budgetSpec{pct: 1, max: -1}},
		{"ten", 4, budgetSpec{max: 10}},
		{"one", 4, budgetSpec{max: 1}},
		{"waves", 50, budgetSpec{pct: 10, max: -1}},
		{"at-once", 1, budgetSpec{pct: 100, max: -1}},
	} {
		for _, n := range sizes {
			b.Run(fmt.Sprint(shape.name, "/", n), func(b *testing.B) {
				rel := fleetOf(n, shape.waves, shape.budget).release()
				w := New(State{}, DefaultLimits(), epoch)
				// 100,000 hosts one by one take longer than the 90 days that a plan looks ahead.
				o := PlanOptions{AssumePresent: true, Horizon: 365 * 24 * time.Hour}
				planned(b, n, 0, func() protocol.Plan { return w.Plan(rel, o, epoch) })
			})
		}
	}
}

// BenchmarkPlanNext plans another release for a fleet that is known and has converged; nobody is present in "away".
func BenchmarkPlanNext(b *testing.B) {
	for _, n := range sizes {
		w, _, _, now := idle(b, n)
		s := large(n)
		for _, wv := range s.channels[0].waves {
			for h := range wv.hosts {
				wv.hosts[h] = "next-" + h
			}
		}
		s.signed = now
		rel := s.release()
		b.Run(fmt.Sprint("present/", n), func(b *testing.B) {
			planned(b, n, 0, func() protocol.Plan { return w.Plan(rel, PlanOptions{}, now) })
		})
		b.Run(fmt.Sprint("away/", n), func(b *testing.B) {
			planned(b, 0, n, func() protocol.Plan { return w.Plan(rel, PlanOptions{}, now.Add(time.Hour)) })
		})
		b.Run(fmt.Sprint("copy/", n), func(b *testing.B) {
			planned(b, 0, 0, func() protocol.Plan { w.Clone(now); return protocol.Plan{} })
		})
	}
}

func planned(b *testing.B, moves, blocked int, plan func() protocol.Plan) {
	b.Helper()
	before := processor(b)
	for b.Loop() {
		if v := plan(); len(v.Moves) != moves || len(v.Blocked) != blocked {
			b.Fatalf("%d moves, %d blocked, %+v", len(v.Moves), len(v.Blocked), v.Channels)
		}
	}
	b.ReportMetric((processor(b)-before).Seconds()*1000/float64(b.N), "cpu-ms/op")
}

// processor is the processor time that this process has taken.
func processor(tb testing.TB) time.Duration {
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		tb.Fatal(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

func TestIdleHostIsSmall(t *testing.T) {
	if testing.Short() {
		t.Skip("measures memory of 20,000 hosts")
	}
	const n = 20_000
	rel := large(n).release()
	before := heapInUse()
	w := New(State{}, DefaultLimits(), epoch)
	w.Accept(rel, epoch)
	now := epoch
	for range 6 {
		now = now.Add(time.Minute)
		for _, e := range rel.Channels["s"].Manifest.HostSet {
			w.Checkin(e.Hostname, Observation{Closure: e.TargetClosure, BootID: "8d0c5f3e", KnowsLease: true}, now)
		}
		w.Tick(now)
	}
	if per := (heapInUse() - before) / n; per > 2048 {
		t.Errorf("%d bytes per idle host, want at most 2048", per)
	} else {
		t.Logf("%d bytes per idle host", per)
	}
	runtime.KeepAlive(w)
}

func heapInUse() uint64 {
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return m.HeapAlloc
}
