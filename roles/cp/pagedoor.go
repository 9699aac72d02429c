package cp

import (
	"context"
	"net/http"
	"time"

	"nixfleet/pki"
	"nixfleet/roles/cp/page"
)

// pageDoor lets operators' browsers in to the page. What they may see and do there is looked
// at once more for every question, by the table of routes.
type pageDoor struct {
	door *door
	page *page.Page
}

// ServeHTTP answers a browser.
func (p *pageDoor) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	_ = http.NewResponseController(w).SetWriteDeadline(time.Now().Add(requestTimeout))
	if connectionOf(r.Context()) == nil {
		w.Header().Set("Connection", "close")
	}
	w.Header().Set("Cache-Control", "no-store")
	w.Header().Set("X-Content-Type-Options", "nosniff")
	if p.door.snapshot.Load() == nil {
		w.Header().Set("Retry-After", "30")
		http.Error(w, "the control plane waits for its first signed release", http.StatusServiceUnavailable)
		return
	}
	if err := p.door.withinRate(w, r); err != nil {
		http.Error(w, "too many requests", http.StatusTooManyRequests)
		return
	}
	id, err := p.door.authorize(r.Context())
	switch {
	case err != nil:
		// The log has the reason; a browser shows that it needs another certificate.
		_ = p.door.shut(r, id, err)
		http.Error(w, "the page wants an operator's certificate that is valid and not revoked: "+err.Error(),
			http.StatusUnauthorized)
		return
	case id.Role != pki.RoleOperator:
		http.Error(w, "the page is for operators; this is a host's certificate", http.StatusForbidden)
		return
	}
	p.page.ServeHTTP(w, r.WithContext(context.WithValue(r.Context(), identityKey, id)))
}
