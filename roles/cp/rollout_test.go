package cp

import (
	"context"
	"strings"
	"testing"
	"time"

	"nixfleet/roles/protocol"
	"nixfleet/roles/protocol/client"
)

// confirm tells that a host runs its target.
func (p *plane) confirm(c *client.Client, host string, target *protocol.Target) error {
	_, err := c.Confirm(context.Background(), &protocol.ConfirmRequest{
		Hostname: host, Rollout: target.ChannelRef,
		Generation: protocol.Generation{ClosureHash: target.ClosureHash, BootID: "b0"},
	})
	return err
}

func TestAReleaseReachesItsHostsWaveByWave(t *testing.T) {
	e := newEstate(t, "a", "b")
	p := e.serve()
	a, b := p.agent("a"), p.agent("b")

	if got := p.checkin(b, e.state("b", closureOf("b", 0)), 0); got.Target != nil {
		t.Fatalf("wave 1 is told its target before wave 0 has soaked: %+v", got.Target)
	}
	got := p.checkin(a, e.state("a", closureOf("a", 0)), 0)
	if got.Target == nil || got.Target.ClosureHash != closureOf("a", 1) {
		t.Fatalf("wave 0 is not told its target: %+v", got)
	}
	target := got.Target
	switch {
	case target.ChannelRef != target.RolloutID || target.RolloutID != e.rolloutID():
		t.Errorf("channelRef %s and rolloutId %s, want both %s", target.ChannelRef, target.RolloutID, e.rolloutID())
	case target.Activate == nil || target.Activate.ConfirmEndpoint != protocol.ConfirmPath ||
		target.Activate.ConfirmWindowSecs != 360:
		t.Errorf("activate %+v", target.Activate)
	case target.FreshnessWindowSecs != 86400 || !target.SignedAt.Equal(e.signed) || target.StartBySecs == nil ||
		*target.StartBySecs == 0:
		t.Errorf("target %+v", target)
	}
	if got.Head == nil || got.Head.Channel != "stable" {
		t.Errorf("answer names head %+v", got.Head)
	}
	if err := p.confirm(a, "a", target); err != nil {
		t.Fatal(err)
	}
	if err := p.confirm(a, "a", target); err != nil {
		t.Errorf("a repeated confirm is refused: %v", err)
	}
	p.checkin(a, e.state("a", closureOf("a", 1)), 0)
	if got := p.checkin(b, e.state("b", closureOf("b", 0)), 0); got.Target == nil {
		t.Fatalf("wave 1 is not told its target after wave 0 has soaked:\n%s", p.log)
	}
	for _, message := range []string{`"message":"snapshot refreshed"`, `"message":"dispatch"`,
		`"message":"confirm received"`} {
		if !strings.Contains(p.log.String(), message) {
			t.Errorf("the log has no line %s:\n%s", message, p.log)
		}
	}
}

func TestAConfirmThatIsNotOurs(t *testing.T) {
	e := newEstate(t, "a", "b")
	p := e.serve()
	a := p.agent("a")
	target := p.checkin(a, e.state("a", closureOf("a", 0)), 0).Target
	other := *target
	other.ClosureHash = closureOf("a", 7)
	if got := status(t, p.confirm(a, "a", &other)); got != 410 {
		t.Errorf("a confirm of another closure: %d, want 410", got)
	}
	other = *target
	other.ChannelRef = strings.Repeat("0", 64)
	if got := status(t, p.confirm(a, "a", &other)); got != 410 {
		t.Errorf("a confirm of another rollout: %d, want 410", got)
	}
	if got := status(t, p.confirm(a, "b", target)); got != 403 {
		t.Errorf("a confirm for another host: %d, want 403", got)
	}
}

// An agent of v1 may repeat the confirm of a release that others have followed,
// and takes 410 as the order to roll back.
func TestAConfirmIsRememberedOverLaterReleases(t *testing.T) {
	e := newEstate(t, "a")
	p := e.serve()
	a := p.agent("a")
	var first *protocol.Target
	for n := 1; n <= 3; n++ {
		if n > 1 {
			e.advance(n)
			p.poke()
			p.eventually("the release is in force", func() bool { return p.inForce().Equal(e.signed) })
		}
		target := p.checkin(a, e.state("a", closureOf("a", n-1)), 0).Target
		if target == nil {
			t.Fatalf("release %d is not offered:\n%s", n, p.log)
		}
		if first == nil {
			first = target
		}
		if err := p.confirm(a, "a", target); err != nil {
			t.Fatal(err)
		}
	}
	p.checkin(a, e.state("a", closureOf("a", 3)), 0)
	if err := p.confirm(a, "a", first); err != nil {
		t.Errorf("the repeated confirm of a release two before: %v", err)
	}
	other := *first
	other.ClosureHash = closureOf("a", 7)
	if got := status(t, p.confirm(a, "a", &other)); got != 410 {
		t.Errorf("an old rollout's confirm with another closure: %d, want 410", got)
	}
}

