package rollout

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"
	"time"

	"nixfleet/roles/protocol"

	"nixfleet/pki"
)

// forecast is a random fleet that runs one release, and the next one.
func forecast(rng *rand.Rand) (before, after spec) {
	s := spec{}
	for c := range 1 + rng.IntN(2) {
		ch := channelSpec{name: fmt.Sprint("c", c), fresh: 100000}
		var hosts []string
		for i := range 1 + rng.IntN(4) {
			wv := waveSpec{soak: time.Duration(rng.IntN(4)) * time.Minute, hosts: map[string]string{}}
			for k := range 1 + rng.IntN(6) {
				h := fmt.Sprintf("h%d%d%d", c, i, k)
				wv.hosts[h] = "old-" + h
				hosts = append(hosts, h)
			}
			ch.waves = append(ch.waves, wv)
		}
		s.channels = append(s.channels, ch)
		s.budgets = append(s.budgets, budgetSpec{tag: ch.name, hosts: hosts, max: 1 + rng.IntN(4)})
		if rng.IntN(3) == 0 {
			s.edges = append(s.edges, [2]string{hosts[0], hosts[len(hosts)-1]})
		}
	}
	if len(s.channels) == 2 && rng.IntN(2) == 0 {
		s.order = [][2]string{{"c0", "c1"}}
	}
	next := s
	next.channels = slices.Clone(s.channels)
	for i := range next.channels {
		next.channels[i].waves = slices.Clone(next.channels[i].waves)
		for k, wv := range next.channels[i].waves {
			hosts := map[string]string{}
			for h, closure := range wv.hosts {
				if hosts[h] = closure; rng.IntN(8) > 0 {
					hosts[h] = "new-" + h
				}
			}
			next.channels[i].waves[k].hosts = hosts
		}
	}
	return s, next
}

// What a plan says of random fleets is what then happens, move by move and wave by wave, when each host that is woken
// asks at once and takes a minute for its update.
func TestPlanIsWhatThenHappens(t *testing.T) {
	for seed := range uint64(150) {
		rng := rand.New(rand.NewPCG(seed, 7))
		first, next := forecast(rng)
		b := start(t, first)
		var present []string
		for h := range b.boxes {
			present = append(present, h)
		}
		slices.Sort(present)
		present = slices.DeleteFunc(present, func(string) bool { return rng.IntN(10) == 0 })
		for range 2 {
			for _, h := range present {
				b.box(h).running, b.box(h).wait = "old-"+h, time.Hour
				b.checkin(h)
			}
			b.pass(5 * time.Minute)
		}
		next.signed = b.now
		v := b.w.Plan(next.release(), PlanOptions{}, b.now)
		var want []string
		for _, m := range v.Moves {
			want = append(want, fmt.Sprint(m.At.Sub(epoch), " ", m.Host, " wave ", m.Wave, " from ", *m.From, " to ", m.To))
		}
		for _, x := range v.Waves {
			want = append(want, fmt.Sprint(x.At.Sub(epoch), " ", x.Channel, " opens wave ", x.Wave))
		}
		for _, c := range v.Channels {
			want = append(want, fmt.Sprint(c.Channel, " ends ", c.State, " ", wireTime(c.ConvergedAt)))
		}
		for _, x := range v.Blocked {
			want = append(want, fmt.Sprint(x.Host, " is blocked: ", x.Reason.Code))
		}
		got := b.happens(next, present)
		slices.Sort(want)
		slices.Sort(got)
		if !slices.Equal(got, want) {
			t.Fatalf("seed %d: planned\n%q\nhappened\n%q", seed, want, got)
		}
	}
}

// wireTime is a time of the wire as this package has it.
func wireTime(at *pki.Timestamp) *time.Time {
	if at == nil {
		return nil
	}
	return &at.Time
}

// happens accepts a release and lets the present hosts do as they are told.
func (b *bench) happens(next spec, present []string) (log []string) {
	type flight struct {
		host string
		ends time.Time
	}
	var flights []flight
	waves := map[string]int{}
	b.accept(next)
	changed := func() (woken []string) {
		for _, e := range b.last.Events {
			if e.Kind == protocol.LogWaveOpened {
				log = append(log, fmt.Sprint(e.At.Sub(epoch), " ", e.Channel, " opens wave ", waves[e.Channel]))
				waves[e.Channel]++
			}
		}
		return b.last.Wake
	}
	var ask func(hosts []string)
	ask = func(hosts []string) {
		for _, h := range hosts {
			if !slices.Contains(present, h) {
				continue
			}
			b.box(h).wait = 90 * 24 * time.Hour
			d := b.checkin(h)
			if t := d.Target; t != nil && !t.Resent {
				log = append(log, fmt.Sprint(b.now.Sub(epoch), " ", h, " wave ", t.Wave, " from ", b.box(h).running, " to ",
					t.Closure))
				flights = append(flights, flight{h, b.now.Add(time.Minute)})
			}
			ask(changed())
		}
	}
	changed()
	ask(present)
	for range 10_000 {
		c, due := b.w.Tick(b.now)
		b.took(c)
		if woken := changed(); len(woken) > 0 {
			ask(woken)
			continue
		}
		if len(flights) > 0 && (due.IsZero() || !flights[0].ends.After(due)) {
			b.now = flights[0].ends
			for len(flights) > 0 && !flights[0].ends.After(b.now) {
				h := flights[0].host
				flights = flights[1:]
				b.box(h).running = b.w.hosts.byName[h].closure
				b.confirm(h)
				ask(append(changed(), h))
			}
			continue
		}
		if due.IsZero() || due.Sub(epoch) > 24*time.Hour {
			break
		}
		b.now = due
	}
	for _, c := range next.channels {
		r := b.rollout(c.name)
		log = append(log, fmt.Sprint(c.name, " ends ", r.State, " ", r.TerminalAt))
	}
	for _, v := range b.w.Hosts(b.now) {
		if !v.Converged() {
			x, _ := b.w.Host(v.Host, b.now)
			log = append(log, fmt.Sprint(v.Host, " is blocked: ", x.Reason.Code))
		}
	}
	return log
}
