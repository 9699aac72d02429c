package cp

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"strconv"

	"github.com/go-json-experiment/json"
	"github.com/rs/zerolog"

	"nixfleet/pki"
	"nixfleet/roles/protocol"
	"nixfleet/roles/protocol/client"
	"nixfleet/store"
)

// inProcess answers what a protocol client asks, without a connection: through the same
// table of routes, whose rows say who may call, for the caller that the context holds.
type inProcess struct {
	log    zerolog.Logger
	door   *door
	views  *views
	routes map[string]*route
}

func newInProcess(log zerolog.Logger, d *door, v *views, routes []route) *inProcess {
	p := &inProcess{log: log, door: d, views: v, routes: map[string]*route{}}
	for i := range routes {
		p.routes[routes[i].pattern] = &routes[i]
	}
	return p
}

// inQuestion is what is asked: a row of the table, and what fills it.
type inQuestion struct {
	pattern string
	path    map[string]string
	query   url.Values
	body    any
}

// nowhere is where a handler's headers go when nobody sees them.
type nowhere struct{ header http.Header }

func (n nowhere) Header() http.Header            { return n.header }
func (n nowhere) Write(body []byte) (int, error) { return len(body), nil }
func (n nowhere) WriteHeader(int)                {}

// call is a question as a handler takes it.
func (p *inProcess) call(ctx context.Context, q inQuestion) (*route, *call, error) {
	rt := p.routes[q.pattern]
	if rt == nil {
		return nil, nil, fmt.Errorf("there is no route %q", q.pattern)
	}
	doc, err := json.Marshal(q.body)
	if err != nil {
		return nil, nil, err
	}
	r, err := http.NewRequestWithContext(ctx, rt.method(), "/?"+q.query.Encode(), bytes.NewReader(doc))
	if err != nil {
		return nil, nil, err
	}
	r.Header.Set("Content-Type", "application/json")
	for name, value := range q.path {
		r.SetPathValue(name, value)
	}
	c := &call{Request: r, w: nowhere{http.Header{}}}
	c.caller, _ = ctx.Value(identityKey).(pki.Identity)
	return rt, c, p.door.mayCall(c, rt)
}

// answer asks the handler of a route.
func (p *inProcess) answer(ctx context.Context, q inQuestion) (any, error) {
	rt, c, err := p.call(ctx, q)
	var v any
	if err == nil {
		v, err = rt.handle(c)
	}
	return v, p.told(ctx, q.pattern, err)
}

// told is an error as a client would have it.
func (p *inProcess) told(ctx context.Context, asked string, err error) error {
	var refusal *Refusal
	switch {
	case err == nil || ctx.Err() != nil:
		return err
	case errors.As(err, &refusal):
		return &client.Error{Status: refusal.Status, Code: refusal.Code, Message: refusal.Text, Hint: refusal.Hint}
	case errors.Is(err, store.ErrNone):
		return &client.Error{Status: http.StatusServiceUnavailable, Message: "the control plane has no database"}
	}
	p.log.Error().Err(err).Str("path", asked).Msg("request failed")
	return &client.Error{Status: http.StatusInternalServerError,
		Message: "the control plane could not answer; its log says why"}
}

// answered is the answer to a question, as the type that the route's document names.
func answered[T any](ctx context.Context, p *inProcess, q inQuestion) (*T, error) {
	v, err := p.answer(ctx, q)
	if err != nil {
		return nil, err
	}
	out, ok := v.(T)
	if !ok {
		return nil, fmt.Errorf("%s answered with %T", q.pattern, v)
	}
	return &out, nil
}

// Whoami says who the caller is.
func (p *inProcess) Whoami(ctx context.Context) (*protocol.Whoami, error) {
	return answered[protocol.Whoami](ctx, p, inQuestion{pattern: "GET /v1/whoami"})
}

// Channels lists the channels.
func (p *inProcess) Channels(ctx context.Context) (*protocol.ChannelsResponse, error) {
	return answered[protocol.ChannelsResponse](ctx, p, inQuestion{pattern: "GET /v1/channels"})
}

