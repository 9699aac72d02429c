package cp

import (
	"context"
	"database/sql"
	"errors"
	"net/http"
	"testing"
	"time"

	"nixfleet/roles/protocol"
	"nixfleet/roles/protocol/client"
)

func TestPreferredWait(t *testing.T) {
	for header, want := range map[string]time.Duration{
		"":                            0,
		"wait=10":                     10 * time.Second,
		"respond-async, wait=10":      10 * time.Second,
		"wait = 10":                   10 * time.Second,
		`wait="10"`:                   10 * time.Second,
		"Wait=10; foo":                10 * time.Second,
		"wait=301":                    300 * time.Second,
		"wait=99999999999999":         300 * time.Second,
		"wait=9999999999999999999999": 0,
		"wait=-1":                     0,
		"wait=x":                      0,
		"await=10":                    0,
	} {
		if got := preferredWait([]string{header}); got != want {
			t.Errorf("%q: %s, want %s", header, got, want)
		}
	}
}

func (p *plane) hold(c *client.Client, host string, wait time.Duration) <-chan heldAnswer {
	out := make(chan heldAnswer, 1)
	go func() {
		resp, err := c.Checkin(context.Background(), p.state(host, closureOf(host, 0)), wait)
		out <- heldAnswer{resp, err}
	}()
	return out
}

type heldAnswer struct {
	*protocol.CheckinResponse
	err error
}

func (p *plane) held(n string) func() bool {
	operator := p.web(p.operatorCert("operator-metrics"))
	return func() bool {
		return metricOf(p.send(operator, sent{method: "GET", path: "/metrics"}).body, "nixfleet_held_requests") == n
	}
}

func TestOneHeldRequestPerHost(t *testing.T) {
	e := newEstate(t, "a", "b")
	p := e.serve()
	b := p.agent("b")
	first := p.hold(b, "b", time.Minute)
	held := p.held("1")
	p.eventually("the first is held", held)
	second := p.hold(b, "b", time.Minute)
	got := <-first
	if got.err != nil || got.Target != nil {
		t.Fatalf("the first was answered %+v %v", got.CheckinResponse, got.err)
	}
	// A plain poll ends a held one as well: it knows more.
	p.eventually("the second is held", held)
	p.checkin(b, e.state("b", closureOf("b", 0)), 0)
	if got := <-second; got.err != nil {
		t.Fatal(got.err)
	}
	p.eventually("nothing is held", p.held("0"))
}

func TestATargetNeverGoesToAReplacedRequest(t *testing.T) {
	e := newEstate(t, "a", "b")
	p := e.serve()
	b := p.agent("b")
	stale := p.hold(b, "b", time.Minute)
	p.eventually("the first is held", p.held("1"))
	fresh := p.hold(b, "b", time.Minute)
	<-stale
	a := p.agent("a")
	if err := p.confirm(a, "a", p.checkin(a, e.state("a", closureOf("a", 0)), 0).Target); err != nil {
		t.Fatal(err)
	}
	p.checkin(a, e.state("a", closureOf("a", 1)), 0)
	if got := <-fresh; got.err != nil || got.Target == nil {
		t.Errorf("the newer request was answered %+v %v", got.CheckinResponse, got.err)
	}
}

func TestHeldRequestsAboveTheCapArePlainPolls(t *testing.T) {
	e := newEstate(t, "a", "b", "c")
	p := e.serve(func(c *Config) { c.MaxHeld = 1 })
	first := p.hold(p.agent("b"), "b", 2*time.Second)
	p.eventually("one is held", p.held("1"))
	began := time.Now()
	if got := p.checkin(p.agent("c"), e.state("c", closureOf("c", 0)), time.Minute); got.Held ||
		time.Since(began) > time.Second {
		t.Errorf("above the cap: held %v, after %s", got.Held, time.Since(began))
	}
	if got := <-first; got.err != nil || !got.Held || got.Target != nil {
		t.Errorf("at the end of its time: %+v %v", got.CheckinResponse, got.err)
	}
}

