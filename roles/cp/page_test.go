package cp

import (
	"io"
	"net"
	"net/http"
	"net/url"
	"regexp"
	"strings"
	"testing"

	"nixfleet/pki"
	"nixfleet/roles/protocol"
)

// pageSite is a control plane with a page, and a browser of an operator.
type pageSite struct {
	*plane
	site    string
	browser *http.Client
}

func servePage(t *testing.T, e *estate) *pageSite {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	p := e.serve(func(c *Config) { c.PageListener = listener })
	return &pageSite{p, "https://" + listener.Addr().String(), p.web(p.operatorCert("operator-jo"))}
}

// get reads a page.
func (s *pageSite) get(c *http.Client, path string) (int, string, http.Header) {
	s.t.Helper()
	return s.read(c.Get(s.site + path))
}

// read takes an answer apart.
func (s *pageSite) read(resp *http.Response, err error) (int, string, http.Header) {
	s.t.Helper()
	if err != nil {
		s.t.Fatal(err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		s.t.Fatal(err)
	}
	return resp.StatusCode, string(body), resp.Header
}

// post sends a form with the headers of a browser.
func (s *pageSite) post(path string, form url.Values, header map[string]string) (int, string) {
	s.t.Helper()
	req, err := http.NewRequest(http.MethodPost, s.site+path, strings.NewReader(form.Encode()))
	if err != nil {
		s.t.Fatal(err)
	}
	req.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	for name, value := range header {
		req.Header.Set(name, value)
	}
	status, body, _ := s.read(s.browser.Do(req))
	return status, body
}

// formToken is the token in the form of an act.
func (s *pageSite) formToken(act string) string {
	s.t.Helper()
	_, body, _ := s.get(s.browser, act)
	token := regexp.MustCompile(`name="token" value="([^"]+)"`).FindStringSubmatch(body)
	if token == nil {
		s.t.Fatalf("no token in %s", body)
	}
	return token[1]
}

// TestThePageIsForOperators: the page's own listener lets nobody else in, and a revocation
// shuts an operator out at once.
func TestThePageIsForOperators(t *testing.T) {
	e := newEstate(t, "a", "b")
	s := servePage(t, e)
	status, body, header := s.get(s.browser, "/")
	if status != http.StatusOK || !strings.Contains(body, "stable") || !strings.Contains(body, "operator-jo") {
		t.Errorf("an operator is answered %d %s", status, body)
	}
	for name, want := range map[string]string{
		"X-Frame-Options": "DENY", "Cache-Control": "no-store", "Referrer-Policy": "same-origin",
	} {
		if header.Get(name) != want {
			t.Errorf("%s is %q, want %q", name, header.Get(name), want)
		}
	}
	if csp := header.Get("Content-Security-Policy"); !strings.HasPrefix(csp, "default-src 'none'; ") ||
		!strings.Contains(csp, "frame-ancestors 'none'") || strings.Contains(csp, "unsafe") {
		t.Errorf("policy %q", csp)
	}
	if status, _, _ := s.get(s.web(e.agentCert("a", e.signed)), "/"); status != http.StatusForbidden {
		t.Errorf("a host is answered %d", status)
	}
	if status, body, _ := s.get(s.web(nil), "/"); status != http.StatusUnauthorized || strings.Contains(body, "stable") {
		t.Errorf("without a certificate the answer is %d %s", status, body)
	}
	if err := s.operator().Revocations().Add(t.Context(), "operator-jo", nil, "gone"); err != nil {
		t.Fatal(err)
	}
	if status, _, _ := s.get(s.browser, "/"); status != http.StatusUnauthorized {
		t.Errorf("a revoked operator is answered %d", status)
	}
}

// TestThePageShowsAndHoldsARollout drives a small rollout through the page.
func TestThePageShowsAndHoldsARollout(t *testing.T) {
	e := newEstate(t, "a", "b")
	e.fleet.Hosts["b"].Tags = []string{"edge"}
	e.publish()
	s := servePage(t, e)
	s.checkin(s.agent("a"), e.state("a", closureOf("a", 0)), 0)
	place := "/rollouts/" + e.rolloutID()
	for path, want := range map[string]string{
		"/": "What moves now", place: "Dispatched", "/hosts": `href="/hosts/b"`, "/hosts?tag=edge": `href="/hosts/b"`,
		"/hosts/a": closureOf("a", 1), "/rollouts": place, "/releases": strings.Repeat("ab", 20),
		"/releases/" + strings.Repeat("ab", 20): place, "/certificates": "operator-jo",
		"/events?host=a": "host-dispatched",
		"/search?q=edge": `href="/hosts/b"`, "/search?q=abab": place, "/hosts?state=moving": `href="/hosts/a"`,
	} {
		if status, body, _ := s.get(s.browser, path); status != http.StatusOK || !strings.Contains(body, want) {
			t.Errorf("%s: %d, without %q:\n%s", path, status, want, body)
		}
	}
	for path, want := range map[string]int{
		"/none": 404, "/hosts/none": 404, "/hosts?host=%5Ba": 400, "/search?q=none": 404,
	} {
		if status, _, _ := s.get(s.browser, path); status != want {
			t.Errorf("%s: %d, want %d", path, status, want)
		}
	}

	act := place + "/act/pause"
	form := url.Values{"token": {s.formToken(act)}, "reason": {"a <b> & c"}, "sure": {"yes"}}
	own := map[string]string{"Origin": s.site, "Sec-Fetch-Site": "same-origin"}
	without := func(name string) url.Values {
		short := url.Values{}
		for k, v := range form {
			if k != name {
				short[k] = v
			}
		}
		return short
	}
	for _, c := range []struct {
		why    string
		form   url.Values
		header map[string]string
		want   int
	}{
		{"a browser that says nothing of where it comes from", form, nil, 403},
		{"another site", form, map[string]string{"Sec-Fetch-Site": "cross-site", "Origin": "https://evil.example"}, 403},
		{"another site of the same domain", form, map[string]string{"Sec-Fetch-Site": "same-site"}, 403},
		{"another origin", form, map[string]string{"Origin": "https://evil.example"}, 403},
		{"no token", without("token"), own, 403},
		{"no reason", without("reason"), own, 200},
		{"not confirmed", without("sure"), own, 200},
	} {
		if status, body := s.post(act, c.form, c.header); status != c.want {
			t.Errorf("%s: %d, want %d: %s", c.why, status, c.want, body)
		}
		list, err := s.operator().Audit(t.Context(), 0, 1)
		if err != nil || len(list.Entries) != 0 {
			t.Fatalf("%s: something was done: %+v %v", c.why, list, err)
		}
	}
	status, body := s.post(act, form, own)
	if status != 200 || !strings.Contains(body, "The rollout is paused.") ||
		!strings.Contains(body, "a &lt;b&gt; &amp; c") ||
		strings.Contains(body, "<b>") {
		t.Errorf("after the pause: %d %s", status, body)
	}
	list, err := s.operator().Audit(t.Context(), 0, 1)
	if err != nil || len(list.Entries) != 1 || list.Entries[0].Actor != "operator-jo" ||
		list.Entries[0].Action != protocol.ActionPause {
		t.Errorf("recorded %+v %v", list, err)
	}
}

// TestScopesHoldOnThePage: an operator of one channel sees nothing of another, and one who may
// read changes nothing.
func TestScopesHoldOnThePage(t *testing.T) {
	e := newEstate(t, "a", "b")
	e.fleet.Channels["edge"] = e.fleet.Channels["stable"]
	e.fleet.Hosts["b"].Channel = "edge"
	e.fleet.Waves = nil
	e.publish()
	s := servePage(t, e)
	for _, host := range []string{"a", "b"} {
		s.checkin(s.agent(host), e.state(host, closureOf(host, 0)), 0)
	}
	s.browser = s.web(e.scopedCert("operator-edge", &pki.Scope{Channels: []string{"edge"}}))
	for path, want := range map[string]int{
		"/": 200, "/hosts": 200, "/hosts/b": 200, "/rollouts": 200, "/rollouts/" + e.heads["edge"].RolloutID: 200,
		"/events": 200, "/hosts/a": 403, "/rollouts/" + e.heads["stable"].RolloutID: 404, "/audit": 403,
	} {
		if status, body, _ := s.get(s.browser, path); status != want || strings.Contains(body, "stable") {
			t.Errorf("%s: %d, want %d, and nothing of the other channel:\n%s", path, status, want, body)
		}
	}
	s.browser = s.web(e.scopedCert("operator-reader", &pki.Scope{Verbs: []string{"read"}}))
	act := "/rollouts/" + e.heads["edge"].RolloutID + "/act/pause"
	form := url.Values{"token": {s.formToken(act)}, "reason": {"x"}, "sure": {"yes"}}
	if status, body := s.post(act, form, map[string]string{"Origin": s.site}); status != http.StatusForbidden ||
		!strings.Contains(body, "verb pause") {
		t.Errorf("a reader's pause: %d %s", status, body)
	}
	// The token of one operator is of no use to another.
	s.browser = s.web(e.operatorCert("operator-jo"))
	if status, _ := s.post(act, form, map[string]string{"Origin": s.site}); status != http.StatusForbidden {
		t.Errorf("with the token of another operator: %d", status)
	}
}
