package operator

import (
	"encoding/pem"
	"fmt"
	"net/http"
	"net/http/httptest"
	"strconv"
	"testing"
	"time"

	"nixfleet/pki"
	"nixfleet/roles/protocol"
	"nixfleet/roles/protocol/client"
)

// TestWatchNoticesALostLog: a log that counts anew is not waited for until it
// comes to the number of the last event that was printed.
func TestWatchNoticesALostLog(t *testing.T) {
	at := pki.At(time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC))
	log := []protocol.Event{}
	server := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		after, err := strconv.ParseInt(r.URL.Query().Get("after"), 10, 64)
		if err != nil || r.URL.Query().Get("follow") != "false" {
			t.Errorf("asked %s", r.URL)
		}
		for _, e := range log {
			if e.Seq > after {
				doc, err := pki.Marshal(&e)
				if err != nil {
					t.Error(err)
				}
				fmt.Fprintf(w, "data: %s\n\n", doc)
			}
		}
	}))
	defer server.Close()
	client, err := client.New(client.Config{
		BaseURL: server.URL, CAPEM: pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: server.Certificate().Raw}),
	})
	if err != nil {
		t.Fatal(err)
	}
	defer client.CloseIdle()
	event := func(seq int64, kind string) protocol.Event {
		return protocol.Event{Seq: seq, At: at, Kind: kind, Channel: "stable"}
	}
	last := event(2, "wave-opened")
	for _, c := range []struct {
		name string
		log  []protocol.Event
		want bool
	}{
		{"the same log", []protocol.Event{event(1, "rollout-opened"), last, event(3, "host-state")}, true},
		{"nothing new", []protocol.Event{event(1, "rollout-opened"), last}, true},
		{"a new one that is shorter", []protocol.Event{event(1, "rollout-opened")}, false},
		{"a new one that is longer", []protocol.Event{event(1, "rollout-opened"), event(2, "host-state"),
			event(3, "host-state")}, false},
		{"none", nil, false},
	} {
		log = c.log
		if goes, err := continues(t.Context(), client, &last); err != nil || goes != c.want {
			t.Errorf("%s: %t, %v", c.name, goes, err)
		}
	}
}
