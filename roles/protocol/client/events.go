package client

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
	"nixfleet/roles/protocol"
)

// maxEvent bounds one event of the stream, and one line of it, in bytes.
const maxEvent = 256 << 10

// silence is how long the stream may say nothing: the control plane sends a
// comment every 15 seconds.
const silence = 60 * time.Second

// EventQuery says which events are asked for.
type EventQuery struct {
	After   int64  // the last one that was seen; 0: none
	Rollout string // any id of the one rollout that they concern; empty: of all
	Past    bool   // those that there are, instead of following
}

func (q EventQuery) path() string {
	values := url.Values{"after": {strconv.FormatInt(q.After, 10)}}
	if q.Rollout != "" {
		values.Set("rollout", q.Rollout)
	}
	if q.Past {
		values.Set("follow", "false")
	}
	return "/v1/events?" + values.Encode()
}

// Events follows the event log as server-sent events, until ctx ends, each
// fails or the connection does. A stream that the control plane ended is io.EOF;
// to resume, ask again after the last event that was seen.
func (c *Client) Events(ctx context.Context, q EventQuery, each func(protocol.Event) error) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	silent := errors.New("event stream: the control plane fell silent")
	alarm := time.AfterFunc(c.timeout, func() { cancel(silent) })
	defer alarm.Stop()
	err := c.events(ctx, q, func() { alarm.Reset(silence) }, each)
	if err != nil && context.Cause(ctx) == silent {
		return silent
	}
	return err
}

func (c *Client) events(ctx context.Context, q EventQuery, alive func(), each func(protocol.Event) error) error {
	resp, err := c.send(ctx, request{
		method: http.MethodGet, path: q.path(),
		header: http.Header{"Accept": {"text/event-stream, application/json"}},
	})
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	return readEvents(resp.Body, alive, each)
}

// readEvents reads the text/event-stream format of the HTML standard: an event
// is the data lines up to an empty line; comments and other fields say nothing
// here. An event that the end of the stream cuts off is not one. alive is called
// at every line.
func readEvents(r io.Reader, alive func(), each func(protocol.Event) error) error {
	lines := bufio.NewScanner(r)
	lines.Buffer(nil, maxEvent)
	var data []byte
	for alive(); lines.Scan(); alive() {
		line := lines.Text()
		if line != "" {
			if text, ok := strings.CutPrefix(line, "data:"); ok {
				data = append(append(data, strings.TrimPrefix(text, " ")...), '\n')
			}
			if len(data) > maxEvent {
				return fmt.Errorf("event stream: %w", ErrTooLarge)
			}
			continue
		}
		if len(data) == 0 {
			continue
		}
		var e protocol.Event
		if err := pki.Decode(data, &e); err != nil {
			return fmt.Errorf("event stream: %w", err)
		}
		data = data[:0]
		if err := each(e); err != nil {
			return err
		}
	}
	switch err := lines.Err(); {
	case errors.Is(err, bufio.ErrTooLong):
		return fmt.Errorf("event stream: %w", ErrTooLarge)
	case err != nil:
		return fmt.Errorf("event stream: %w", err)
	}
	return io.EOF
}
