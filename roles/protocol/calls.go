package protocol

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"

	"nixfleet/pki"
)

// Enroll trades a bootstrap token for a host's first certificate.
func (c *Client) Enroll(ctx context.Context, r *EnrollRequest) (*CertResponse, error) {
	out := new(CertResponse)
	return out, c.call(ctx, http.MethodPost, "/v1/enroll", r, out)
}

// Renew trades the current certificate for the next.
func (c *Client) Renew(ctx context.Context, r *RenewRequest) (*CertResponse, error) {
	out := new(CertResponse)
	return out, c.call(ctx, http.MethodPost, "/v1/agent/renew", r, out)
}

// ReportBootstrap tells of a failed enrolment.
func (c *Client) ReportBootstrap(ctx context.Context, r *BootstrapReport) error {
	return c.call(ctx, http.MethodPost, "/v1/agent/bootstrap-report", r, nil)
}

// Checkin says what the host runs and asks what it should. With wait above zero
// the control plane may hold the answer that long; CheckinResponse.Held says
// whether it knows how.
func (c *Client) Checkin(ctx context.Context, r *CheckinRequest, wait time.Duration) (*CheckinResponse, error) {
	header, timeout := http.Header{}, c.timeout
	if seconds := int(wait / time.Second); seconds > 0 {
		header.Set("Prefer", "wait="+strconv.Itoa(seconds))
		timeout = max(timeout, wait+holdMargin)
	}
	answered, body, err := c.do(ctx, timeout, http.MethodPost, "/v1/agent/checkin", header, r)
	if err != nil {
		return nil, err
	}
	out := new(CheckinResponse)
	if err := pki.Decode(body, out); err != nil {
		return nil, fmt.Errorf("check-in: answer: %w", err)
	}
	out.Held = strings.Contains(answered.Get("Preference-Applied"), "wait")
	return out, nil
}

// Confirm says that the new generation proved itself. A 410 is an *Error: the
// host must return.
func (c *Client) Confirm(ctx context.Context, r *ConfirmRequest) error {
	return c.call(ctx, http.MethodPost, ConfirmPath, r, nil)
}

// Report sends one event.
func (c *Client) Report(ctx context.Context, r *ReportRequest) (*ReportResponse, error) {
	out := new(ReportResponse)
	return out, c.call(ctx, http.MethodPost, "/v1/agent/report", r, out)
}

// signed fetches a document and its detached signature.
func (c *Client) signed(ctx context.Context, path string) (body, sig []byte, err error) {
	if _, body, err = c.do(ctx, c.timeout, http.MethodGet, path, nil, nil); err != nil {
		return nil, nil, err
	}
	if _, sig, err = c.do(ctx, c.timeout, http.MethodGet, path+"/sig", nil, nil); err != nil {
		return nil, nil, err
	}
	if len(sig) != pki.SignatureSize {
		return nil, nil, fmt.Errorf("GET %s/sig: %d bytes, a signature has %d", path, len(sig), pki.SignatureSize)
	}
	return body, sig, nil
}

// Head fetches a channel's head as it is stored. The pair may be torn by a
// release in between; who verifies it asks once more.
func (c *Client) Head(ctx context.Context, channel string) (body, sig []byte, err error) {
	return c.signed(ctx, "/v1/heads/"+url.PathEscape(channel))
}

// HeadProof fetches the proof that a host's entry is under the channel's head.
func (c *Client) HeadProof(ctx context.Context, channel, hostname string) (*Proof, error) {
	out := new(Proof)
	return out, c.get(ctx, "/v1/heads/"+url.PathEscape(channel)+"/proof/"+url.PathEscape(hostname), out)
}

// Manifest fetches a manifest as it is stored.
func (c *Client) Manifest(ctx context.Context, rolloutID string) (body, sig []byte, err error) {
	return c.signed(ctx, "/v1/rollouts/"+url.PathEscape(rolloutID))
}

// Hosts lists the fleet.
func (c *Client) Hosts(ctx context.Context) (*HostsResponse, error) {
	out := new(HostsResponse)
	return out, c.get(ctx, "/v1/hosts", out)
}

// Channel shows the release that a channel is on.
func (c *Client) Channel(ctx context.Context, name string) (*ChannelResponse, error) {
	out := new(ChannelResponse)
	return out, c.get(ctx, "/v1/channels/"+url.PathEscape(name), out)
}

