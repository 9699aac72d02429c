package client

import (
	"context"
	"fmt"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"

	"github.com/go-json-experiment/json/jsontext"

	"nixfleet/nixops/fleet"
	"nixfleet/pki"
	"nixfleet/roles/protocol"
)

// Enroll trades a bootstrap token for a host's first certificate.
func (c *Client) Enroll(ctx context.Context, r *protocol.EnrollRequest) (*protocol.CertResponse, error) {
	return ask[protocol.CertResponse](ctx, c, request{method: http.MethodPost, path: "/v1/enroll", body: r})
}

// Renew trades the current certificate for the next.
func (c *Client) Renew(ctx context.Context, r *protocol.RenewRequest) (*protocol.CertResponse, error) {
	return ask[protocol.CertResponse](ctx, c, request{method: http.MethodPost, path: "/v1/agent/renew", body: r})
}

// BootstrapReport tells of a failed enrolment.
func (c *Client) BootstrapReport(ctx context.Context, r *protocol.BootstrapReport) error {
	return c.tell(ctx, "/v1/agent/bootstrap-report", r)
}

// Checkin says what the host runs and asks what it should. With wait above zero
// the control plane may hold the answer that long; CheckinResponse.Held says
// whether it knows how.
func (c *Client) Checkin(
	ctx context.Context, r *protocol.CheckinRequest, wait time.Duration,
) (*protocol.CheckinResponse, error) {
	req := request{method: http.MethodPost, path: "/v1/agent/checkin", body: r}
	if seconds := int(wait / time.Second); seconds > 0 {
		req.header = http.Header{"Prefer": {"wait=" + strconv.Itoa(seconds)}}
		req.timeout = max(c.timeout, wait+holdMargin)
	}
	header, body, err := c.do(ctx, req)
	if err != nil {
		return nil, err
	}
	out, err := answerOf[protocol.CheckinResponse](req, body)
	if err != nil {
		return nil, err
	}
	out.Held = strings.Contains(header.Get("Preference-Applied"), "wait")
	return out, nil
}

// Confirm says that the new generation proved itself. A 410 is an *Error: the
// host must return. Taken is when, by the control plane's clock in whole seconds; zero when it does
// not say.
func (c *Client) Confirm(ctx context.Context, r *protocol.ConfirmRequest) (taken time.Time, err error) {
	header, _, err := c.do(ctx, request{method: http.MethodPost, path: protocol.ConfirmPath, body: r})
	if err != nil {
		return time.Time{}, err
	}
	taken, _ = http.ParseTime(header.Get("Date"))
	return taken, nil
}

// Report sends one event.
func (c *Client) Report(ctx context.Context, r *protocol.ReportRequest) (*protocol.ReportResponse, error) {
	return ask[protocol.ReportResponse](ctx, c, request{method: http.MethodPost, path: "/v1/agent/report", body: r})
}

// signed fetches a document and its detached signature.
func (c *Client) signed(ctx context.Context, path string, limit int64) (body, sig []byte, err error) {
	if _, body, err = c.do(ctx, request{method: http.MethodGet, path: path, limit: limit}); err != nil {
		return nil, nil, err
	}
	if _, sig, err = c.do(ctx, request{method: http.MethodGet, path: path + "/sig"}); err != nil {
		return nil, nil, err
	}
	if len(sig) != pki.SignatureSize {
		return nil, nil, fmt.Errorf("GET %s/sig: %d bytes, a signature has %d", path, len(sig), pki.SignatureSize)
	}
	return body, sig, nil
}

// Head fetches a channel's head as it is stored. The pair may be torn by a
// release in between; the caller that verifies it asks once more.
func (c *Client) Head(ctx context.Context, channel string) (body, sig []byte, err error) {
	return c.signed(ctx, "/v1/heads/"+url.PathEscape(channel), maxAnswer)
}

// HeadProof fetches the proof that a host's entry is under the channel's head.
func (c *Client) HeadProof(ctx context.Context, channel, hostname string) (*protocol.Proof, error) {
	path := "/v1/heads/" + url.PathEscape(channel) + "/proof/" + url.PathEscape(hostname)
	return ask[protocol.Proof](ctx, c, request{method: http.MethodGet, path: path})
}

