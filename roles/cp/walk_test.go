package cp

import (
	"fmt"
	"net/http"
	"os"
	"strconv"
	"testing"

	"nixfleet/nixops/fleet"
)

// TestWalkOfACheckin has hosts that run their target check in, as many of them as
// NIXFLEET_TEST_WALK says once more than the rest. TestWalks in the top runs it with
// some and with none, and compares what ran.
func TestWalkOfACheckin(t *testing.T) {
	n, err := strconv.Atoi(os.Getenv("NIXFLEET_TEST_WALK"))
	if err != nil {
		t.Skip("no walk: TestWalks in the top runs it")
	}
	var names []string
	for i := range 20 {
		names = append(names, fmt.Sprintf("h%02d", i))
	}
	e := newEstate(t, names...)
	e.fleet.Waves = map[string][]fleet.Wave{}
	e.publish()
	p := e.serve()
	var callers []*http.Client
	for _, name := range names {
		callers = append(callers, p.web(e.agentCert(name, e.signed)))
	}
	checkin := func(i int) {
		got := p.send(callers[i], sent{method: "POST", path: checkinPath, body: e.state(names[i], closureOf(names[i], 1))})
		if got.status != 200 {
			t.Fatalf("%s is told %d %s", names[i], got.status, got.body)
		}
	}
	for i := range names {
		checkin(i)
		checkin(i)
		checkin(i)
	}
	for i := range n {
		checkin(i)
	}
}