// Deferrals lists channels that wait for others.
func (c *Client) Deferrals(ctx context.Context) (*DeferralsResponse, error) {
	out := new(DeferralsResponse)
	return out, c.get(ctx, "/v1/deferrals", out)
}

// HostReports lists the newest reports.
func (c *Client) HostReports(ctx context.Context, limit int) (*HostReportsResponse, error) {
	out := new(HostReportsResponse)
	return out, c.get(ctx, "/v1/host-reports?limit="+strconv.Itoa(limit), out)
}

// Rollouts lists open rollouts.
func (c *Client) Rollouts(ctx context.Context) (*RolloutsResponse, error) {
	out := new(RolloutsResponse)
	return out, c.get(ctx, "/v1/rollouts", out)
}

// Lifecycle shows when a rollout ended.
func (c *Client) Lifecycle(ctx context.Context, rolloutID string) (*Lifecycle, error) {
	out := new(Lifecycle)
	return out, c.get(ctx, "/v1/rollouts/"+url.PathEscape(rolloutID)+"/lifecycle", out)
}

// Trace lists a rollout's dispatches.
func (c *Client) Trace(ctx context.Context, rolloutID string) (*Trace, error) {
	out := new(Trace)
	return out, c.get(ctx, "/v1/rollouts/"+url.PathEscape(rolloutID)+"/trace", out)
}

// Whoami says whom the control plane takes us for.
func (c *Client) Whoami(ctx context.Context) (*Whoami, error) {
	out := new(Whoami)
	return out, c.get(ctx, "/v1/whoami", out)
}

// Explain says why a host runs what it runs.
func (c *Client) Explain(ctx context.Context, hostname string) (*Explanation, error) {
	out := new(Explanation)
	return out, c.get(ctx, "/v1/hosts/"+url.PathEscape(hostname)+"/explain", out)
}

// Hold pauses, resumes or cancels a rollout.
func (c *Client) Hold(ctx context.Context, rolloutID, action, reason string) error {
	switch action {
	case "pause", "resume", "cancel":
	default:
		return fmt.Errorf("a rollout can be paused, resumed or cancelled, not %q", action)
	}
	return c.call(ctx, http.MethodPost, "/v1/rollouts/"+url.PathEscape(rolloutID)+"/"+action, &HoldRequest{reason}, nil)
}

// Retry lifts a host's quarantine for one more attempt.
func (c *Client) Retry(ctx context.Context, hostname, reason string) error {
	return c.call(ctx, http.MethodPost, "/v1/hosts/"+url.PathEscape(hostname)+"/retry", &HoldRequest{reason}, nil)
}

// Revoke shuts a host or an operator out at once: certificates issued before
// notBefore are refused. Nil means all that were issued up to now.
func (c *Client) Revoke(ctx context.Context, hostname string, notBefore *pki.Timestamp, reason string) error {
	return c.call(ctx, http.MethodPost, "/v1/revocations", &RevokeRequest{hostname, notBefore, reason}, nil)
}

// Poke makes the control plane look at its source now.
func (c *Client) Poke(ctx context.Context) error {
	return c.call(ctx, http.MethodPost, "/v1/poke", &struct{}{}, nil)
}

// maxEventLine bounds one line of the event stream, in bytes.
const maxEventLine = 256 << 10

// Events follows the event log from the first event after seq, as server-sent
// events, until ctx ends, each fails or the connection does (then io.EOF or the
// network's error). To resume, ask again after the last seq that was seen.
func (c *Client) Events(ctx context.Context, after int64, each func(Event) error) error {
	header := http.Header{"Accept": {"text/event-stream"}}
	resp, err := c.send(ctx, http.MethodGet, "/v1/events?after="+strconv.FormatInt(after, 10), header, nil)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	lines := bufio.NewScanner(resp.Body)
	lines.Buffer(nil, maxEventLine)
	for lines.Scan() {
		data, ok := strings.CutPrefix(lines.Text(), "data:")
		if !ok {
			continue
		}
		var e Event
		if err := pki.Decode([]byte(data), &e); err != nil {
			return fmt.Errorf("event stream: %w", err)
		}
		if err := each(e); err != nil {
			return err
		}
	}
	if err := lines.Err(); err != nil && !errors.Is(err, io.EOF) {
		return fmt.Errorf("event stream: %w", err)
	}
	return io.EOF
}