// Manifest fetches a manifest as it is stored.
func (c *Client) Manifest(ctx context.Context, rolloutID string) (body, sig []byte, err error) {
	path, err := rolloutPath(rolloutID, "")
	if err != nil {
		return nil, nil, err
	}
	return c.signed(ctx, path, maxDocument)
}

// view fetches what grows with the fleet.
func view[T any](ctx context.Context, c *Client, path string) (*T, error) {
	return ask[T](ctx, c, request{method: http.MethodGet, path: path, limit: maxDocument})
}

// Raw is the body of a GET as it came, for --json.
func (c *Client) Raw(ctx context.Context, path string) (jsontext.Value, error) {
	_, answer, err := c.do(ctx, request{method: http.MethodGet, path: path, limit: maxDocument})
	return answer, err
}

// Hosts lists the fleet.
func (c *Client) Hosts(ctx context.Context) (*protocol.HostsResponse, error) {
	return view[protocol.HostsResponse](ctx, c, "/v1/hosts")
}

// HostsQuery asks for some of the hosts. The patterns are globs; empty ones match all.
type HostsQuery struct {
	Host, Channel, Tag, State string
	Closure, Rollout          string // Rollout is an id, no pattern
	Wave                      *int   // of its rollout
	WorstFirst                bool
	Limit                     int    // 0 for all
	After                     string // Next of the page before
}

// Values are the query of the request.
func (q HostsQuery) Values() url.Values {
	asked := url.Values{"order": {"name"}}
	if q.WorstFirst {
		asked.Set("order", "worst")
	}
	if q.Limit > 0 {
		asked.Set("limit", strconv.Itoa(q.Limit))
	}
	if q.Wave != nil {
		asked.Set("wave", strconv.Itoa(*q.Wave))
	}
	for name, value := range map[string]string{
		"closure": q.Closure, "rollout": q.Rollout,
		"host": q.Host, "channel": q.Channel, "tag": q.Tag, "state": q.State, "after": q.After,
	} {
		if value != "" {
			asked.Set(name, value)
		}
	}
	return asked
}

// HostsPage lists the hosts that a query asks for, with the counts of all that match.
func (c *Client) HostsPage(ctx context.Context, q HostsQuery) (*protocol.HostsResponse, error) {
	return view[protocol.HostsResponse](ctx, c, "/v1/hosts?"+q.Values().Encode())
}

// Channels lists the channels.
func (c *Client) Channels(ctx context.Context) (*protocol.ChannelsResponse, error) {
	return view[protocol.ChannelsResponse](ctx, c, "/v1/channels")
}

// HostReports lists the newest reports of a host, or of all where hostname is empty.
func (c *Client) HostReports(ctx context.Context, hostname string, limit int) (*protocol.HostReportsResponse, error) {
	path := "/v1/host-reports?limit=" + strconv.Itoa(limit)
	if hostname != "" {
		path += "&host=" + url.QueryEscape(hostname)
	}
	return view[protocol.HostReportsResponse](ctx, c, path)
}

// HistoryValues are the query of a request for the event log.
func HistoryValues(q protocol.HistoryQuery) url.Values {
	asked := url.Values{}
	for name, value := range map[string]string{
		"rollout": q.Rollout, "host": q.Host, "channel": q.Channel, "kind": q.Kind, "actor": q.Actor,
	} {
		if value != "" {
			asked.Set(name, value)
		}
	}
	return page(asked, q.Before, q.Limit)
}

// History reads the event log from its end.
func (c *Client) History(ctx context.Context, q protocol.HistoryQuery) (*protocol.History, error) {
	return view[protocol.History](ctx, c, "/v1/history?"+HistoryValues(q).Encode())
}

// Audit reads what operators did, from the end or from before an entry.
func (c *Client) Audit(ctx context.Context, before int64, limit int) (*protocol.Audit, error) {
	return view[protocol.Audit](ctx, c, "/v1/audit?"+page(url.Values{}, before, limit).Encode())
}

// page adds which part of a list is asked for; zeros are left out.
func page(asked url.Values, before int64, limit int) url.Values {
	if before > 0 {
		asked.Set("before", strconv.FormatInt(before, 10))
	}
	if limit > 0 {
		asked.Set("limit", strconv.Itoa(limit))
	}
	return asked
}

