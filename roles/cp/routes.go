package cp

import (
	"net/http"
	"path"
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus/promhttp"
)

// handler is the API: the checks that every path has, then the paths.
func (s *server) handler() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /healthz", s.healthz)
	mux.HandleFunc("POST /v1/enroll", s.withToken(s.enroll))
	mux.HandleFunc("POST /v1/agent/bootstrap-report", s.withToken(s.bootstrapReport))
	mux.HandleFunc("POST /v1/webhook", s.perSource(s.webhook))
	mux.HandleFunc("POST /v1/agent/renew", s.renew)
	mux.HandleFunc("POST /v1/agent/checkin", s.checkin)
	mux.HandleFunc("POST /v1/agent/confirm", s.confirm)
	mux.HandleFunc("POST /v1/agent/report", s.report)
	mux.HandleFunc("GET /v1/agent/closure/{hash}", s.closure)
	mux.HandleFunc("GET /v1/heads/{channel}", s.head(false))
	mux.HandleFunc("GET /v1/heads/{channel}/sig", s.head(true))
	mux.HandleFunc("GET /v1/heads/{channel}/proof/{host}", s.proof)
	mux.HandleFunc("GET /v1/rollouts/{id}", s.manifest(false))
	mux.HandleFunc("GET /v1/rollouts/{id}/sig", s.manifest(true))
	mux.HandleFunc("GET /v1/whoami", s.whoami)
	for pattern, view := range map[string]http.HandlerFunc{
		"GET /v1/hosts": s.hosts, "GET /v1/channels/{name}": s.channel, "GET /v1/deferrals": s.deferrals, "GET /v1/host-reports": s.hostReports,
		"GET /v1/rollouts": s.rollouts, "GET /v1/rollouts/{id}/lifecycle": s.lifecycle, "GET /v1/rollouts/{id}/trace": s.trace,
		"GET /metrics": promhttp.HandlerFor(s.metrics.registry, promhttp.HandlerOpts{}).ServeHTTP,
	} {
		mux.HandleFunc(pattern, s.operatorOnly(true, view))
	}
	for pattern, act := range map[string]http.HandlerFunc{
		"GET /v1/hosts/{name}/explain": s.explain, "GET /v1/plan": s.plan, "POST /v1/plan": s.planRelease, "GET /v1/events": s.events,
		"POST /v1/rollouts/{id}/pause": s.holdRollout("pause"), "POST /v1/rollouts/{id}/resume": s.holdRollout("resume"),
		"POST /v1/rollouts/{id}/cancel": s.holdRollout("cancel"), "POST /v1/revocations": s.revoke,
		"POST /v1/hosts/{name}/retry": s.retry, "POST /v1/poke": s.poke,
	} {
		mux.HandleFunc(pattern, s.operatorOnly(false, act))
	}
	return deadlines(s.guard(exactly(mux)))
}

// exactly serves the paths as they are written, without a body where there is
// no such path or method. The mux by itself would send a path that is written in
// another way elsewhere.
func exactly(mux *http.ServeMux) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if p := r.URL.EscapedPath(); !strings.HasPrefix(p, "/") || path.Clean(p) != p {
			w.WriteHeader(http.StatusNotFound)
			return
		}
		if _, pattern := mux.Handler(r); pattern == "" {
			w = bodyless{w}
		}
		mux.ServeHTTP(w, r)
	})
}

// bodyless keeps status and header of an answer.
type bodyless struct{ http.ResponseWriter }

// Write takes the body and sends none.
func (bodyless) Write(body []byte) (int, error) { return len(body), nil }

// WriteHeader sends the header without what it says of the body.
func (b bodyless) WriteHeader(status int) {
	b.Header().Del("Content-Type")
	b.ResponseWriter.WriteHeader(status)
}

// deadlines gives each answer its time, refusals too: a WriteTimeout of the
// whole server would cut held requests, and a deadline that an earlier request
// of the connection left behind would cut this one.
func deadlines(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		_ = http.NewResponseController(w).SetWriteDeadline(time.Now().Add(requestTimeout))
		next.ServeHTTP(w, r)
	})
}
