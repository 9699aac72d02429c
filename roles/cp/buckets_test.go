package cp

import (
	"context"
	"crypto/tls"
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"golang.org/x/time/rate"
)

func TestABucketIsEmptyAndFillsAgain(t *testing.T) {
	now := time.Now()
	b := newBuckets(2, 3)
	for _, step := range []struct {
		key  string
		wait time.Duration
		want string // y or n, one a request
	}{
		{"a", 0, "yyyn"}, {"b", 0, "yyyn"}, {"a", 499 * time.Millisecond, "n"}, {"a", time.Millisecond, "yn"},
		{"a", time.Hour, "yyyn"},
	} {
		now = now.Add(step.wait)
		got := ""
		for range step.want {
			got += map[bool]string{true: "y", false: "n"}[b.take(step.key, now)]
		}
		if got != step.want {
			t.Errorf("%s, %s later: %s, want %s", step.key, step.wait, got, step.want)
		}
	}
}

func TestBucketsOfThoseWhoAreGoneAreForgotten(t *testing.T) {
	now := time.Now()
	b := newBuckets(1, 10)
	for i := range fewBuckets {
		b.take(fmt.Sprint(i), now)
	}
	for range 9 {
		b.take("busy", now)
	}
	now = now.Add(2 * time.Second)
	b.take("new", now)
	if got := b.count(); got != 2 {
		t.Errorf("%d buckets are left, want those of busy and new", got)
	}
	left := 0
	for b.take("busy", now) {
		left++
	}
	if left != 3 {
		t.Errorf("busy has %d tokens, want the 3 that its bucket has: was it forgotten?", left)
	}
	// However many come, memory is bounded; who finds no bucket is not refused.
	for i := range maxBuckets + 10 {
		if !b.take("crowd "+fmt.Sprint(i), now) {
			t.Fatalf("newcomer %d is refused", i)
		}
	}
	if got := b.count(); got != maxBuckets {
		t.Errorf("%d buckets, want %d", got, maxBuckets)
	}
	now = now.Add(time.Hour)
	b.take("late", now)
	if got := b.count(); got != 1 {
		t.Errorf("%d buckets an hour later, want 1", got)
	}
}

// TestTheBoundIsBeyondAnyAgent: a poll every second, and every ten minutes a
// release whose check of compliance ends in a report for each of 500 controls.
func TestTheBoundIsBeyondAnyAgent(t *testing.T) {
	var cfg Config
	_ = cfg.complete() // the rest is missing
	b := newBuckets(rate.Limit(cfg.MaxRate), hostBurst*cfg.MaxRate)
	now := time.Now()
	for second := range 3600 {
		now = now.Add(time.Second)
		requests := 1
		if second%600 == 0 {
			requests += 3 + 500
		}
		for range requests {
			if !b.take("host", now) {
				t.Fatalf("refused in second %d", second)
			}
		}
	}
}

func TestSourceOfARequest(t *testing.T) {
	for remote, want := range map[string]string{
		"192.0.2.7:4711": "192.0.2.7", "[::ffff:192.0.2.7]:4711": "192.0.2.7",
		"[2001:db8:1:2:3:4:5:6]:4711": "2001:db8:1:2::/64", "[2001:db8:1:2::]:1": "2001:db8:1:2::/64",
		"[fe80::1%eth0]:1": "fe80::/64",
		"pipe":             "", "": "", "@": "", "localhost:1": "",
	} {
		if got := sourceOf(remote); got != want {
			t.Errorf("%s: %q, want %q", remote, got, want)
		}
	}
}

// asked is the answer of the API to a request on a connection of cert's holder,
// which may be nil.
func asked(t *testing.T, api http.Handler, cert *tls.Certificate, remote string, c sent) *httptest.ResponseRecorder {
	t.Helper()
	ctx := context.WithValue(t.Context(), connectionKey, &connection{})
	if cert != nil {
		ctx = connected(t, cert)
	}
	body, _ := c.body.(string)
	r := httptest.NewRequestWithContext(ctx, c.method, c.path, strings.NewReader(body))
	r.RemoteAddr = remote
	for name, value := range c.header {
		r.Header.Set(name, value)
	}
	w := httptest.NewRecorder()
	api.ServeHTTP(w, r)
	return w
}

