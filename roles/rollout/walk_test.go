package rollout

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"os"
	"slices"
	"strconv"
	"testing"
	"time"

	"nixfleet/roles/protocol"
)

// machine is the truth about one simulated host of a walk: it obeys its leases like an agent of ours.
type machine struct {
	*box
	target  *Target
	startBy time.Time
	begun   time.Time // activation runs since; zero: none
	since   time.Time // runs its closure since
	leased  string    // intent of the lease that it was given and that the control plane should remember
}

type walk struct {
	*bench
	rng      *rand.Rand
	spec     spec
	version  int
	machines map[string]*machine
	retried  map[string]bool
}

// TestWalk lets random things happen to random fleets and checks after each step what must always hold. A failing
// seed is printed; NIXFLEET_WALK_SEED replays it.
func TestWalk(t *testing.T) {
	first, n := uint64(1), uint64(250)
	if s := os.Getenv("NIXFLEET_WALK_SEED"); s != "" {
		v, err := strconv.ParseUint(s, 10, 64)
		if err != nil {
			t.Fatal(err)
		}
		first, n = v, 1
	}
	for seed := first; seed < first+n; seed++ {
		if !t.Run(fmt.Sprint("seed=", seed), func(t *testing.T) { newWalk(t, seed).run(400) }) {
			t.Fatalf("replay with NIXFLEET_WALK_SEED=%d", seed)
		}
	}
}

func newWalk(t testing.TB, seed uint64) *walk {
	rng := rand.New(rand.NewPCG(seed, 42))
	w := &walk{rng: rng, machines: map[string]*machine{}, retried: map[string]bool{}, version: 1}
	var all []string
	for c := range 1 + rng.IntN(2) {
		ch := channelSpec{name: fmt.Sprint("c", c), revert: rng.IntN(2) == 0, fresh: 100000}
		for i := range 1 + rng.IntN(3) {
			wv := waveSpec{soak: time.Duration(rng.IntN(4)) * time.Minute, hosts: map[string]string{}}
			for k := range 1 + rng.IntN(3) {
				h := fmt.Sprintf("h%d%d%d", c, i, k)
				wv.hosts[h] = "v1-" + h
				all = append(all, h)
			}
			ch.waves = append(ch.waves, wv)
		}
		w.spec.channels = append(w.spec.channels, ch)
	}
	if len(w.spec.channels) == 2 && rng.IntN(2) == 0 {
		w.spec.order = [][2]string{{"c0", "c1"}}
	}
	for i := range rng.IntN(3) {
		var hosts []string
		for _, h := range all {
			if rng.IntN(3) > 0 {
				hosts = append(hosts, h)
			}
		}
		w.spec.budgets = append(w.spec.budgets, budgetSpec{tag: fmt.Sprint("t", i), hosts: hosts, max: 1 + rng.IntN(2)})
	}
	w.bench = start(t, w.spec)
	for _, h := range all {
		w.machines[h] = &machine{box: w.box(h), since: epoch}
		w.machines[h].v1 = false
	}
	return w
}

func (w *walk) run(steps int) {
	names := slices.Sorted(maps.Keys(w.machines))
	for range steps {
		h := names[w.rng.IntN(len(names))]
		switch k := w.rng.IntN(200); {
		case k < 120:
			w.meet(h, true)
		case k < 160:
			w.pass(time.Duration(w.rng.IntN(90)) * time.Second)
		case k < 170:
			w.machines[h].away = !w.machines[h].away
		case k < 173:
			w.restart()
		case k < 174:
			w.wipe()
			for _, m := range w.machines {
				m.leased = ""
			}
		case k < 178: // signed again
			w.spec.signed = w.now
			w.spec.opened = w.rel.Channels["c0"].OpenedAt
			w.accept(w.spec)
		case k < 181:
			w.release(3)
		case k < 184:
			r := w.rollout("c0")
			c, _ := w.w.Hold(r.RolloutID, []string{protocol.ActionPause, protocol.ActionResume,
				protocol.ActionResume}[w.rng.IntN(3)], "op", "because", w.now)
			w.took(c)
		case k < 186:
			w.retried[h] = true
			w.machines[h].leased = ""
			c, _ := w.w.Retry(h, "op", "because", w.now)
			w.took(c)
		default:
			m := w.machines[h]
			m.mode = "enforce"
			m.probe = []string{"pass", "pass", "pass", "fail", "unknown"}[w.rng.IntN(5)]
		}
		w.machinesMove()
		w.check()
	}
	// Faults stop: every host is present and well, nobody holds anything.
	w.release(4)
	for _, m := range w.machines {
		m.away, m.probe = false, "pass"
	}
	for range 400 {
		w.pass(20 * time.Second)
		for _, h := range names {
			w.meet(h, false)
		}
		w.machinesMove()
		w.check()
	}
	for _, c := range w.spec.channels {
		w.wantRollout(c.name, RolloutConverged, len(c.waves)-1)
	}
	for _, h := range names {
		w.state(h, Converged)
	}
}

