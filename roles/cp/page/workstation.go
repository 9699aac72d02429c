package page

import (
	"crypto/hmac"
	"crypto/rand"
	"net"
	"net/http"
	"strings"
	"sync/atomic"

	"nixfleet/roles/protocol/client"
)

// EnterPath is where a browser shows the key that lets it in.
const EnterPath = "/enter"

// workstation lets one browser of this machine in to the page. Other users of the machine and
// other sites can reach its address as well, so it wants a key that works once, then the
// session's cookie, and its own name in every request: a site whose name resolves to this
// machine has another.
type workstation struct {
	page    *Page
	hosts   []string // names that requests may be for
	key     string
	used    atomic.Bool
	cookie  string // its name
	session string
}

// Workstation serves the page for an operator's client at an address of this machine, to the
// browser that shows key first.
func Workstation(plane *client.Client, address, key string) http.Handler {
	_, port, _ := net.SplitHostPort(address)
	return &workstation{page: New(plane), hosts: []string{address, "localhost:" + port}, key: key,
		cookie: "nixfleet-" + port, session: rand.Text()}
}

// ServeHTTP answers a browser.
func (s *workstation) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	protect(w.Header())
	switch {
	case !s.ours(r.Host):
		http.Error(w, "this is not the address that nixfleet dashboard has printed", http.StatusMisdirectedRequest)
	case r.URL.Path == EnterPath:
		s.enter(w, r)
	case !s.known(r):
		http.Error(w, "open the address that nixfleet dashboard has printed; it works once", http.StatusForbidden)
	default:
		s.page.ServeHTTP(w, r)
	}
}

func (s *workstation) ours(host string) bool {
	for _, ours := range s.hosts {
		if strings.EqualFold(host, ours) {
			return true
		}
	}
	return false
}

// enter takes the key for a cookie, once.
func (s *workstation) enter(w http.ResponseWriter, r *http.Request) {
	if s.known(r) {
		http.Redirect(w, r, "/", http.StatusSeeOther)
		return
	}
	right := hmac.Equal([]byte(r.URL.Query().Get("key")), []byte(s.key))
	if r.Method != http.MethodGet || !right || !s.used.CompareAndSwap(false, true) {
		http.Error(w, "the key is wrong or was used; start nixfleet dashboard again", http.StatusForbidden)
		return
	}
	// Lax, since the browser may come from a file; what changes something looks further.
	http.SetCookie(w, &http.Cookie{Name: s.cookie, Value: s.session, Path: "/", HttpOnly: true,
		SameSite: http.SameSiteLaxMode})
	http.Redirect(w, r, "/", http.StatusSeeOther)
}

// known reports whether the request carries the session's cookie.
func (s *workstation) known(r *http.Request) bool {
	cookie, err := r.Cookie(s.cookie)
	return err == nil && hmac.Equal([]byte(cookie.Value), []byte(s.session))
}
