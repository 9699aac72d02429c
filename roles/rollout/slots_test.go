package rollout

import (
	"testing"
	"time"

	"nixfleet/nixops/fleet"
	"nixfleet/roles/protocol"
)

func shared(soak time.Duration) spec {
	return spec{
		channels: []channelSpec{{name: "s", waves: []waveSpec{one(soak, "a", "new-a", "b", "new-b")}}},
		budgets:  []budgetSpec{{tag: "x", hosts: []string{"a", "b"}, max: 1}},
	}
}

// A host holds its slot until it has soaked, as in v1, over a restart as well; where the budget says so, until it has
// confirmed.
func TestSlotIsHeldUntilTheSoakIsOver(t *testing.T) {
	b := start(t, shared(10*time.Minute))
	b.box("b").wait = time.Hour
	b.update("a")
	b.pass(5 * time.Minute)
	b.checkin("a")
	b.refused("b", CodeBudget)
	b.restart()
	b.checkin("a")
	b.refused("b", CodeBudget)
	b.pass(2 * time.Minute)
	b.refused("b", CodeBudget)
	b.pass(4 * time.Minute)
	b.checkin("a")
	b.state("a", Soaked)
	b.woken("b")
	b.offered("b")

	s := shared(10 * time.Minute)
	s.until = fleet.SlotConfirmed
	b = start(t, s)
	b.update("a")
	b.offered("b")
}

// A host that falls silent while it soaks keeps its slot: nobody knows what became of it. It is free when the host is
// heard of, when an operator goes on without it, or when the fleet does not declare it any more.
func TestSilentHostKeepsItsSlot(t *testing.T) {
	for way, end := range map[string]func(b *bench){
		"heard": func(b *bench) { b.checkin("a") },
		"resumed": func(b *bench) {
			if _, err := b.w.Hold(b.id("a"), protocol.ActionResume, "op", "", b.now); err != nil {
				b.t.Fatal(err)
			}
		},
		"retired": func(b *bench) {
			s := shared(time.Minute)
			delete(s.channels[0].waves[0].hosts, "a")
			s.budgets[0].hosts, s.signed = []string{"b"}, b.now
			b.accept(s)
		},
		"revoked": func(b *bench) { b.took(b.w.Revoked("a", b.now)) },
		"revoked by a release": func(b *bench) {
			b.rel.Revocations = &fleet.Revocations{Revocations: []fleet.Revocation{{Hostname: "a"}}}
			b.took(b.w.Accept(b.rel, b.now))
		},
	} {
		t.Run(way, func(t *testing.T) {
			s := shared(time.Minute)
			s.channels[0].fresh = 100000
			b := start(t, s)
			b.update("a")
			b.box("a").away = true
			b.live(24 * time.Hour)
			b.state("a", Skipped)
			b.refused("b", CodeBudget)
			end(b)
			b.offered("b")
		})
	}
}

// Of two releases that share a selector the stricter budget counts, while hosts of the first one are in flight.
func TestTheStricterOfTwoReleasesCounts(t *testing.T) {
	s := spec{
		channels: []channelSpec{{name: "s", waves: []waveSpec{one(0, "a", "new-a", "b", "new-b", "c", "new-c")}}},
		budgets:  []budgetSpec{{tag: "x", hosts: []string{"a", "b", "c"}, max: 1}},
	}
	b := start(t, s)
	b.offered("a")
	b.report("a", Report{Event: protocol.EventActivationStarted})
	looser := s
	looser.signed = b.now.Add(time.Second)
	looser.channels = []channelSpec{{name: "s", waves: []waveSpec{one(0, "a", "newer-a", "b", "newer-b", "c", "newer-c")}}}
	looser.budgets = []budgetSpec{{tag: "x", hosts: []string{"a", "b", "c"}, max: 3}}
	b.accept(looser)
	b.refused("b", CodeBudget)
	b.box("a").running = "new-a"
	if ok, c := b.w.Confirm("a", s.release().Channels["s"].RolloutID, "new-a", b.now); !ok {
		t.Fatal("the confirm of the release before is refused")
	} else {
		b.took(c)
	}
	b.woken("a", "b")
	b.offered("b")
	b.offered("c")
}

// Hosts of a channel that comes after another are held while that one has an active rollout; where the edge says so,
// only the beginning of their rollout is.
func TestChannelEdgeHoldsEachHost(t *testing.T) {
	for _, holds := range []string{"", fleet.HoldsActive, fleet.HoldsOpening} {
		s := spec{
			channels: []channelSpec{
				{name: "first", waves: []waveSpec{one(0, "a", "new-a")}},
				{name: "second", waves: []waveSpec{one(time.Minute, "b", "new-b", "c", "new-c")}},
			},
			order: [][2]string{{"first", "second"}}, holds: holds,
		}
		b := start(t, s)
		b.update("a")
		b.wantRollout("first", RolloutConverged, 0)
		b.offered("b")
		next := s
		next.signed, next.opened = b.now.Add(time.Second), epoch
		next.channels = []channelSpec{{name: "first", waves: []waveSpec{one(time.Hour, "a", "newer-a")}}, s.channels[1]}
		b.pass(2 * time.Second)
		b.accept(next)
		b.wantRollout("second", Executing, 0)
		if holds == fleet.HoldsOpening {
			b.offered("c")
			continue
		}
		b.refused("c", CodeChannelEdge)
		if d := b.w.Deferrals(b.now); len(d) != 1 || d[0].Channel != "second" || d[0].BlockedBy != "first" {
			t.Errorf("deferrals: %+v", d)
		}
		if _, err := b.w.Hold(b.id("a"), protocol.ActionPause, "op", "", b.now); err != nil {
			t.Fatal(err)
		}
		b.refused("c", CodeChannelEdge)
		_, c := b.w.Checkin("c", b.observation("c"), b.now)
		b.took(c)
		change, err := b.w.Hold(b.id("a"), protocol.ActionCancel, "op", "", b.now)
		if err != nil {
			t.Fatal(err)
		}
		b.took(change)
		b.woken("c")
		b.offered("c")
	}
}
