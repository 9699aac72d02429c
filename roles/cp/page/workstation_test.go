package page

import (
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"testing"

	"nixfleet/roles/protocol/client"
)

func escaped(s string) string { return url.PathEscape(s) }

// TestTheWorkstationLetsOneBrowserIn: the key works once, requests for another host name are
// refused, and without the cookie there is nothing to see.
func TestTheWorkstationLetsOneBrowserIn(t *testing.T) {
	plane, err := client.New(client.Config{BaseURL: "https://127.0.0.1:1"})
	if err != nil {
		t.Fatal(err)
	}
	h := Workstation(plane, "127.0.0.1:8090", "the-key")
	ask := func(method, path, host, cookie string) *httptest.ResponseRecorder {
		r := httptest.NewRequest(method, path, nil)
		r.Host = host
		if cookie != "" {
			r.Header.Set("Cookie", cookie)
		}
		w := httptest.NewRecorder()
		h.ServeHTTP(w, r)
		return w
	}
	const ours = "127.0.0.1:8090"
	for _, c := range []struct {
		why, method, path, host string
		want                    int
	}{
		{"no cookie", "GET", "/", ours, http.StatusForbidden},
		{"no cookie for the stream", "GET", "/live?after=0", ours, http.StatusForbidden},
		{"no key", "GET", EnterPath, ours, http.StatusForbidden},
		{"a wrong key", "GET", EnterPath + "?key=the-kex", ours, http.StatusForbidden},
		{"a name that resolves to this machine", "GET", EnterPath + "?key=the-key", "evil.example:8090", 421},
		{"another port", "GET", EnterPath + "?key=the-key", "127.0.0.1:8091", 421},
		{"a form with the key", "POST", EnterPath + "?key=the-key", ours, http.StatusForbidden},
	} {
		if got := ask(c.method, c.path, c.host, ""); got.Code != c.want || got.Header().Get("Set-Cookie") != "" {
			t.Errorf("%s: %d, want %d", c.why, got.Code, c.want)
		}
	}
	first := ask("GET", EnterPath+"?key=the-key", "LOCALHOST:8090", "")
	cookie := first.Header().Get("Set-Cookie")
	if first.Code != http.StatusSeeOther || first.Header().Get("Location") != "/" ||
		!strings.HasPrefix(cookie, "nixfleet-8090=") || !strings.Contains(cookie, "HttpOnly") ||
		!strings.Contains(cookie, "SameSite=Lax") || strings.Contains(cookie, "the-key") {
		t.Fatalf("the key opens with %d %v", first.Code, first.Header())
	}
	cookie, _, _ = strings.Cut(cookie, ";")
	if second := ask("GET", EnterPath+"?key=the-key", ours, ""); second.Code != http.StatusForbidden {
		t.Errorf("the key works twice: %d", second.Code)
	}
	if again := ask("GET", EnterPath+"?key=the-key", ours, cookie); again.Code != http.StatusSeeOther {
		t.Errorf("the browser that is in already: %d", again.Code)
	}
	// The page is reached; the control plane behind it is not there.
	in := ask("GET", "/", ours, cookie)
	if in.Code != http.StatusBadGateway || !strings.Contains(in.Body.String(), "there was no answer") {
		t.Errorf("with the cookie: %d %s", in.Code, in.Body)
	}
	if other := ask("GET", "/", "evil.example:8090", cookie); other.Code != 421 {
		t.Errorf("with the cookie and another name: %d", other.Code)
	}
}