func TestAHostThatAsksInATightLoopIsAlone(t *testing.T) {
	e := serialEstate(t, "a", "b")
	at(t, func(t *testing.T) {
		s := e.primed(t)
		s.door.hostRate = newBuckets(1, 5)
		api, before := s.api, time.Now().Add(-time.Hour)
		whoami := func(cert *tls.Certificate, accept string) *httptest.ResponseRecorder {
			return asked(t, api, cert, "192.0.2.1:1",
				sent{method: "GET", path: "/v1/whoami", header: map[string]string{"Accept": accept}})
		}
		a, b := e.agentCert("a", before), e.agentCert("b", before)
		// Whoever has a certificate of this name with another key, an old one for example.
		stranger := e.certFor("a", generate(t, "ed25519"), before, 12*time.Hour)
		statuses := func(cert *tls.Certificate, n int) (got []int) {
			for range n {
				got = append(got, whoami(cert, "").Code)
			}
			return got
		}
		check := func(what string, got []int, want string) {
			t.Helper()
			if fmt.Sprint(got) != want {
				t.Errorf("%s: %v, want %s", what, got, want)
			}
		}
		check("another key", statuses(stranger, 7), "[401 401 401 401 401 429 429]")
		check("the host", statuses(a, 7), "[200 200 200 200 200 429 429]")
		check("a renewed certificate of the same key", statuses(e.agentCert("a", before.Add(time.Minute)), 1), "[429]")
		check("another host", statuses(b, 1), "[200]")
		check("operators", statuses(e.operatorCert("a"), 50), strings.TrimSuffix("["+strings.Repeat("200 ", 50), " ")+"]")
		if w := whoami(a, ""); w.Header().Get("Retry-After") != "10" || w.Body.Len() != 0 {
			t.Errorf("Retry-After %q, body %q", w.Header().Get("Retry-After"), w.Body)
		}
		if w := whoami(a, "application/json"); !strings.Contains(w.Body.String(), `"code":"too-many-requests"`) {
			t.Errorf("no reason for who asks for one: %q", w.Body)
		}
		// What everybody may ask is not concerned.
		if w := asked(t, api, a, "192.0.2.1:1", sent{method: "GET", path: "/healthz"}); w.Code != 200 {
			t.Errorf("healthz: %d", w.Code)
		}
		counted := asked(t, api, e.operatorCert("jo"), "192.0.2.1:1", sent{method: "GET", path: "/metrics"}).Body.String()
		if got := metricOf(counted, `nixfleet_requests_limited_total{limit="host"}`); got != "7" {
			t.Errorf("counted %q requests, want 7", got)
		}
		time.Sleep(10 * time.Second) // as Retry-After says
		check("after a while", statuses(a, 5), "[200 200 200 200 200]")
	})
}

func TestAFloodFromOneAddressStarvesNobody(t *testing.T) {
	e := serialEstate(t, "a")
	at(t, func(t *testing.T) {
		s := e.primed(t)
		s.cfg.WebhookTokenFile = e.path("trust.json") // a secret that nobody guesses
		s.door.sourceRate, s.door.tokenLimit = newBuckets(1, 3), rate.NewLimiter(1, 9)
		api := s.api
		enrol := sent{method: "POST", path: "/v1/enroll", body: "{}",
			header: map[string]string{"Content-Type": "application/json"}}
		report := sent{method: "POST", path: "/v1/agent/bootstrap-report", body: "{}", header: enrol.header}
		announce := sent{method: "POST", path: "/v1/webhook", body: "{}"}
		for _, step := range []struct {
			name   string
			remote string
			call   sent
			want   int
		}{
			{"first", "192.0.2.1:1", enrol, 422},
			{"second", "192.0.2.1:2", report, 422},
			{"third", "192.0.2.1:3", announce, 401},
			{"fourth", "192.0.2.1:4", enrol, 429},
			{"the other paths share it", "192.0.2.1:5", report, 429},
			{"guessing the webhook's token as well", "192.0.2.1:6", announce, 429},
			{"another address", "192.0.2.2:1", enrol, 422},
			{"an IPv6 address", "[2001:db8::1]:1", enrol, 422},
			{"its neighbour", "[2001:db8::2]:1", enrol, 422},
			{"another neighbour", "[2001:db8::3:0:0:1]:1", enrol, 422},
			{"one too many of that network", "[2001:db8::4]:1", enrol, 429},
			{"another network", "[2001:db8:0:1::1]:1", enrol, 422},
			{"what is not an address", "pipe", enrol, 422},
			{"what is not an address, again", "pipe", enrol, 422},
			{"the last of all", "192.0.2.3:1", enrol, 429},
		} {
			w := asked(t, api, nil, step.remote, step.call)
			if w.Code != step.want || (w.Code == 429) != (w.Header().Get("Retry-After") == "10") {
				t.Errorf("%s: %d, Retry-After %q, want %d", step.name, w.Code, w.Header().Get("Retry-After"), step.want)
			}
		}
		counted := asked(t, api, e.operatorCert("jo"), "192.0.2.1:1", sent{method: "GET", path: "/metrics"}).Body.String()
		for limit, want := range map[string]string{"source": "4", "all": "1"} {
			if got := metricOf(counted, `nixfleet_requests_limited_total{limit="`+limit+`"}`); got != want {
				t.Errorf("%s: counted %q, want %s", limit, got, want)
			}
		}
	})
}

// count is how many buckets there are.
func (b *buckets) count() int {
	b.mu.Lock()
	defer b.mu.Unlock()
	return len(b.byKey)
}
