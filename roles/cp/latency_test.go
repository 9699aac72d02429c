package cp

import (
	"net/http/httptest"
	"strings"
	"testing"
	"time"
)

func TestMetricsTellLatenciesAndChannels(t *testing.T) {
	e := newEstate(t, "a", "b")
	p := e.serve()
	a := p.agent("a")
	told := p.checkin(a, e.state("a", closureOf("a", 0)), 0).Target
	if told == nil {
		t.Fatal("no dispatch")
	}
	if err := p.confirm(a, "a", told); err != nil {
		t.Fatal(err)
	}
	p.checkin(a, e.state("a", closureOf("a", 1)), 0)
	scrape := p.send(p.web(e.operatorCert("operator-metrics")), sent{method: "GET", path: "/metrics"}).body
	for _, line := range []string{
		"nixfleet_dispatch_seconds_count 1", "nixfleet_confirm_seconds_count 1",
		`nixfleet_confirm_seconds_bucket{le="+Inf"} 1`,
		`nixfleet_channel_hosts{channel="stable",standing="converged"} 1`,
		`nixfleet_channel_hosts{channel="stable",standing="silent"} 1`,
		`nixfleet_channel_not_converged_since_timestamp_seconds{channel="stable"} `,
		"nixfleet_source_success_timestamp_seconds ", "# TYPE nixfleet_store_commit_seconds histogram",
	} {
		if !strings.Contains(scrape, line) {
			t.Errorf("%s is not in the metrics:\n%s", line, scrape)
		}
	}
	if strings.Contains(scrape, "nixfleet_store_commit_seconds_count 0\n") {
		t.Error("no commit was measured")
	}
}

func TestAHistogramCountsUpToItsBounds(t *testing.T) {
	r := newRegistry()
	h := newHistogram(r, "h", "text", 1, 10)
	for _, d := range []time.Duration{-time.Second, time.Second, 2 * time.Second, time.Minute} {
		h.observe(d)
	}
	answer := httptest.NewRecorder()
	r.ServeHTTP(answer, httptest.NewRequest("GET", "/metrics", nil))
	if got := answer.Body.String(); got != "# HELP h text\n# TYPE h histogram\nh_bucket{le=\"1\"} 2\n"+
		"h_bucket{le=\"10\"} 3\nh_bucket{le=\"+Inf\"} 4\nh_sum 63\nh_count 4\n" {
		t.Error(got)
	}
}
