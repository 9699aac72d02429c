package cp

import (
	"context"
	"errors"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"nixfleet/roles/cp/source"
)

// hangingSource answers when its caller gives up, or fails at once.
type hangingSource struct {
	hang  bool
	calls atomic.Int32
}

func (s *hangingSource) String() string { return "a forge that is down" }

func (s *hangingSource) Fetch(ctx context.Context, _ string) (source.Fetched, error) {
	s.calls.Add(1)
	if s.hang {
		<-ctx.Done()
		return source.Fetched{}, ctx.Err()
	}
	return source.Fetched{}, errors.New("connection refused")
}

// at runs f in virtual time that begins now: releases and certificates of the
// test are of now.
func at(t *testing.T, f func(*testing.T)) {
	now := time.Now()
	synctest.Test(t, func(t *testing.T) {
		time.Sleep(time.Until(now))
		f(t)
	})
}

func TestAForgeThatHangsDelaysTheStartALittle(t *testing.T) {
	e := serialEstate(t, "a")
	at(t, func(t *testing.T) {
		s := e.primed(t)
		forge := &hangingSource{hang: true}
		s.release.source = forge
		began := time.Now()
		if _, ok := s.release.prime(t.Context()); ok || s.release.snapshot.Load() == nil {
			t.Errorf("polled %v, serves %v", ok, s.release.snapshot.Load())
		}
		if took := time.Since(began); took > restoredTimeout {
			t.Errorf("with a release to serve it took %s", took)
		}
		s.release.snapshot.Store(nil)
		s.cfg.StateDir = t.TempDir()
		began = time.Now()
		s.release.prime(t.Context())
		if took := time.Since(began); took != primeTimeout || s.release.snapshot.Load() != nil {
			t.Errorf("without one it took %s", took)
		}
	})
}

func TestAFailedLookIsRepeatedSoonAndThenLessOften(t *testing.T) {
	e := serialEstate(t, "a")
	at(t, func(t *testing.T) {
		s := e.primed(t)
		forge := &hangingSource{}
		s.release.source, s.cfg.PollInterval = forge, maxPollInterval
		ctx, cancel := context.WithCancel(t.Context())
		go s.release.pollLoop(ctx, "", true)
		for _, step := range []struct {
			sleep time.Duration
			want  int32
		}{{59 * time.Second, 0}, {2 * time.Second, 1}, {2 * time.Second, 2}, {4 * time.Second, 3}, {8 * time.Second, 4},
			{10 * time.Minute, 14}} {
			time.Sleep(step.sleep)
			synctest.Wait()
			if got := forge.calls.Load(); got < step.want || got > step.want+2 {
				t.Errorf("after %s more: %d looks, want about %d", step.sleep, got, step.want)
			}
		}
		before := forge.calls.Load()
		s.release.lookNow()
		synctest.Wait()
		if got := forge.calls.Load(); got != before+1 {
			t.Errorf("a poke made %d looks", got-before)
		}
		cancel()
		synctest.Wait()
	})
}
