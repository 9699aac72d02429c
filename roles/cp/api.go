package cp

import (
	"context"
	"errors"
	"net/http"
	"path"
	"strconv"
	"strings"
	"time"

	"github.com/rs/zerolog"

	"nixfleet/pki"
	"nixfleet/roles/protocol"
	"nixfleet/store"
)

// api serves the routes: it makes the checks that every path has, in the order
// of contracts/wire.md §1, finds the route, and writes its answer.
type api struct {
	log  zerolog.Logger
	door *door
	free map[string]handler // by path: GET without any check
	mux  *http.ServeMux
	open map[string]callers // by path: who needs no certificate
}

func newAPI(d *door, routes []route) *api {
	a := &api{log: d.log, door: d, free: map[string]handler{}, mux: http.NewServeMux(), open: map[string]callers{}}
	for i := range routes {
		if routes[i].who == everybody {
			a.free[routes[i].path()] = routes[i].handle
		}
		if who := routes[i].who; who == tokens || who == forges {
			a.open[routes[i].path()] = who
		}
		a.mux.HandleFunc(routes[i].pattern, func(w http.ResponseWriter, r *http.Request) { a.serve(w, r, &routes[i]) })
	}
	return a
}

// ServeHTTP answers a request.
func (a *api) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	// Each answer gets its time, refusals too: a WriteTimeout of the whole server
	// would cut held requests, and a deadline that an earlier request of the
	// connection left behind would cut this one.
	_ = http.NewResponseController(w).SetWriteDeadline(time.Now().Add(requestTimeout))
	if connectionOf(r.Context()) == nil {
		// One request each: their places are few.
		w.Header().Set("Connection", "close")
	}
	if free := a.free[r.URL.Path]; free != nil && (r.Method == http.MethodGet || r.Method == http.MethodHead) {
		v, err := free(nil)
		a.answer(w, r, v, err)
		return
	}
	r, err := a.admit(w, r)
	if err != nil {
		a.refuse(w, r, err)
		return
	}
	a.find(w, r)
}

// admit makes the checks that every path but /healthz has.
func (a *api) admit(w http.ResponseWriter, r *http.Request) (*http.Request, error) {
	d := a.door
	if d.snapshot.Load() == nil {
		w.Header().Set("Retry-After", "30")
		return r, &notReady{protocol.Refusal{Error: "control plane not ready", Reason: "awaiting first signed artifact"}}
	}
	if status := d.checkProtocol(r); status != 0 {
		return r, bareStatus(status)
	}
	if a.tokenOpens(r.URL.Path) {
		return r, nil
	}
	if err := d.withinRate(w, r); err != nil {
		return r, err
	}
	id, err := d.authorize(r.Context())
	if err != nil {
		return r, d.shut(r, id, err)
	}
	return r.WithContext(context.WithValue(r.Context(), identityKey, id)), nil
}

// notReady is the one refusal with a reason beside its text, which v1 agents
// look for.
type notReady struct{ protocol.Refusal }

func (e *notReady) Error() string { return e.Refusal.Error }

// checkProtocol is 0, or the status of a wrong or missing protocol header. In
// strict mode only POST must have it, since v1 agents get manifests without.
func (d *door) checkProtocol(r *http.Request) int {
	values := r.Header.Values(protocol.HeaderProtocol)
	if len(values) == 0 {
		if d.cfg.Strict && r.Method == http.MethodPost && r.URL.Path != webhookPath {
			return http.StatusBadRequest
		}
		return 0
	}
	version, err := strconv.Atoi(values[0])
	if errors.Is(err, strconv.ErrRange) {
		version, err = 0, nil // an integer, of some version to come
	}
	switch {
	case err != nil || len(values) > 1:
		return http.StatusBadRequest
	case version != protocol.Version:
		return http.StatusUpgradeRequired
	}
	return 0
}

// tokenOpens reports whether a path wants a token in place of a certificate.
func (a *api) tokenOpens(path string) bool {
	switch a.open[path] {
	case tokens:
		return true
	case forges:
		return a.door.cfg.WebhookTokenFile != ""
	}
	return false
}

// find serves the paths as they are written, without a body where there is no
// such path or method. ServeMux would redirect a path that is not in canonical
// form.
func (a *api) find(w http.ResponseWriter, r *http.Request) {
	if p := r.URL.EscapedPath(); !strings.HasPrefix(p, "/") || path.Clean(p) != p {
		w.WriteHeader(http.StatusNotFound)
		return
	}
	if _, pattern := a.mux.Handler(r); pattern == "" {
		w = bodyless{w}
	}
	a.mux.ServeHTTP(w, r)
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

// serve makes the check of the route, runs its handler and writes the answer.
func (a *api) serve(w http.ResponseWriter, r *http.Request, rt *route) {
	c := &call{Request: r, w: w}
	c.caller, _ = r.Context().Value(identityKey).(pki.Identity)
	err := a.door.mayCall(c, rt)
	var v any
	if err == nil {
		v, err = rt.handle(c)
	}
	a.answer(w, r, v, err)
}

// answer writes what a handler returned.
func (a *api) answer(w http.ResponseWriter, r *http.Request, v any, err error) {
	if err != nil {
		a.refuse(w, r, err)
		return
	}
	switch v := v.(type) {
	case nil:
		w.WriteHeader(http.StatusNoContent)
	case reply:
		v.write(w, r)
	default:
		writeJSON(w, http.StatusOK, v)
	}
}

// refuse writes an error. One that is not a refusal is our own failure: the
// caller learns its status, the log the rest.
func (a *api) refuse(w http.ResponseWriter, r *http.Request, err error) {
	var refusal *Refusal
	var early *notReady
	var fault *store.Fault
	switch {
	case errors.As(err, &refusal):
		a.door.metrics.denied.WithLabelValues(strconv.Itoa(refusal.Status)).Inc()
		refusal.write(w, r)
	case errors.As(err, &early):
		writeJSON(w, http.StatusServiceUnavailable, early.Refusal)
	case errors.Is(err, store.ErrNone):
		w.WriteHeader(http.StatusServiceUnavailable)
	case r.Context().Err() != nil:
		// Nobody waits for an answer.
	case errors.As(err, &fault):
		a.log.Error().Err(err).Str("path", r.URL.Path).Str("hint", fault.Hint()).Func(traced(r)).Msg("request failed")
		told := refused(http.StatusInternalServerError, fault.Code(), "%s", err)
		told.Hint = fault.Hint()
		told.write(w, r)
	default:
		a.log.Error().Err(err).Str("path", r.URL.Path).Func(traced(r)).Msg("request failed")
		w.WriteHeader(http.StatusInternalServerError)
	}
}
