package agent

import (
	"bytes"
	"errors"
	"net/http"
	"net/url"
	"os"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"github.com/go-json-experiment/json"

	"nixfleet/pki"
	"nixfleet/roles/agent/journal"
	"nixfleet/roles/protocol"
)

// A control plane that takes its time over reports delays neither the switch
// beyond a bound nor the check-ins: who waits for a delivery of somebody else's
// waits no longer than he may.
func TestSlowReportsDelayNoSwitch(t *testing.T) {
	bubble(t, func(t *testing.T) {
		p := newPlane(t)
		m := newMachine(t, p, good)
		p.set(func() { p.slow = 25 * time.Second })
		began := time.Now()
		var switched time.Duration
		m.sim.OnSwitched(func(string) { switched = time.Since(began) })
		stop := m.live(m.sim)
		time.Sleep(3 * time.Minute)
		stop()
		if switched == 0 || switched > time.Minute {
			t.Errorf("switched after %s", switched)
		}
		if m.where() != all(target) {
			t.Errorf("the host runs %v", m.where())
		}
		synctest.Wait()
		heard := map[string]int{}
		for _, r := range p.said() {
			heard[r.Event]++
		}
		if heard["activation-started"] == 0 {
			t.Errorf("the report was lost: %v", heard)
		}
	})
}

// post is a control plane whose answers to reports a test chooses.
type post struct {
	p      *plane
	answer func(name string) (status int, body string)
	taken  []string
}

func (p *post) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	var rep protocol.ReportRequest
	if err := json.UnmarshalRead(r.Body, &rep); err != nil {
		p.p.t.Error(err)
	}
	var details protocol.Reasoned
	if err := json.Unmarshal(rep.Details, &details); err != nil {
		p.p.t.Error(err)
	}
	status, body := p.answer(details.Reason)
	if status == http.StatusOK && body == eventID {
		p.taken = append(p.taken, details.Reason)
	}
	w.WriteHeader(status)
	w.Write([]byte(body))
}

const eventID = `{"eventId":"e"}`

// letters is an agent with reports of two rollouts and of none on their way: a1, a2,
// b1, n1. It does nothing but deliver them.
func letters(t *testing.T, answer func(name string) (int, string)) (*agent, *post) {
	t.Helper()
	p := newPlane(t)
	o := &post{p: p, answer: answer}
	p.set(func() { p.routes = map[string]http.HandlerFunc{"/v1/agent/report": o.ServeHTTP} })
	m := newMachine(t, p, good)
	a, err := newAgent(m.config(m.sim))
	m.must(err)
	t.Cleanup(a.client.CloseIdle)
	for _, name := range []string{"a1", "a2", "b1", "n1"} {
		rollout := ""
		if name != "n1" {
			rollout = name[:1]
		}
		a.reporter.report(protocol.EventRollbackTriggered, rollout, protocol.Reasoned{Reason: name})
	}
	a.reporter.answered.Store(true)
	return a, o
}

// deliverFor is what the loop of check-ins does with reports in a time.
func (a *agent) deliverFor(t *testing.T, d time.Duration) {
	pause := time.Minute
	if d > time.Hour {
		pause = 5 * time.Minute // so that the connection is kept
	}
	for end := time.Now().Add(d); time.Now().Before(end); time.Sleep(pause) {
		a.reporter.deliverWithin(t.Context(), deliverTime)
	}
}

// What is refused is dropped at once where it is the report's own fault, and otherwise
// holds up those of its own rollout only, and these not for ever.
func TestReportThatIsNeverTaken(t *testing.T) {
	for _, c := range []struct {
		name     string
		statuses []int
		body     string
		until    time.Duration // that the next of its rollout is not taken
		by       time.Duration
	}{
		{name: "wrong by itself", statuses: []int{400, 413, 415, 422}, by: time.Minute},
		{name: "nobody there", statuses: []int{404, 405, 410}, until: 2 * time.Minute, by: 15 * time.Minute},
		{name: "in doubt", statuses: []int{403, 409, 500, 501}, until: 23 * time.Hour, by: 26 * time.Hour},
		{name: "not an answer", statuses: []int{200}, body: "<html>", until: 23 * time.Hour, by: 26 * time.Hour},
	} {
		for _, status := range c.statuses {
			t.Run(c.name+" "+http.StatusText(status), func(t *testing.T) {
				bubble(t, func(t *testing.T) {
					a, o := letters(t, func(name string) (int, string) {
						if name == "a1" {
							return status, c.body
						}
						return http.StatusOK, eventID
					})
					began := time.Now()
					if c.until > 0 {
						a.deliverFor(t, time.Minute)
						if want := []string{"b1", "n1"}; !slices.Equal(o.taken, want) {
							t.Errorf("at first taken: %q, want %q", o.taken, want)
						}
						a.deliverFor(t, c.until-time.Since(began))
						if !a.reporter.outbox.waiting("a") || slices.Contains(o.taken, "a2") {
							t.Errorf("after %s taken: %q", c.until, o.taken)
						}
					}
					a.deliverFor(t, c.by-time.Since(began))
					slices.Sort(o.taken)
					if want := []string{"a2", "b1", "n1"}; !slices.Equal(o.taken, want) {
						t.Errorf("after %s taken: %q, want %q", c.by, o.taken, want)
					}
				})
			})
		}
	}
}

