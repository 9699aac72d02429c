package client

import (
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"testing"
	"time"

	"nixfleet/pki"
	"nixfleet/roles/protocol"
)

func TestEvents(t *testing.T) {
	event := func(seq int) string {
		return fmt.Sprintf(`{"seq":%d,"at":"2026-03-01T12:00:00Z","kind":"dispatch","host":"web-01"}`, seq)
	}
	virtual(t, func(w http.ResponseWriter, r *http.Request) {
		if r.RequestURI != "/v1/events?after=41" || r.Header.Get("Accept") != "text/event-stream, application/json" {
			http.NotFound(w, r)
			return
		}
		for range 40 { // ten minutes of nothing but comments
			fmt.Fprint(w, ": still here\n\n")
			_ = http.NewResponseController(w).Flush()
			time.Sleep(15 * time.Second)
		}
		fmt.Fprintf(w, "id: 42\ndata: %s\n\n", event(42))
		fmt.Fprintf(w, "event: x\r\ndata:%s\r\n\r\n", strings.Replace(event(43), ",", ",\r\ndata:", 1))
		_ = http.NewResponseController(w).Flush()
		<-r.Context().Done()
	}, func(t *testing.T, c *Client) {
		var seqs []int64
		start := time.Now()
		err := c.Events(t.Context(), EventQuery{After: 41}, func(e protocol.Event) error {
			seqs = append(seqs, e.Seq)
			return nil
		})
		if err == nil || !strings.Contains(err.Error(), "silent") || time.Since(start) != 11*time.Minute {
			t.Errorf("ended after %s: %v", time.Since(start), err)
		}
		if fmt.Sprint(seqs) != "[42 43]" {
			t.Errorf("events %v", seqs)
		}
	})
}

func TestReadEvents(t *testing.T) {
	const good = "data: {\"seq\":1,\"at\":\"2026-03-01T12:00:00Z\",\"kind\":\"k\"}\n\n"
	stop := errors.New("enough")
	for _, c := range []struct {
		name, stream string
		events       int
		err          error
	}{
		{"nothing", "", 0, io.EOF},
		{"one", good, 1, io.EOF},
		{"cut off", good + good[:len(good)-1], 1, io.EOF},
		{"no JSON", good + "data: x\n\n" + good, 1, pki.ErrSyntax},
		{"another shape", "data: {\"seq\":\"1\"}\n\n", 0, pki.ErrShape},
		{"endless line", good + "data: " + strings.Repeat("x", 2*maxEvent), 1, ErrTooLarge},
		{"endless event", good + strings.Repeat("data: xxxxxxxxxxxxxxxx\n", maxEvent/16), 1, ErrTooLarge},
		{"enough", strings.Repeat(good, 9), 3, stop},
	} {
		events := 0
		err := readEvents(strings.NewReader(c.stream), func() {}, func(protocol.Event) error {
			if events++; events == 3 {
				return stop
			}
			return nil
		})
		if events != c.events || !errors.Is(err, c.err) {
			t.Errorf("%s: %d events, %v; want %d, %v", c.name, events, err, c.events, c.err)
		}
	}
}

func FuzzReadEvents(f *testing.F) {
	f.Add("id: 1\ndata: {\"seq\":1,\"at\":\"2026-03-01T12:00:00Z\",\"kind\":\"k\"}\n\n: x\r\n\r\n")
	f.Fuzz(func(t *testing.T, stream string) {
		if err := readEvents(strings.NewReader(stream), func() {}, func(protocol.Event) error { return nil }); err == nil {
			t.Fatal("a stream ended without an error")
		}
	})
}
