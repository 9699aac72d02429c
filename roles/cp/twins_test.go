package cp

import (
	"context"
	"strings"
	"testing"
	"time"
)

// Two agents of one identity, each with its own connection and both asking on and on, are noticed although they name
// the same boot. Neither is given a target after that, over a restart, until an operator acts.
func TestTwoAgentsOfOneIdentity(t *testing.T) {
	e := newEstate(t, "a")
	p := e.serve()
	says := e.state("a", closureOf("a", 1)) // as declared: requests are held
	stop, cancel := context.WithCancel(t.Context())
	done := make(chan struct{}, 2)
	for range 2 {
		agent := p.agent("a")
		go func() {
			defer func() { done <- struct{}{} }()
			for stop.Err() == nil {
				_, _ = agent.Checkin(stop, says, 30*time.Second)
				time.Sleep(20 * time.Millisecond)
			}
		}()
	}
	for until := time.Now().Add(20 * time.Second); !strings.Contains(p.log.String(), "two machines answer as one host"); {
		if time.Now().After(until) {
			t.Fatalf("two agents were not noticed:\n%s", p.log)
		}
		time.Sleep(20 * time.Millisecond)
	}
	cancel()
	<-done
	<-done
	hosts, err := p.operator().Hosts(t.Context())
	if err != nil || hosts.Hosts[0].Clone == nil || !hosts.Hosts[0].Clone.Held {
		t.Errorf("the list of hosts says %+v, %v", hosts.Hosts[0].Clone, err)
	}
	p.stop()
	p = e.serve()
	a := p.agent("a")
	old := e.state("a", closureOf("a", 0))
	if got := p.checkin(a, old, 0); got.Target != nil {
		t.Errorf("after a restart one of two machines is told %+v", got.Target)
	}
	if why, err := p.operator().Explain(t.Context(), "a"); err != nil || why.Reason.Code != "two-machines" {
		t.Errorf("the host is explained by %+v, %v", why, err)
	}
	if err := p.operator().Retry(t.Context(), "a", "the clone is off"); err != nil {
		t.Fatal(err)
	}
	if got := p.checkin(a, old, 0); got.Target == nil {
		t.Error("after an operator has acted the host is not given its target")
	}
}

// An agent that is started anew leaves a connection behind that nobody closed. It is one machine.
func TestAHalfOpenConnectionIsNotAnotherMachine(t *testing.T) {
	w := newWaiters(4)
	var conns [6]connection
	for i := range conns {
		if w.replace("a", &conns[i]) {
			t.Fatalf("connection %d is taken for another machine's", i)
		}
		if w.hold("a", &conns[i]) == nil {
			t.Fatal("not held")
		}
	}
	// The same agent on the connection that it has.
	for range 4 {
		if w.replace("a", &conns[5]) {
			t.Fatal("an agent that asks again is taken for two")
		}
		w.hold("a", &conns[5])
	}
}
