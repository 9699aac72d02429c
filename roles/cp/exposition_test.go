package cp

import (
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"nixfleet/roles/cp/notify"
	"nixfleet/roles/protocol"
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

// TestEveryMetricOfTheAlertsExists holds rules and board to what a control plane serves whose rollout is under way,
// whose source fails and whose webhook is set, and every alert to its page.
func TestEveryMetricOfTheAlertsExists(t *testing.T) {
	e := newEstate(t, "a", "b")
	hook := newHook(t)
	e.write("secret", []byte("MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw\n"))
	reload := make(chan os.Signal, 1)
	p := e.serve(func(c *Config) {
		c.Reload = reload
		c.Notify = NotifyConfig{WebhookURL: hook.URL, WebhookSecretFile: e.path("secret"), SilentAfter: time.Minute}
	})
	a := p.agent("a")
	if p.checkin(a, e.state("a", closureOf("a", 0)), 0).Target == nil {
		t.Fatal("no dispatch")
	}
	b := p.agent("b")
	p.checkin(b, e.state("b", closureOf("b", 0)), 0) // its wave is closed: a gate holds it
	if err := p.report(a, "a", e.hostKeys["a"], protocol.EventActivationFailed,
		protocol.ActivationFailed{Phase: "switch"}); err != nil {
		t.Fatal(err)
	}
	e.empty()
	reload <- syscall.SIGHUP
	web := p.web(e.operatorCert("operator-prometheus"))
	var scrape string
	p.eventually("the source fails and the halt is told", func() bool {
		scrape = p.send(web, sent{method: "GET", path: "/metrics"}).body
		return strings.Contains(scrape, "nixfleet_source_failing_since_timestamp_seconds ") &&
			strings.Contains(scrape, "nixfleet_notifications_total{")
	})
	for _, name := range []string{"rules.yml", "board.json"} {
		doc, err := os.ReadFile(filepath.Join("../../docs/alerts", name))
		if err != nil {
			t.Fatal(err)
		}
		metrics := regexp.MustCompile(`nixfleet_[a-z_]+`).FindAllString(string(doc), -1)
		if len(metrics) < 10 {
			t.Errorf("%s names %d metrics", name, len(metrics))
		}
		for _, metric := range metrics {
			if !strings.Contains(scrape, "\n"+metric+"{") && !strings.Contains(scrape, "\n"+metric+" ") {
				t.Errorf("%s names %s, which the control plane does not serve", name, metric)
			}
		}
		for _, page := range regexp.MustCompile(`docs/alerts/[a-z-]+\.md`).FindAllString(string(doc), -1) {
			if _, err := os.Stat(filepath.Join("../..", page)); err != nil {
				t.Errorf("%s: %v", name, err)
			}
		}
	}
	for _, kind := range notify.Kinds {
		if _, err := os.Stat("../../docs/alerts/" + strings.ReplaceAll(kind, ".", "-") + ".md"); err != nil {
			t.Error(err)
		}
	}
}

// TestAlertRules has Debian's promtool check the rules and run their tests.
func TestAlertRules(t *testing.T) {
	promtool, err := exec.LookPath("promtool")
	if err != nil {
		t.Skip("no promtool; .ci/run packages installs Debian's")
	}
	for _, args := range [][]string{{"check", "rules", "rules.yml"}, {"test", "rules", "rules_test.yml"}} {
		cmd := exec.CommandContext(t.Context(), promtool, args...)
		cmd.Dir = "../../docs/alerts"
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Errorf("promtool %s: %v\n%s", strings.Join(args, " "), err, out)
		}
	}
}
