package cp

import (
	"encoding/json"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"nixfleet/roles/cp/notify"
	"nixfleet/roles/protocol"
)

// hook is a webhook that remembers what it was told.
type hook struct {
	*httptest.Server
	mu   sync.Mutex
	told []string
	down bool
}

func newHook(t *testing.T) *hook {
	h := &hook{}
	h.Server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		var got struct {
			Data struct{ Summary, Reason string }
		}
		doc, _ := io.ReadAll(r.Body)
		if err := json.Unmarshal(doc, &got); err != nil {
			t.Error(err)
		}
		h.mu.Lock()
		defer h.mu.Unlock()
		if h.down {
			w.WriteHeader(http.StatusBadGateway)
		}
		h.told = append(h.told, got.Data.Summary)
	}))
	t.Cleanup(h.Close)
	return h
}

func (h *hook) was(told string) bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	return slices.Contains(h.told, told)
}

func TestPeopleAreToldOfARolloutThatHalts(t *testing.T) {
	e := newEstate(t, "a", "b")
	hook := newHook(t)
	e.write("secret", []byte("MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw\n"))
	notified := func(c *Config) {
		c.Notify = NotifyConfig{WebhookURL: hook.URL, WebhookSecretFile: e.path("secret"), SilentAfter: time.Minute}
	}
	p := e.serve(notified)
	a := p.agent("a")
	told := p.checkin(a, e.state("a", closureOf("a", 0)), 0).Target
	if told == nil {
		t.Fatal("no dispatch")
	}
	if err := p.report(a, "a", e.hostKeys["a"], protocol.EventActivationFailed,
		protocol.ActivationFailed{Phase: "switch"}); err != nil {
		t.Fatal(err)
	}
	p.eventually("the halt is told", func() bool { return hook.was("stable: rollout halted") })
	scrape := p.send(p.web(e.operatorCert("operator-metrics")), sent{method: "GET", path: "/metrics"}).body
	for _, line := range []string{`nixfleet_notifications_total{outcome="delivered",receiver="webhook"} 1`,
		`nixfleet_channel_rollout{channel="stable",state="Halted"} 1`} {
		if !strings.Contains(scrape, line) {
			t.Errorf("%s is not in the metrics:\n%s", line, scrape)
		}
	}
	p.stop()
	p = e.serve(notified)
	if err := p.operator().Hold(t.Context(), e.rolloutID(), "cancel", "wrong"); err != nil {
		t.Fatal(err)
	}
	p.eventually("the end is told", func() bool { return hook.was("over: stable: rollout halted") })
	p.stop()
	if told := hook.told; len(told) != 2 {
		t.Errorf("told %q: a restart tells nothing again", told)
	}
}

