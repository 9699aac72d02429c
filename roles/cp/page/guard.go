package page

import (
	"crypto/hmac"
	"errors"
	"net/http"

	"nixfleet/roles/protocol/client"
)

// maxForm bounds what a form sends, in bytes, and maxReason its reason.
const (
	maxForm   = 16 << 10
	maxReason = 500
)

func refuse(status int, text, hint string) error {
	return &client.Error{Status: status, Message: text, Hint: hint}
}

// forbidden reports whether the caller's scope does not have what was asked for: a page then
// leaves that part out.
func forbidden(err error) bool {
	var refusal *client.Error
	return errors.As(err, &refusal) && refusal.Status == http.StatusForbidden
}

// guard refuses a request that would change something and did not come from this page: the
// browser must say that it is of the same origin, and the form must carry the caller's token.
func (p *Page) guard(w http.ResponseWriter, r *http.Request, caller string) error {
	if r.Method == http.MethodGet || r.Method == http.MethodHead {
		return nil
	}
	if !sameOrigin(r) {
		return refuse(http.StatusForbidden, "the request came from another site, or from a browser that does not say",
			"Open this page itself, and use the form on it.")
	}
	r.Body = http.MaxBytesReader(w, r.Body, maxForm)
	if err := r.ParseForm(); err != nil {
		if tooLarge := (*http.MaxBytesError)(nil); errors.As(err, &tooLarge) {
			return refuse(http.StatusRequestEntityTooLarge, "the form is too large", "")
		}
		return refuse(http.StatusBadRequest, "the form cannot be read", "")
	}
	if !hmac.Equal([]byte(r.PostForm.Get("token")), []byte(p.token(caller))) {
		return refuse(http.StatusForbidden, "the form is of an older page",
			"Nothing was changed. Go back, reload the page, and send the form again.")
	}
	return nil
}

// sameOrigin reports whether the browser says that the request comes from this page's origin.
// One that says nothing is refused.
func sameOrigin(r *http.Request) bool {
	site, origin := r.Header.Get("Sec-Fetch-Site"), r.Header.Get("Origin")
	scheme := "http://"
	if r.TLS != nil {
		scheme = "https://"
	}
	return (site != "" || origin != "") && (site == "" || site == "same-origin") &&
		(origin == "" || origin == scheme+r.Host)
}