// Waves shows how the waves of a rollout stand.
func (c *Client) Waves(ctx context.Context, rolloutID string) (*protocol.RolloutWaves, error) {
	path, err := rolloutPath(rolloutID, "/waves")
	if err != nil {
		return nil, err
	}
	return view[protocol.RolloutWaves](ctx, c, path)
}

// RolloutsQuery says which rollouts are asked for, and how much of them.
type RolloutsQuery struct {
	All   bool // also those that are over and still remembered
	Heads bool // without the states of their hosts
}

// Values are the query of the request.
func (q RolloutsQuery) Values() url.Values {
	asked := url.Values{}
	if q.All {
		asked.Set("all", "true")
	}
	if q.Heads {
		asked.Set("hosts", "false")
	}
	return asked
}

// Rollouts lists rollouts, the newest first.
func (c *Client) Rollouts(ctx context.Context, q RolloutsQuery) (*protocol.RolloutsResponse, error) {
	asked := q.Values()
	path := "/v1/rollouts"
	if len(asked) > 0 {
		path += "?" + asked.Encode()
	}
	return view[protocol.RolloutsResponse](ctx, c, path)
}

// Lifecycle shows when a rollout ended.
func (c *Client) Lifecycle(ctx context.Context, rolloutID string) (*protocol.Lifecycle, error) {
	path, err := rolloutPath(rolloutID, "/lifecycle")
	if err != nil {
		return nil, err
	}
	return view[protocol.Lifecycle](ctx, c, path)
}

// Trace lists a rollout's dispatches.
func (c *Client) Trace(ctx context.Context, rolloutID string) (*protocol.Trace, error) {
	path, err := rolloutPath(rolloutID, "/trace")
	if err != nil {
		return nil, err
	}
	return view[protocol.Trace](ctx, c, path)
}

// Whoami says whom the control plane takes us for.
func (c *Client) Whoami(ctx context.Context) (*protocol.Whoami, error) {
	return ask[protocol.Whoami](ctx, c, request{method: http.MethodGet, path: "/v1/whoami"})
}

// Explain says why a host runs what it runs.
func (c *Client) Explain(ctx context.Context, hostname string) (*protocol.Explanation, error) {
	path := "/v1/hosts/" + url.PathEscape(hostname) + "/explain"
	return ask[protocol.Explanation](ctx, c, request{method: http.MethodGet, path: path})
}

// Host says what is known of one host.
func (c *Client) Host(ctx context.Context, hostname string) (*protocol.HostDetail, error) {
	return view[protocol.HostDetail](ctx, c, "/v1/hosts/"+url.PathEscape(hostname))
}

// Certificates lists the certificates that the control plane uses and those that were shown to it; of agents'
// certificates at most limit.
func (c *Client) Certificates(ctx context.Context, limit int) (*protocol.CertificatesResponse, error) {
	return view[protocol.CertificatesResponse](ctx, c, "/v1/certificates?limit="+strconv.Itoa(limit))
}

// Hold pauses, resumes or cancels a rollout.
func (c *Client) Hold(ctx context.Context, rolloutID, action, reason string) error {
	switch action {
	case "pause", "resume", "cancel":
	default:
		return fmt.Errorf("a rollout can be paused, resumed or cancelled, not %q", action)
	}
	path, err := rolloutPath(rolloutID, "/"+action)
	if err != nil {
		return err
	}
	return c.tell(ctx, path, &protocol.HoldRequest{Reason: reason})
}

// Retry lifts a host's quarantine for one more attempt.
func (c *Client) Retry(ctx context.Context, hostname, reason string) error {
	return c.tell(ctx, "/v1/hosts/"+url.PathEscape(hostname)+"/retry", &protocol.HoldRequest{Reason: reason})
}

// Poke makes the control plane look at its source now.
func (c *Client) Poke(ctx context.Context) error {
	return c.tell(ctx, "/v1/poke", &struct{}{})
}

// rolloutPath is below /v1/rollouts. Ids come from the network and from people.
func rolloutPath(id, below string) (string, error) {
	if !fleet.ValidRolloutID(id) {
		return "", fmt.Errorf("%.80q is not a rollout id: %w", id, pki.ErrShape)
	}
	return "/v1/rollouts/" + id + below, nil
}