// What says nothing of a report loses none, however long it lasts, and reports of other
// rollouts pass one that is never answered.
func TestReportsOutlastAnyTrouble(t *testing.T) {
	trouble := map[string]int{
		"certificate": 401, "proxy": 407, "slow": 408, "early": 425, "version": 426, "busy": 429,
		"gateway": 502, "not ready": 503, "gateway too slow": 504, "elsewhere": 302,
	}
	for name, status := range trouble {
		t.Run(name, func(t *testing.T) {
			bubble(t, func(t *testing.T) {
				mended := false
				a, o := letters(t, func(name string) (int, string) {
					if name == "a1" && !mended {
						return status, ""
					}
					return http.StatusOK, eventID
				})
				a.deliverFor(t, 30*time.Hour)
				if want := []string{"b1", "n1"}; !slices.Equal(o.taken, want) {
					t.Errorf("taken meanwhile: %q, want %q", o.taken, want)
				}
				mended = true
				a.deliverFor(t, time.Minute)
				if want := []string{"b1", "n1", "a1", "a2"}; !slices.Equal(o.taken, want) {
					t.Errorf("taken: %q, want %q", o.taken, want)
				}
			})
		})
	}
}

// While check-ins are refused as well, it is not a report's fault: a host with a certificate
// of another name keeps them all.
func TestReportsOutlastAWrongCertificate(t *testing.T) {
	for _, status := range []int{403, 404, 500} {
		t.Run(http.StatusText(status), func(t *testing.T) {
			bubble(t, func(t *testing.T) {
				mended := false
				a, o := letters(t, func(string) (int, string) {
					if !mended {
						return status, ""
					}
					return http.StatusOK, eventID
				})
				a.reporter.answered.Store(false)
				a.deliverFor(t, 30*time.Hour)
				mended = true
				a.deliverFor(t, time.Minute)
				if want := []string{"a1", "a2", "b1", "n1"}; !slices.Equal(o.taken, want) {
					t.Errorf("taken: %q, want %q", o.taken, want)
				}
			})
		})
	}
}

// The loop of check-ins knows whether they are answered.
func TestRefusalsCountOnlyWhileCheckinsAreAnswered(t *testing.T) {
	bubble(t, func(t *testing.T) {
		p := newPlane(t)
		m := newMachine(t, p, good)
		refuse := func(w http.ResponseWriter, r *http.Request) { w.WriteHeader(http.StatusNotFound) }
		p.set(func() {
			p.noTarget = true
			p.routes = map[string]http.HandlerFunc{"/v1/agent/report": refuse, "/v1/agent/checkin": refuse}
		})
		dir, err := journal.Open(m.path("state"))
		m.must(err)
		o, err := openOutbox(dir)
		m.must(err)
		_, err = o.add(letterOf("a", 1))
		m.must(err)
		left := func() int {
			o, err := openOutbox(dir)
			m.must(err)
			return len(o.queue)
		}
		stop := m.start(m.sim)
		time.Sleep(time.Hour)
		if left() != 1 {
			t.Error("given up while nothing is answered")
		}
		p.set(func() { delete(p.routes, "/v1/agent/checkin") })
		time.Sleep(time.Hour)
		stop()
		if left() != 0 {
			t.Error("kept though everything else is answered")
		}
	})
}

// letterOf is a report of a rollout whose details have the given size.
func letterOf(rollout string, size int) *protocol.ReportRequest {
	details := append(append([]byte(`{"reason":"`), bytes.Repeat([]byte("x"), size)...), `"}`...)
	return &protocol.ReportRequest{
		Hostname: testHost, AgentVersion: "1", OccurredAt: pki.At(time.Now()), Rollout: &rollout,
		Event: protocol.EventRollbackTriggered, Details: details,
	}
}