// HostsPage lists the hosts that a query asks for.
func (p *inProcess) HostsPage(ctx context.Context, q client.HostsQuery) (*protocol.HostsResponse, error) {
	return answered[protocol.HostsResponse](ctx, p, inQuestion{pattern: "GET /v1/hosts", query: q.Values()})
}

// Host says what is known of one host.
func (p *inProcess) Host(ctx context.Context, name string) (*protocol.HostDetail, error) {
	return answered[protocol.HostDetail](ctx, p, inQuestion{pattern: "GET /v1/hosts/{name}",
		path: map[string]string{"name": name}})
}

// Rollouts lists rollouts.
func (p *inProcess) Rollouts(ctx context.Context, q client.RolloutsQuery) (*protocol.RolloutsResponse, error) {
	return answered[protocol.RolloutsResponse](ctx, p, inQuestion{pattern: "GET /v1/rollouts", query: q.Values()})
}

// Waves shows how the waves of a rollout stand.
func (p *inProcess) Waves(ctx context.Context, id string) (*protocol.RolloutWaves, error) {
	return answered[protocol.RolloutWaves](ctx, p, ofRollout("GET /v1/rollouts/{id}/waves", id))
}

// Trace lists a rollout's dispatches.
func (p *inProcess) Trace(ctx context.Context, id string) (*protocol.Trace, error) {
	return answered[protocol.Trace](ctx, p, ofRollout("GET /v1/rollouts/{id}/trace", id))
}

func ofRollout(pattern, id string) inQuestion {
	return inQuestion{pattern: pattern, path: map[string]string{"id": id}}
}

// Plan says what would happen from now on. Of a release it says nothing: the page has none.
func (p *inProcess) Plan(ctx context.Context, _ map[string][]byte) (*protocol.Plan, error) {
	return answered[protocol.Plan](ctx, p, inQuestion{pattern: "GET /v1/plan"})
}

// History reads the event log from its end.
func (p *inProcess) History(ctx context.Context, q protocol.HistoryQuery) (*protocol.History, error) {
	return answered[protocol.History](ctx, p, inQuestion{pattern: "GET /v1/history", query: client.HistoryValues(q)})
}

// Audit reads what operators did.
func (p *inProcess) Audit(ctx context.Context, before int64, limit int) (*protocol.Audit, error) {
	query := url.Values{"before": {strconv.FormatInt(before, 10)}, "limit": {strconv.Itoa(limit)}}
	return answered[protocol.Audit](ctx, p, inQuestion{pattern: "GET /v1/audit", query: query})
}

// Certificates lists certificates with their ends.
func (p *inProcess) Certificates(ctx context.Context, limit int) (*protocol.CertificatesResponse, error) {
	return answered[protocol.CertificatesResponse](ctx, p, inQuestion{pattern: "GET /v1/certificates",
		query: url.Values{"limit": {strconv.Itoa(limit)}}})
}

// Hold pauses, resumes or cancels a rollout.
func (p *inProcess) Hold(ctx context.Context, id, action, reason string) error {
	q := ofRollout("POST /v1/rollouts/{id}/"+action, id)
	q.body = protocol.HoldRequest{Reason: reason}
	_, err := p.answer(ctx, q)
	return err
}

// Retry lifts a host's quarantine for one more attempt.
func (p *inProcess) Retry(ctx context.Context, host, reason string) error {
	_, err := p.answer(ctx, inQuestion{pattern: "POST /v1/hosts/{name}/retry", path: map[string]string{"name": host},
		body: protocol.HoldRequest{Reason: reason}})
	return err
}

// Events follows the event log, with the right to do so looked at before and at every wake.
func (p *inProcess) Events(ctx context.Context, q client.EventQuery, each func(protocol.Event) error) error {
	_, _, err := p.call(ctx, inQuestion{pattern: "GET /v1/events"})
	if err != nil {
		return p.told(ctx, "GET /v1/events", err)
	}
	return p.views.follow(ctx, q, followerFunc(each))
}

// followerFunc is a follower that wants lines one by one.
type followerFunc func(protocol.Event) error

func (f followerFunc) lines(page []protocol.Event) error {
	for _, e := range page {
		if err := f(e); err != nil {
			return err
		}
	}
	return nil
}

func (followerFunc) alive() error { return nil }
