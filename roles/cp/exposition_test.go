package cp

import (
	"net/http/httptest"
	"sync"
	"testing"
)

// TestExposition writes metrics of every kind. The form is Prometheus' text format 0.0.4.
func TestExposition(t *testing.T) {
	r := newRegistry()
	hits := r.add(&family{name: "b_total", help: "Hits, by\nhost \\ kind.", kind: kindCounter,
		labels: []string{"kind", "host"}})
	r.add(&family{name: "c_nothing_total", help: "Nobody counted.", kind: kindCounter})
	r.add(&family{name: "a_seconds", help: "Now.", kind: kindGauge,
		collect: func(emit func(float64, ...string)) { emit(1.5) }})
	var all sync.WaitGroup
	for range 100 {
		all.Go(func() { hits.WithLabelValues("z", "web-01").Inc() })
	}
	all.Wait()
	hits.WithLabelValues("a\"\\\n\xff", "web-02").Set(1.7e9)
	answer := httptest.NewRecorder()
	r.ServeHTTP(answer, httptest.NewRequest("GET", "/metrics", nil))
	want := "# HELP a_seconds Now.\n# TYPE a_seconds gauge\na_seconds 1.5\n" +
		"# HELP b_total Hits, by\\nhost \\\\ kind.\n# TYPE b_total counter\n" +
		`b_total{host="web-01",kind="z"} 100` + "\n" +
		`b_total{host="web-02",kind="a\"\\\n` + "\uFFFD" + `"} 1.7e+09` + "\n"
	if answer.Body.String() != want || answer.Header().Get("Content-Type") !=
		"text/plain; version=0.0.4; charset=utf-8; escaping=underscores" {
		t.Errorf("%v\n%s\nwant\n%s", answer.Header(), answer.Body, want)
	}
}