// The queue is bounded in number and bytes, a report that gives way while it is sent
// takes no other with it, and what is kept is read again.
func TestOutboxIsBounded(t *testing.T) {
	dir := journal.Directory(t.TempDir())
	o, err := openOutbox(dir)
	if err != nil {
		t.Fatal(err)
	}
	add := func(size int) (lost int) {
		t.Helper()
		gone, err := o.add(letterOf("a", size))
		if err != nil {
			t.Fatal(err)
		}
		return len(gone)
	}
	lost := 0
	for range maxReports {
		lost += add(10)
	}
	sent := o.next(time.Now(), nil)
	if lost += add(10); lost != 1 {
		t.Errorf("%d of %d gave way", lost, maxReports+1)
	}
	if err := o.done(sent); err != nil || len(o.queue) != maxReports {
		t.Errorf("%d left, %v", len(o.queue), err)
	}
	for range 12 {
		add(100 << 10)
	}
	if _, err := o.add(letterOf("a", maxOutbox)); err == nil {
		t.Error("one report may be as large as all")
	}
	info, err := os.Stat(dir.Path(reportsFile))
	if err != nil || info.Size() > maxOutbox+(100<<10) || len(o.queue) < 10 {
		t.Errorf("%d reports in %d bytes, %v", len(o.queue), info.Size(), err)
	}
	again, err := openOutbox(dir)
	if err != nil || len(again.queue) != len(o.queue) {
		t.Errorf("%d of %d are read again, %v", len(again.queue), len(o.queue), err)
	}
}

// One that is never answered at all is sent last, once others have waited for it.
func TestReportsPassOneThatIsNeverAnswered(t *testing.T) {
	dir := journal.Directory(t.TempDir())
	o, err := openOutbox(dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, rollout := range []string{"a", "b", "a", "c"} {
		if _, err := o.add(letterOf(rollout, 1)); err != nil {
			t.Fatal(err)
		}
	}
	now := time.Now()
	var order []string
	for i := range 4 {
		r := o.next(now, nil)
		order = append(order, rolloutOf(r))
		if rolloutOf(r) == "a" {
			o.vain(r, now.Add(time.Duration(i)*time.Minute))
		} else if err := o.done(r); err != nil {
			t.Fatal(err)
		}
	}
	if want := []string{"a", "b", "c", "a"}; !slices.Equal(order, want) || len(o.queue) != 2 {
		t.Errorf("sent %q, want %q; %d left", order, want, len(o.queue))
	}
	for err, want := range map[error]answer{
		&url.Error{Op: "Post", Err: os.ErrDeadlineExceeded}: later,
		errors.New("answer: not JSON"):                      doubtful,
	} {
		if got := answerOf(err); got != want {
			t.Errorf("%v is %d, want %d", err, got, want)
		}
	}
}

// How often a report was refused outlives the agent; an agent that starts anew all the
// time gives none up early, and neither does a clock that is set.
func TestPatienceOutlivesTheAgent(t *testing.T) {
	dir := journal.Directory(t.TempDir())
	began := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
	o, err := openOutbox(dir)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := o.add(letterOf("a", 1)); err != nil {
		t.Fatal(err)
	}
	for i := range uint32(5) {
		if o, err = openOutbox(dir); err != nil {
			t.Fatal(err)
		}
		at := began.Add(time.Duration(i) * time.Hour)
		so, err := o.refuse(o.queue[0], at, at)
		if err != nil || so.Times != i+1 || !so.Since.Equal(began) {
			t.Errorf("refusal %d: %+v, %v", i, so, err)
		}
	}
	if o.next(began.Add(4*time.Hour), nil) != nil || o.next(began.Add(5*time.Hour), nil) == nil {
		t.Error("no pause before it is sent again, or no end of it")
	}
	if err := o.done(o.queue[0]); err != nil || len(o.refused) != 0 {
		t.Errorf("%v, left of it: %v", err, o.refused)
	}
}

// A control plane that came back between a report that it missed and the next check-in
// hears of it soon, and not when it lets go of that check-in.
func TestReportsDoNotWaitForAHeldCheckin(t *testing.T) {
	bubble(t, func(t *testing.T) {
		p := newPlane(t)
		away, held := true, 0
		p.set(func() {
			p.routes = map[string]http.HandlerFunc{
				"/v1/agent/report": func(w http.ResponseWriter, r *http.Request) {
					if away {
						w.WriteHeader(http.StatusServiceUnavailable)
						return
					}
					p.reports = append(p.reports, protocol.ReportRequest{})
					w.Write([]byte(`{"eventId":"e"}`))
				},
				"/v1/agent/checkin": func(w http.ResponseWriter, r *http.Request) {
					away = false
					if r.Header.Get("Prefer") != "" {
						held++
						p.mu.Unlock()
						defer p.mu.Lock()
						<-r.Context().Done()
						return
					}
					w.Write([]byte(`{"target":null,"nextCheckinSecs":5}`))
				},
			}
		})
		m := newMachine(t, p, good)
		dir, err := journal.Open(m.path("state"))
		m.must(err)
		o, err := openOutbox(dir)
		m.must(err)
		_, err = o.add(&protocol.ReportRequest{Hostname: testHost, Event: protocol.EventOther, Details: []byte(`{}`)})
		m.must(err)
		stop := m.start(m.sim)
		time.Sleep(time.Minute)
		p.set(func() {
			if len(p.reports) != 1 || held != 1 {
				t.Errorf("%d reports heard, %d check-ins held", len(p.reports), held)
			}
		})
		stop()
	})
}