// A report whose answer was lost comes again, here after the next dispatch: it
// is not about that one.
func TestARepeatedReportIsTakenOnce(t *testing.T) {
	e := newEstate(t, "a")
	p := e.serve()
	a := p.agent("a")
	p.checkin(a, e.state("a", closureOf("a", 0)), 0)
	req := p.reportOf("a", e.hostKeys["a"], protocol.EventRollbackTriggered,
		protocol.Reasoned{Reason: "control-plane-unreachable: x"})
	first, err := a.Report(t.Context(), req)
	if err != nil {
		t.Fatal(err)
	}
	if err := p.operator().Retry(t.Context(), "a", "once more"); err != nil {
		t.Fatal(err)
	}
	if p.checkin(a, e.state("a", closureOf("a", 0)), 0).Target == nil {
		t.Fatalf("the target is not offered again:\n%s", p.log)
	}
	again, err := a.Report(t.Context(), req)
	if err != nil || again.EventID != first.EventID {
		t.Errorf("the repetition is %+v, %v; the first was %+v", again, err, first)
	}
	trace, err := p.operator().Trace(t.Context(), e.rolloutID())
	if err != nil || len(trace.Events) != 2 || trace.Events[1].TerminalState != nil {
		t.Errorf("the second dispatch ended by a report about the first: %+v %v", trace, err)
	}
}

// A report that names the dispatch that it is about says nothing of the one that is open by then, and its fetch outcome
// neither. Without the name, as agents of v1 send it, it is about that one.
func TestAReportOfAnEarlierDispatch(t *testing.T) {
	for name, named := range map[string]bool{"named": true, "of v1": false} {
		t.Run(name, func(t *testing.T) { reportsEarlier(t, named) })
	}
}

func reportsEarlier(t *testing.T, named bool) {
	e := newEstate(t, "a")
	p := e.serve()
	a := p.agent("a")
	says := e.state("a", closureOf("a", 0))
	first := p.checkin(a, says, 0).Target
	if again := p.checkin(a, says, 0).Target; again == nil || again.Dispatch != first.Dispatch {
		t.Fatalf("a lease that is told again is %+v, and was %+v", again, first)
	}
	tell := func(reason, dispatch string) {
		r := p.reportOf("a", e.hostKeys["a"], protocol.EventRealiseFailed,
			protocol.RealiseFailed{ClosureHash: closureOf("a", 1), Reason: reason})
		r.Dispatch = dispatch
		if _, err := a.Report(t.Context(), r); err != nil {
			t.Fatal(err)
		}
	}
	tell("realise: the cache is away", first.Dispatch)
	if err := p.operator().Retry(t.Context(), "a", "once more"); err != nil {
		t.Fatal(err)
	}
	second := p.checkin(a, says, 0).Target
	if second == nil || second.Dispatch == first.Dispatch {
		t.Fatalf("the second dispatch is %+v after %+v", second, first)
	}
	if named {
		tell("realise: it was away for long", first.Dispatch)
	} else {
		tell("realise: it was away for long", "")
		if open := p.checkin(a, says, 0).Target; open != nil {
			t.Errorf("a report that names no dispatch ended none: %+v", open)
		}
		return
	}
	failed := e.state("a", closureOf("a", 0))
	failed.LastFetchOutcome = &protocol.FetchOutcome{
		Result: protocol.FetchFailed, RolloutID: &first.RolloutID, Dispatch: first.Dispatch,
	}
	if third := p.checkin(a, failed, 0).Target; third == nil || third.Dispatch != second.Dispatch {
		t.Errorf("after the outcome of the first dispatch the second, %q, is %+v", second.Dispatch, third)
	}
}

func TestHeldRequestIsAnsweredWithinASecondOfADecision(t *testing.T) {
	e := newEstate(t, "a", "b")
	p := e.serve()
	a, b := p.agent("a"), p.agent("b")
	type answered struct {
		*protocol.CheckinResponse
		err error
		at  time.Time
	}
	held := make(chan answered, 1)
	go func() {
		resp, err := b.Checkin(context.Background(), e.state("b", closureOf("b", 0)), 30*time.Second)
		held <- answered{resp, err, time.Now()}
	}()
	target := p.checkin(a, e.state("a", closureOf("a", 0)), 0).Target
	if err := p.confirm(a, "a", target); err != nil {
		t.Fatal(err)
	}
	select {
	case got := <-held:
		t.Fatalf("answered before its decision changed: %+v %v", got.CheckinResponse, got.err)
	case <-time.After(100 * time.Millisecond):
	}
	p.checkin(a, e.state("a", closureOf("a", 1)), 0)
	decided := time.Now()
	got := <-held
	if got.err != nil {
		t.Fatal(got.err)
	}
	if got.Target == nil || !got.Held {
		t.Fatalf("held request was answered %+v", got.CheckinResponse)
	}
	if late := got.at.Sub(decided); late > time.Second {
		t.Errorf("answered %s after the decision", late)
	}
}