// release declares other closures for some hosts.
func (w *walk) release(odds int) {
	w.version++
	for i := range w.spec.channels {
		for j := range w.spec.channels[i].waves {
			hosts := w.spec.channels[i].waves[j].hosts
			w.spec.channels[i].waves[j].hosts = map[string]string{}
			for _, h := range slices.Sorted(maps.Keys(hosts)) {
				w.spec.channels[i].waves[j].hosts[h] = hosts[h]
				if w.rng.IntN(4) < odds {
					w.spec.channels[i].waves[j].hosts[h] = fmt.Sprint("v", w.version, "-", h)
				}
			}
		}
		// A new intent even when nobody's closure changed.
		w.spec.channels[i].fresh++
	}
	w.now = w.now.Add(time.Second)
	w.spec.signed, w.spec.opened = w.now, w.now
	clear(w.retried)
	w.accept(w.spec)
}

// meet is one exchange of a host with the control plane, some of whose answers get lost.
func (w *walk) meet(h string, faults bool) {
	m := w.machines[h]
	if m.away {
		return
	}
	if !m.begun.IsZero() {
		if !faults || w.rng.IntN(3) == 0 { // done: healthy, or back by itself
			if faults && w.rng.IntN(6) == 0 {
				w.undo(h, "health gate: a unit failed")
			} else if w.confirmTarget(h) {
				m.begun, m.target = time.Time{}, nil
			} else {
				w.undo(h, "confirm-refused")
			}
		}
		return
	}
	if m.target != nil && w.rng.IntN(2) == 0 && w.now.Before(m.startBy) {
		m.begun = w.now
		m.phase = &protocol.Phase{Name: "activating", Intent: m.target.Intent, ClosureHash: m.target.Closure}
		w.report(h, Report{Event: "activation-started", RolloutID: m.target.RolloutID, Closure: m.target.Closure})
		m.running, m.since = m.target.Closure, w.now
		return
	}
	m.phase = nil
	if m.target != nil {
		m.phase = &protocol.Phase{Name: "fetching", Intent: m.target.Intent, ClosureHash: m.target.Closure}
	}
	d := w.checkin(h)
	w.mayDispatch(h, d)
	if d.Target == nil {
		if _, c := w.w.Checkin(h, w.observation(h), w.now); !c.Empty() {
			w.t.Fatalf("%s: the same check-in again changed %+v", h, c)
		}
	}
	if faults && w.rng.IntN(8) == 0 {
		return // the answer got lost
	}
	switch {
	case d.Rollback != nil:
		m.running, m.since = "back-"+h, w.now
		w.report(h, Report{Event: "rollback-triggered", RolloutID: d.Rollback.Rollout, Reason: "asked"})
	case d.Target != nil:
		m.target = d.Target
	case m.target != nil && !w.now.Before(m.startBy):
		m.target = nil
	}
}

func (w *walk) confirmTarget(h string) bool {
	m := w.machines[h]
	ok, c := w.w.Confirm(h, m.target.RolloutID, m.running, w.now)
	w.took(c)
	if ok {
		m.phase, m.leased = nil, ""
	}
	return ok
}

func (w *walk) undo(h, reason string) {
	m := w.machines[h]
	id := m.target.RolloutID
	m.leased = ""
	m.running, m.since, m.begun, m.target, m.phase = "back-"+h, w.now, time.Time{}, nil, nil
	w.report(h, Report{Event: "rollback-triggered", RolloutID: id, Reason: reason})
}

// machinesMove lets deadlines of hosts fire, which need no control plane.
func (w *walk) machinesMove() {
	for _, h := range slices.Sorted(maps.Keys(w.machines)) {
		m := w.machines[h]
		if !m.begun.IsZero() && w.now.Sub(m.begun) >= w.w.limits.ConfirmWindow {
			m.running, m.since, m.begun, m.target, m.phase = "back-"+h, m.begun.Add(w.w.limits.ConfirmWindow), time.Time{},
				nil, nil
		}
	}
}

