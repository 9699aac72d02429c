package operator

import (
	"context"
	"io"
	"net/http"
	"strings"
	"testing"
	"time"

	"nixfleet/roles/command"
	"nixfleet/roles/protocol/client"
)

// TestDashboardServesOnThisMachineAlone: only a loopback address is taken, before anybody is
// asked anything.
func TestDashboardServesOnThisMachineAlone(t *testing.T) {
	for _, address := range []string{"0.0.0.0:0", "[::]:0", "192.0.2.1:0", "localhost:0", ":0", "127.0.0.1"} {
		app := command.App("test", dashboardCommand(func(*client.Client, string, string) http.Handler { return nil }))
		app.Writer, app.ErrWriter = io.Discard, io.Discard
		err := app.RunContext(t.Context(), []string{"nixfleet", "dashboard", "--no-browser", "--listen", address})
		if err == nil || !strings.Contains(err.Error(), "--listen") || command.HintOf(err) == "" {
			t.Errorf("--listen %s: %v", address, err)
		}
	}
}

// TestThePageIsServedUntilTheEnd: a stream that is open does not keep the command.
func TestThePageIsServedUntilTheEnd(t *testing.T) {
	ctx, stop := context.WithCancel(t.Context())
	listener, err := loopback(ctx, "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() {
		ended <- servePage(ctx, listener, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			w.Write([]byte("open"))
			_ = http.NewResponseController(w).Flush()
			<-r.Context().Done()
		}))
	}()
	resp, err := http.Get("http://" + listener.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	stop()
	select {
	case err := <-ended:
		if err != nil {
			t.Error(err)
		}
	case <-time.After(20 * time.Second):
		t.Error("the command does not end")
	}
}
