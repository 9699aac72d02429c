package cp

import (
	"bytes"
	"context"
	"errors"
	"io"
	"maps"
	"net/http"
	"slices"
	"strings"
	"testing"
	"testing/fstest"

	"nixfleet/nixops/fleet"
	"nixfleet/roles/protocol"
	"nixfleet/roles/protocol/client"
)

// documentsOf is a release as an operator sends it.
func documentsOf(t *testing.T, files map[string][]byte) map[string][]byte {
	t.Helper()
	fsys := fstest.MapFS{}
	for name, data := range files {
		fsys[name] = &fstest.MapFile{Data: data}
	}
	docs, err := fleet.Documents(fsys)
	if err != nil {
		t.Fatal(err)
	}
	return docs
}

func TestPlanOfAReleaseThatIsNotPublished(t *testing.T) {
	e := newEstate(t, "a", "b", "c")
	p := e.serve()
	ctx, operator := context.Background(), p.operator()
	for _, host := range []string{"a", "b"} {
		p.checkin(p.agent(host), e.state(host, closureOf(host, 1)), 0)
	}
	before := p.inForce()
	e.signed = e.signed.Add(1e9)
	for host, h := range e.fleet.Hosts {
		closure := closureOf(host, 2)
		h.ClosureHash = &closure
	}
	plan, err := operator.Plan(ctx, documentsOf(t, e.sign()))
	if err != nil {
		t.Fatal(err)
	}
	moves := map[string]string{}
	for _, m := range plan.Moves {
		if m.From == nil || *m.From != closureOf(m.Host, 1) {
			t.Errorf("%s moves from %v", m.Host, m.From)
		}
		moves[m.Host] = m.To
	}
	if len(moves) != 2 || moves["a"] != closureOf("a", 2) || moves["b"] != closureOf("b", 2) {
		t.Errorf("moves %v", moves)
	}
	if len(plan.Blocked) != 1 || plan.Blocked[0].Host != "c" || plan.Blocked[0].Reason.Text == "" {
		t.Errorf("blocked %+v", plan.Blocked)
	}
	if len(plan.Channels) != 1 || plan.Channels[0].RolloutID != e.heads["stable"].RolloutID || plan.Channels[0].Renewed {
		t.Errorf("channels %+v", plan.Channels)
	}
	if !slices.IsSortedFunc(plan.Waves, func(x, y protocol.PlanWave) int { return x.At.Compare(y.At.Time) }) {
		t.Errorf("waves are not in time order: %+v", plan.Waves)
	}
	// Nothing came of it.
	if got := p.inForce(); !got.Equal(before) {
		t.Errorf("a plan changed the release in force from %s to %s", before, got)
	}
	if got := p.checkin(p.agent("a"), e.state("a", closureOf("a", 1)), 0); got.Target != nil {
		t.Errorf("a plan led to %+v", got.Target)
	}
}

func TestPlanRefusesWhatCouldNotBeAccepted(t *testing.T) {
	e := newEstate(t, "a")
	p := e.serve()
	ctx, operator := context.Background(), p.operator()
	good := documentsOf(t, e.sign())
	for name, change := range map[string]func(docs map[string][]byte){
		"altered": func(d map[string][]byte) {
			d[fleet.FleetName] = bytes.Replace(d[fleet.FleetName], []byte("x86"), []byte("x87"), 1)
		},
		"unsigned": func(d map[string][]byte) { delete(d, fleet.FleetName+fleet.SignatureSuffix) },
		"bad head": func(d map[string][]byte) { d[fleet.HeadName("stable")] = []byte("{}") },
		"nothing":  func(d map[string][]byte) { clear(d) },
	} {
		docs := maps.Clone(good)
		change(docs)
		_, err := operator.Plan(ctx, docs)
		var refused *client.Error
		if !errors.As(err, &refused) || refused.Status != http.StatusUnprocessableEntity {
			t.Errorf("%s: %v", name, err)
		}
	}
	e.signed = e.signed.Add(-3600e9)
	_, err := operator.Plan(ctx, documentsOf(t, e.sign()))
	if err == nil || !strings.Contains(err.Error(), "older") {
		t.Errorf("an older release: %v", err)
	}
	if _, err := p.agent("a").Plan(ctx, good); status(t, err) != http.StatusForbidden {
		t.Errorf("an agent may ask for a plan: %v", err)
	}
	web := p.web(p.operatorCert("operator-jo"))
	for kind, body := range map[string]string{protocol.TarType: strings.Repeat("no tar ", 1000),
		"application/json": "{}"} {
		resp, err := web.Post(p.url+"/v1/plan", kind, strings.NewReader(body))
		if err != nil {
			t.Fatal(err)
		}
		resp.Body.Close()
		if want := map[string]int{protocol.TarType: 400, "application/json": 415}[kind]; resp.StatusCode != want {
			t.Errorf("%s: %d, want %d", kind, resp.StatusCode, want)
		}
	}
}

func TestEventsOfOneRollout(t *testing.T) {
	e := newEstate(t, "a")
	p := e.serve()
	ctx, operator := context.Background(), p.operator()
	first := e.rolloutID()
	p.checkin(p.agent("a"), e.state("a", closureOf("a", 0)), 0)
	e.advance(2)
	p.poke()
	p.eventually("the release is in force", func() bool { return p.inForce().Equal(e.signed) })
	events := func(id string) (kinds []string) {
		err := operator.Events(ctx, client.EventQuery{Rollout: id, Past: true}, func(ev protocol.Event) error {
			kinds = append(kinds, ev.Kind)
			return nil
		})
		if err != io.EOF {
			t.Fatal(err)
		}
		return kinds
	}
	// The log is written after the release is in force.
	p.eventually("the first rollout is superseded, the second one begun", func() bool {
		return slices.Contains(events(first), "rollout-superseded") && len(events(e.rolloutID())) > 0
	})
	of, next := events(first), events(e.rolloutID())
	all := events("")
	if !slices.Contains(of, "host-dispatched") || slices.Contains(next, "host-dispatched") {
		t.Errorf("events of the first %v, of the second %v", of, next)
	}
	if len(of)+len(next) > len(all) {
		t.Errorf("%d and %d of %d events", len(of), len(next), len(all))
	}
	if got := events(strings.Repeat("0", 64)); len(got) != 0 {
		t.Errorf("events of an unknown rollout: %v", got)
	}
	life, err := operator.Lifecycle(ctx, first)
	if err != nil || life.State != "Superseded" || life.Channel != "stable" {
		t.Errorf("%+v %v", life, err)
	}
}

// Without a release the plan is of what is in force: what is still to come of it.
func TestPlanOfTheReleaseInForce(t *testing.T) {
	e := newEstate(t, "a", "b", "c")
	p := e.serve()
	for _, host := range []string{"a", "b"} {
		p.checkin(p.agent(host), e.state(host, closureOf(host, 7)), 0)
	}
	plan, err := p.operator().Plan(context.Background(), nil)
	if err != nil {
		t.Fatal(err)
	}
	var moves []string
	for _, m := range plan.Moves {
		moves = append(moves, m.Host)
	}
	if !slices.Equal(moves, []string{"a", "b"}) || len(plan.Blocked) != 1 || plan.Blocked[0].Host != "c" {
		t.Errorf("moves %v, blocked %+v", moves, plan.Blocked)
	}
	if len(plan.Channels) != 1 || plan.Channels[0].RolloutID != e.rolloutID() || !plan.Channels[0].Renewed {
		t.Errorf("channels %+v", plan.Channels)
	}
}