// mayDispatch: nothing new starts after a halt, and not before the wave.
func (w *walk) mayDispatch(h string, d Decision) {
	if d.Target == nil {
		return
	}
	hv, _ := w.w.Host(h, w.now)
	r := w.rollout(hv.Channel)
	switch r.State {
	case Executing, RolloutConverged:
		if hv.Wave > r.Wave && r.State == Executing && !w.retried[h] {
			w.t.Fatalf("%s got its target in wave %d, wave %d is open", h, hv.Wave, r.Wave)
		}
	default:
		if !w.retried[h] {
			w.t.Fatalf("%s got its target in a rollout that is %s", h, r.State)
		}
	}
	if r.Hold != nil {
		w.t.Fatalf("%s got its target in a paused rollout", h)
	}
	m := w.machines[h]
	if !d.Target.Resent && m.leased == d.Target.Intent && w.now.Before(m.startBy) {
		w.t.Fatalf("%s was dispatched twice at once", h)
	}
	m.leased = d.Target.Intent
	m.startBy = w.now.Add(d.Target.StartBy)
	if d.Target.Closure != w.w.hosts.byName[h].closure {
		w.t.Fatalf("%s got %s", h, d.Target.Closure)
	}
}

func (w *walk) check() {
	t := w.t
	for _, b := range w.spec.budgets {
		var flight []string
		for _, h := range b.hosts {
			if m := w.machines[h]; !m.begun.IsZero() {
				flight = append(flight, h)
			}
		}
		if len(flight) > b.max {
			t.Fatalf("at %s budget %s of %d is exceeded by %v", w.now.Sub(epoch), b.tag, b.max, flight)
		}
	}
	for _, e := range w.last.Events {
		h := w.w.hosts.byName[e.Host]
		if e.Kind == protocol.LogHost && h != nil && h.run != nil && h.state() == Soaked && h.rec.Since.Equal(e.At.Time) {
			soak := h.run.waves[h.wave].soak
			if m := w.machines[e.Host]; m.running != h.closure || w.now.Sub(m.since) < soak {
				t.Fatalf("%s soaked after %s of %s on %s", e.Host, w.now.Sub(m.since), soak, m.running)
			}
		}
	}
	for _, e := range w.last.Events {
		r := w.w.rollouts.runOf(e.Channel, e.Intent)
		if e.Kind != protocol.LogWaveOpened || r == nil || r.State != Executing || r.Wave == 0 {
			continue
		}
		for _, h := range r.waves[r.Wave-1].hosts {
			switch st := h.state(); st {
			case Dispatched, Activating, ConfirmWindow, Healthy:
				t.Fatalf("wave %d opened while %s of the wave before is %s", r.Wave, h.name, st)
			}
		}
	}
	w.last = Change{}
	checkCounters(t, w.w)
}

// checkCounters recounts everything that is counted incrementally.
func checkCounters(t testing.TB, w *World) {
	t.Helper()
	used := map[*budget]int{}
	for _, h := range w.hosts.byName {
		for _, b := range h.slot.budgets {
			used[b]++
		}
	}
	for _, b := range w.budgets.bySelector {
		if used[b] != b.used || b.planned != 0 {
			t.Fatalf("budget %s counts %d used, %d planned; %d hosts hold a slot", b.label, b.used, b.planned, used[b])
		}
	}
	for _, ch := range w.rollouts.channels {
		r := ch.cur
		if r == nil {
			continue
		}
		fresh := &run{waves: make([]wave, len(r.waves))}
		for i := range r.waves {
			for _, h := range r.waves[i].hosts {
				if h.run != r || h.wave != i {
					t.Fatalf("%s is listed in a wave that is not its own", h.name)
				}
				fresh.count(h, 1)
			}
		}
		for i := range r.waves {
			a, b := &r.waves[i], &fresh.waves[i]
			if a.counts != b.counts || a.silent != b.silent || a.noncompliant != b.noncompliant {
				t.Fatalf("wave %d of %s counts %v %d %d, want %v %d %d", i, ch.name, a.counts, a.silent, a.noncompliant, b.counts,
					b.silent, b.noncompliant)
			}
			if a.failed != b.failed || a.failing != b.failing || a.tolerated != b.tolerated {
				t.Fatalf("wave %d of %s counts %d failed, %d failing and %d tolerated, want %d, %d and %d", i, ch.name, a.failed,
					a.failing, a.tolerated, b.failed, b.failing, b.tolerated)
			}
		}
		if r.touched != fresh.touched {
			t.Fatalf("%s counts touched %v, want %v", ch.name, r.touched, fresh.touched)
		}
	}
}