// TestWhatPeopleAreTold looks at each condition that is not a rollout's.
func TestWhatPeopleAreTold(t *testing.T) {
	e := newEstate(t, "a", "b")
	e.write("secret", []byte("MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw\n"))
	cfg := e.config()
	cfg.Notify = NotifyConfig{WebhookURL: "https://hooks.example.com", WebhookSecretFile: e.path("secret"),
		SilentAfter: time.Minute}
	if err := cfg.complete(); err != nil {
		t.Fatal(err)
	}
	s, err := newServer(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	defer s.store.Close()
	s.release.prime(t.Context())
	kinds := func(now time.Time) (out []string) {
		for _, c := range s.notices.holding(now) {
			out = append(out, strings.TrimSpace(c.Kind+" "+c.Channel+" "+strings.Join(c.Hosts, ",")))
		}
		slices.Sort(out)
		return slices.Compact(out)
	}
	now := time.Now()
	if got := kinds(now); len(got) != 0 {
		t.Errorf("told %q of a fleet that is well", got)
	}
	s.release.failing.Store(now.Add(-time.Hour).Unix())
	caller := s.handlers.checkins.seen
	caller.mu.Lock()
	caller.byHost["a"] = sighting{at: now, notBefore: now.Add(-9 * time.Hour), notAfter: now.Add(time.Hour)}
	caller.byHost["b"] = sighting{at: now, notBefore: now.Add(-5 * time.Hour), notAfter: now.Add(5 * time.Hour)}
	caller.mu.Unlock()
	want := []string{notify.KindCertificate + " stable a", notify.KindSource}
	if got := kinds(now); !slices.Equal(got, want) {
		t.Errorf("told %q, want %q", got, want)
	}
	if got := kinds(now.Add(48 * time.Hour)); !slices.Contains(got, notify.KindStale+" stable") ||
		!slices.Contains(got, notify.KindCertificate) {
		t.Errorf("two days later told %q", got)
	}
}

// TestASilentHostIsKnownAcrossARestart: a control plane that starts has heard of nobody, and says so of nobody.
func TestASilentHostIsKnownAcrossARestart(t *testing.T) {
	e := newEstate(t, "a", "b")
	e.write("secret", []byte("MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw\n"))
	p := e.serve()
	p.checkin(p.agent("a"), e.state("a", closureOf("a", 1)), 0)
	p.stop()
	cfg := e.config()
	cfg.Notify = NotifyConfig{WebhookURL: "https://hooks.example.com", WebhookSecretFile: e.path("secret"),
		SilentAfter: time.Hour}
	if err := cfg.complete(); err != nil {
		t.Fatal(err)
	}
	s, err := newServer(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	defer s.store.Close()
	s.release.prime(t.Context())
	now := time.Now()
	if got := s.notices.silent(now); len(got) != 0 {
		t.Errorf("silent at the start: %v", got)
	}
	later := now.Add(2 * time.Hour)
	got := s.notices.silent(later)
	if len(got) != 1 || !slices.Equal(got[0].Hosts, []string{"a"}) {
		t.Fatalf("silent two hours later: %v; b never ran", got)
	}
	if err := s.notices.book.Look(got, later); err != nil {
		t.Fatal(err)
	}
	if got := s.notices.silent(now); len(got) != 1 {
		t.Errorf("a host that people know of as silent is not any more: %v", got)
	}
}

func TestNotifySendsATest(t *testing.T) {
	hook := newHook(t)
	e := newEstate(t, "a")
	e.write("secret", []byte("MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw\n"))
	args := []string{"notify", "--test", "--notify-webhook-url", hook.URL,
		"--notify-webhook-secret-file", e.path("secret")}
	out, code, err := typed(t, t.Context(), args...)
	if code != 0 || out != "webhook took the test\n" || !hook.was("this is a test") {
		t.Errorf("exit %d %v\n%s", code, err, out)
	}
	hook.down = true
	if _, code, err := typed(t, t.Context(), args...); code != 1 ||
		!strings.Contains(err.Error(), "webhook: the receiver answers 502") {
		t.Errorf("exit %d %v", code, err)
	}
	if err := os.WriteFile(e.path("secret"), []byte("short"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, code, err := typed(t, t.Context(), args...); code != 1 || strings.Contains(err.Error(), "short") {
		t.Errorf("exit %d %v", code, err)
	}
	for name, c := range map[string]struct {
		args []string
		want string
	}{
		"nobody":           {[]string{"--test"}, "nothing to send"},
		"no secret":        {[]string{"--test", "--notify-webhook-url", "https://x"}, "given together"},
		"in the clear":     {[]string{"--test", "--notify-webhook-url", "http://hooks.example.com"}, "https://"},
		"an unknown kind":  {[]string{"--test", "--notify-on", "everything"}, "rollout.halted"},
		"half a mail":      {[]string{"--test", "--notify-mail-server", "smtps://mail.example.com"}, "mail"},
		"password in mail": {[]string{"--test", "--notify-mail-server", "smtps://a:b@mail.example.com"}, "file"},
	} {
		out, code, err := typed(t, t.Context(), append([]string{"notify"}, c.args...)...)
		if code != 2 || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: exit %d %v, want 2 and %q\n%s", name, code, err, c.want, out)
		}
	}
}
