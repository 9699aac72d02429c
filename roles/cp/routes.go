package cp

import (
	"net/http"
	"time"

	"github.com/prometheus/client_golang/prometheus/promhttp"
)

// handler is the API: the checks that every path has, then the paths.
func (s *server) handler() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /healthz", s.healthz)
	mux.HandleFunc("POST /v1/enroll", s.withToken(s.enroll))
	mux.HandleFunc("POST /v1/agent/bootstrap-report", s.withToken(s.bootstrapReport))
	mux.HandleFunc("POST /v1/webhook", s.webhook)
	mux.HandleFunc("POST /v1/agent/renew", agentOnly(s.renew))
	mux.HandleFunc("POST /v1/agent/checkin", agentOnly(s.checkin))
	mux.HandleFunc("POST /v1/agent/confirm", agentOnly(s.confirm))
	mux.HandleFunc("POST /v1/agent/report", agentOnly(s.report))
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
	return deadlines(s.guard(mux))
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