func TestAHeldRequestSeesANewRelease(t *testing.T) {
	e := newEstate(t, "a")
	p := e.serve()
	a := p.agent("a")
	if err := p.confirm(a, "a", p.checkin(a, e.state("a", closureOf("a", 0)), 0).Target); err != nil {
		t.Fatal(err)
	}
	out := make(chan heldAnswer, 1)
	go func() {
		resp, err := a.Checkin(context.Background(), e.state("a", closureOf("a", 1)), time.Minute)
		out <- heldAnswer{resp, err}
	}()
	p.eventually("the request is held", p.held("1"))
	e.advance(2)
	if err := p.operator().Poke(context.Background()); err != nil {
		t.Fatal(err)
	}
	select {
	case got := <-out:
		if got.err != nil || got.Target == nil || got.Target.ClosureHash != closureOf("a", 2) || got.Head == nil {
			t.Errorf("answered %+v %v", got.CheckinResponse, got.err)
		}
	case <-time.After(5 * time.Second):
		t.Error("the held request was not told of the new release")
	}
}

func TestStoppingAnswersHeldRequestsC16(t *testing.T) {
	e := newEstate(t, "a", "b", "c")
	p := e.serve()
	b, c := p.hold(p.agent("b"), "b", time.Minute), p.hold(p.agent("c"), "c", time.Minute)
	p.eventually("both are held", p.held("2"))
	followed := make(chan error, 1)
	operator := p.operator()
	ready := make(chan struct{})
	go func() {
		opened := false
		followed <- operator.Events(context.Background(), client.EventQuery{}, func(protocol.Event) error {
			if !opened {
				close(ready)
			}
			opened = true
			return nil
		})
	}()
	<-ready
	began := time.Now()
	p.stop()
	if took := time.Since(began); took > 5*time.Second {
		t.Errorf("stopping took %s", took)
	}
	for name, ch := range map[string]<-chan heldAnswer{"b": b, "c": c} {
		if got := <-ch; got.err != nil || got.Target != nil {
			t.Errorf("held request of %s was answered %+v %v", name, got.CheckinResponse, got.err)
		}
	}
	<-followed
}

func TestAClientThatLeavesIsForgotten(t *testing.T) {
	e := newEstate(t, "a", "b")
	p := e.serve()
	b := p.agent("b")
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() {
		_, err := b.Checkin(ctx, e.state("b", closureOf("b", 0)), time.Minute)
		done <- err
	}()
	p.eventually("the request is held", p.held("1"))
	cancel()
	if err := <-done; !errors.Is(err, context.Canceled) {
		t.Errorf("%v", err)
	}
	p.eventually("nothing is held", p.held("0"))
}

// A row inserted by hand also ends a request that was held when it came: its host
// must not stay connected, nor wait for its next contact to enrol anew.
func TestRevocationByHandEndsHeldRequest(t *testing.T) {
	e := newEstate(t, "a", "b")
	p := e.serve()
	held := p.hold(p.agent("b"), "b", 5*time.Minute)
	p.eventually("b's request is held", p.held("1"))
	db, err := sql.Open("sqlite3", "file:"+e.path("state/state.db")+"?_busy_timeout=10000")
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	if _, err := db.Exec(
		`INSERT INTO cert_revocations (hostname, not_before, reason, revoked_by) VALUES ('b', datetime('now'), 'compromised', 'jo')`); err != nil {
		t.Fatal(err)
	}
	// The next tick sees it; something to tick for shortens the wait.
	p.checkin(p.agent("a"), e.state("a", closureOf("a", 0)), 0)
	select {
	case got := <-held:
		if status(t, got.err) != http.StatusUnauthorized {
			t.Errorf("the held request of a revoked host: %+v %v", got.CheckinResponse, got.err)
		}
	case <-time.After(time.Minute):
		t.Fatal("the request of a revoked host is still held")
	}
}
