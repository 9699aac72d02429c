package cp

import (
	"context"
	"errors"
	"fmt"
	"net/http/httptest"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/go-json-experiment/json"

	"nixfleet/roles/protocol"
	"nixfleet/roles/rollout"
	"nixfleet/store"
)

// readyz asks what cannot be done.
func readyz(t *testing.T, s *server) (status int, codes string) {
	t.Helper()
	w := httptest.NewRecorder()
	s.api.ServeHTTP(w, httptest.NewRequest("GET", "/readyz", nil))
	var got protocol.Ready
	if err := json.Unmarshal(w.Body.Bytes(), &got); err != nil {
		t.Fatalf("%v in %s", err, w.Body)
	}
	var all []string
	for _, c := range got.Cannot {
		all = append(all, c.What+"/"+c.Code)
	}
	return w.Code, strings.Join(all, " ")
}

func TestReadyzSaysWhatCannotBeDone(t *testing.T) {
	e := newEstate(t, "a")
	s := e.primed(t)
	expect := func(when string, status int, codes string) {
		t.Helper()
		if gotStatus, got := readyz(t, s); gotStatus != status || got != codes {
			t.Errorf("%s: %d %q, want %d %q", when, gotStatus, got, status, codes)
		}
	}
	expect("at first", 200, "")
	if err := os.Rename(e.release, e.release+".away"); err != nil {
		t.Fatal(err)
	}
	s.release.poll(t.Context(), "")
	expect("without the source", 200, "take-releases/source-failing")
	if err := os.Rename(e.release+".away", e.release); err != nil {
		t.Fatal(err)
	}
	s.release.poll(t.Context(), "")
	expect("with the source again", 200, "")
	s.ticker.last.Store(time.Now().Add(-time.Hour).UnixMilli())
	expect("without a tick", 503, "decide/ticks-stopped")
	s.ticker.last.Store(time.Now().UnixMilli())
	// Another file where the database was, and then the one that is open again.
	if err := errors.Join(os.Rename(e.path("state/state.db"), e.path("state/moved")),
		os.WriteFile(e.path("state/state.db"), []byte("x"), 0o600)); err != nil {
		t.Fatal(err)
	}
	expect("with another database", 503, "write/database-displaced")
	if err := os.Rename(e.path("state/moved"), e.path("state/state.db")); err != nil {
		t.Fatal(err)
	}
	expect("with its database again", 200, "")
	s.release.snapshot.Store(nil)
	expect("without a release", 503, "serve/no-release")
}

// failing is a database that cannot write, for a reason.
type failing struct {
	store.Database
	fault error
}

func (f *failing) Fault() error { return f.fault }
func (f *failing) Audit(context.Context, store.AuditEntry) error {
	return fmt.Errorf("record: %w", context.DeadlineExceeded)
}

func (f *failing) SubmitRollout(c rollout.Change, because ...store.Report) *store.Pending {
	if f.fault == nil || c.Empty() {
		return f.Database.SubmitRollout(c, because...)
	}
	return store.Settled(f.fault)
}

func TestAnOperatorIsToldWhatFailed(t *testing.T) {
	e := newEstate(t, "a")
	s := e.primed(t)
	s.handlers.acts.store = &failing{s.store, store.ErrLocked}
	r := httptest.NewRequest("POST", "/v1/poke", nil)
	r.Header.Set("Accept", "application/json")
	w := httptest.NewRecorder()
	_, err := s.handlers.acts.poke(&call{Request: r, w: w})
	if s.api.refuse(w, r, err); w.Code != 500 || !strings.Contains(w.Body.String(), `"code":"database-locked"`) ||
		!strings.Contains(w.Body.String(), "holds a lock") || !strings.Contains(w.Body.String(), `"hint":"`) {
		t.Errorf("%d %s", w.Code, w.Body)
	}
}

// A change that cannot be stored makes the world start again from the disk; hosts that
// hold a check-in are known again at once.
func TestAFullDiskForgetsNoHostThatHoldsACheckin(t *testing.T) {
	e := newEstate(t, "a")
	s := e.primed(t)
	full := &failing{s.store, store.ErrFull}
	s.world.store = full
	held := s.world.waiters.hold("a", nil)
	dispatch := func(w *rollout.World, now time.Time) rollout.Change {
		_, c := w.Checkin("a", rollout.Observation{Closure: closureOf("a", 0), KnowsLease: true}, now)
		return c
	}
	if err := s.world.change(t.Context(), dispatch); !errors.Is(err, store.ErrFull) {
		t.Fatalf("%v, want %v", err, store.ErrFull)
	}
	for len(held.woken) > 0 {
		<-held.woken
	}
	full.fault = nil
	if err := s.world.change(t.Context(), dispatch); err != nil || len(held.woken) == 0 {
		t.Errorf("%v; the held check-in was not asked to say again what it runs", err)
	}
}
