package client

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"nixfleet/roles/protocol"
)

// virtual runs f in a bubble of virtual time with a client whose network is
// memory, and a control plane behind it that answers with h.
func virtual(t *testing.T, h http.HandlerFunc, f func(t *testing.T, c *Client)) {
	synctest.Test(t, func(t *testing.T) {
		s := newSite(t)
		dialled := make(chan net.Conn)
		ctx, stop := context.WithCancel(t.Context())
		var answering sync.WaitGroup
		counted := func(w http.ResponseWriter, r *http.Request) {
			answering.Add(1)
			defer answering.Done()
			h(w, r)
		}
		server := &http.Server{Handler: http.HandlerFunc(counted),
			BaseContext: func(net.Listener) context.Context { return ctx }}
		done := make(chan struct{})
		go func() {
			defer close(done)
			_ = server.Serve(tls.NewListener(&memoryListener{dialled, ctx}, s.server()))
		}()
		c, err := New(Config{BaseURL: "https://cp.example.com", CAPEM: s.caPEM(),
			Dial: func(ctx context.Context, _, _ string) (net.Conn, error) {
				if h == nil {
					<-ctx.Done()
					return nil, ctx.Err()
				}
				near, far := net.Pipe()
				dialled <- far
				return near, nil
			}})
		if err != nil {
			t.Fatal(err)
		}
		f(t, c)
		stop()
		c.CloseIdle()
		_ = server.Close()
		<-done
		answering.Wait()
	})
}

type memoryListener struct {
	conns chan net.Conn
	ctx   context.Context
}

func (l *memoryListener) Accept() (net.Conn, error) {
	select {
	case c := <-l.conns:
		return c, nil
	case <-l.ctx.Done():
		return nil, net.ErrClosed
	}
}
func (l *memoryListener) Close() error   { return nil }
func (l *memoryListener) Addr() net.Addr { return &net.IPAddr{} }

// elapsed runs do, which must fail with a timeout, and measures it.
func elapsed(t *testing.T, want time.Duration, do func() error) {
	t.Helper()
	start := time.Now()
	err := do()
	if took := time.Since(start); err == nil || took != want {
		t.Errorf("ended after %s, want %s: %v", took, want, err)
	}
}

func TestTimeouts(t *testing.T) {
	t.Run("no connection", func(t *testing.T) {
		virtual(t, nil, func(t *testing.T, c *Client) {
			elapsed(t, 10*time.Second, func() error { _, err := c.Whoami(t.Context()); return err })
		})
	})
	silent := func(w http.ResponseWriter, r *http.Request) {
		// What is not read stays in a pipe without a buffer and would hold up the
		// client's last word.
		_, _ = io.Copy(io.Discard, r.Body)
		<-r.Context().Done()
	}
	t.Run("no answer", func(t *testing.T) {
		virtual(t, silent, func(t *testing.T, c *Client) {
			elapsed(t, 30*time.Second, func() error { _, err := c.Whoami(t.Context()); return err })
			elapsed(t, 30*time.Second, func() error {
				_,
					err := c.Checkin(t.Context(), &protocol.CheckinRequest{}, 0)
				return err
			})
			elapsed(t, 30*time.Second, func() error {
				_,
					err := c.Checkin(t.Context(), &protocol.CheckinRequest{}, 5*time.Second)
				return err
			})
			elapsed(t, 315*time.Second, func() error {
				_, err := c.Checkin(t.Context(), &protocol.CheckinRequest{}, 300*time.Second)
				return err
			})
			elapsed(t, 30*time.Second, func() error { return c.Events(t.Context(), EventQuery{}, nil) })
		})
	})
	t.Run("one byte a second", func(t *testing.T) {
		virtual(t, func(w http.ResponseWriter, r *http.Request) {
			for r.Context().Err() == nil {
				fmt.Fprint(w, " ")
				_ = http.NewResponseController(w).Flush()
				time.Sleep(time.Second)
			}
		}, func(t *testing.T, c *Client) {
			elapsed(t, 30*time.Second, func() error { _, err := c.Whoami(t.Context()); return err })
		})
	})
	t.Run("cancelled", func(t *testing.T) {
		virtual(t, silent, func(t *testing.T, c *Client) {
			ctx, cancel := context.WithTimeout(t.Context(), 3*time.Second)
			defer cancel()
			elapsed(t, 3*time.Second, func() error {
				_,
					err := c.Checkin(ctx, &protocol.CheckinRequest{}, time.Minute)
				return err
			})
			again, cancelAgain := context.WithTimeout(t.Context(), 3*time.Second)
			defer cancelAgain()
			elapsed(t, 3*time.Second, func() error {
				err := c.Events(again, EventQuery{}, nil)
				if !errors.Is(err, context.DeadlineExceeded) {
					t.Errorf("events: %v", err)
				}
				return err
			})
		})
	})
}

func TestHeldCheckin(t *testing.T) {
	virtual(t, func(w http.ResponseWriter, r *http.Request) {
		if r.Header.Get("Prefer") == "wait=120" {
			w.Header().Set("Preference-Applied", "wait")
			time.Sleep(2 * time.Minute)
		}
		fmt.Fprint(w, `{"nextCheckinSecs":60,"head":{"channel":"stable","hash":"x"}}`)
	}, func(t *testing.T, c *Client) {
		answer, err := c.Checkin(t.Context(), &protocol.CheckinRequest{}, 2*time.Minute)
		if err != nil || !answer.Held || answer.Head == nil || answer.Target != nil {
			t.Errorf("held: %+v, %v", answer, err)
		}
		answer, err = c.Checkin(t.Context(), &protocol.CheckinRequest{}, time.Second)
		if err != nil || answer.Held {
			t.Errorf("by a control plane that does not hold: %+v, %v", answer, err)
		}
	})
}
