package agent

import (
	"net/http"
	"os"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"nixfleet/nixops/fleet"
	"nixfleet/nixops/sim"
	"nixfleet/pki"
	"nixfleet/roles/agent/verify"
	"nixfleet/roles/protocol"
)

// v1Plane is what makes a control plane one of v1: it knows no heads and no leases,
// sends a target once per dispatch, offers it again when its deadline has passed
// whatever the host has reported, and holds a rollout whose fetch failed.
type v1Plane struct {
	dispatched time.Time
	broken     int // status of manifests
	gets       int // of manifests
	offers     int
	manifests  map[string][]byte
	sigs       map[string][]byte
}

const v1Deadline = 360 * time.Second

func newV1Plane(t *testing.T) *plane {
	p := newPlane(t)
	p.pace = 20
	p.set(func() { p.v1 = &v1Plane{manifests: map[string][]byte{}, sigs: map[string][]byte{}} })
	p.release(target, time.Now())
	return p
}

func (v *v1Plane) release(p *plane, m *fleet.Manifest) {
	doc, err := pki.Marshal(m)
	if err != nil {
		p.t.Fatal(err)
	}
	id := pki.HashHex(doc)
	if v.sigs[id], err = p.ci.Sign(doc); err != nil {
		p.t.Fatal(err)
	}
	v.manifests[id], v.dispatched = doc, time.Time{}
}

func (v *v1Plane) answer(p *plane, out *protocol.CheckinResponse) {
	out.Head = nil
	if out.Target == nil {
		return
	}
	f := p.lastSeen.LastFetchOutcome
	failed := f != nil && strings.HasSuffix(f.Result, "failed") && (f.RolloutID == nil || *f.RolloutID == p.id)
	if failed || time.Since(v.dispatched) < v1Deadline {
		out.Target = nil
		return
	}
	out.Target.StartBySecs, out.Target.WaveIndex = nil, nil
	v.dispatched = time.Now()
	v.offers++
}

func (v *v1Plane) serve(w http.ResponseWriter, r *http.Request) {
	id, sig := strings.CutSuffix(strings.TrimPrefix(r.URL.Path, "/v1/rollouts/"), "/sig")
	v.gets++
	switch {
	case v.broken != 0:
		w.WriteHeader(v.broken)
	case sig:
		w.Write(v.sigs[id])
	default:
		w.Write(v.manifests[id])
	}
}

func (p *plane) offered() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.v1.offers
}

// Our agent lives under a v1 control plane.
func TestV1ControlPlane(t *testing.T) {
	bubble(t, func(t *testing.T) {
		p := newV1Plane(t)
		m := newMachine(t, p, good)
		stop := m.start(m.sim)
		time.Sleep(5 * time.Minute)
		if m.where() != all(target) || p.confirmed() != 1 {
			t.Errorf("at %v after %d confirms", m.where(), p.confirmed())
		}
		p.release(another, time.Now())
		time.Sleep(5 * time.Minute)
		stop()
		if m.where() != all(another) || p.confirmed() != 2 || p.seen().LastConfirmedAt == nil {
			t.Errorf("at %v after %d confirms, last said %+v", m.where(), p.confirmed(), p.seen())
		}
		if last := p.seen().LastEvaluatedTarget; last == nil || last.ClosureHash != another || last.RolloutID != p.id ||
			last.ChannelRef != p.id || last.SignedAt.IsZero() || last.EvaluatedAt.IsZero() {
			t.Errorf("the last confirmed target is told as %+v", last)
		}
	})
}

// A manifest that could not be fetched is asked for again by the agent itself: the
// control plane, which offers nothing until a fetch went well, waits for that.
func TestV1FetchThatFailedIsTriedAgain_A20(t *testing.T) {
	bubble(t, func(t *testing.T) {
		p := newV1Plane(t)
		p.v1.broken = http.StatusBadGateway
		m := newMachine(t, p, good)
		stop := m.start(m.sim)
		time.Sleep(20 * time.Minute)
		if f := p.seen().LastFetchOutcome; f == nil || f.Result != protocol.FetchFailed || m.where() != all(before) ||
			p.offered() != 1 {
			t.Errorf("without a manifest: %+v, at %v, offered %d times", f, m.where(), p.offered())
		}
		reports := 0
		for _, r := range p.said() {
			if r.Event == protocol.EventManifestMissing {
				reports++
			}
		}
		if reports < 2 || reports > 8 {
			t.Errorf("reported %d times in 20 minutes", reports)
		}
		p.set(func() { p.v1.broken = 0 })
		time.Sleep(10 * time.Minute)
		stop()
		if m.where() != all(target) {
			t.Errorf("with a manifest again: at %v, last said %+v", m.where(), p.seen().LastFetchOutcome)
		}
	})
}

// A download that outlives the confirm window is not activated: the closure is kept
// and waits to be offered again.
func TestV1DownloadThatOutlivesTheWindow(t *testing.T) {
	bubble(t, func(t *testing.T) {
		p := newV1Plane(t)
		m := newMachine(t, p, with(sim.Closure{Cache: sim.Cache{FetchTime: 4 * time.Minute}}))
		p.set(func() { p.tamper = func(r *protocol.CheckinResponse) { p.noTarget = p.noTarget || r.Target != nil } })
		stop := m.start(m.sim)
		time.Sleep(6 * time.Minute)
		if m.where() != all(before) || m.roots()["staged"] != target || p.reported(protocol.EventActivationStarted) {
			t.Errorf("at %v, roots %v", m.where(), m.roots())
		}
		p.set(func() { p.tamper, p.noTarget = nil, false })
		time.Sleep(10 * time.Minute)
		stop()
		if m.where() != all(target) || m.fetches(target) != 1 {
			t.Errorf("at %v, fetched %d times", m.where(), m.fetches(target))
		}
	})
}

// A closure that failed is offered again and again, by nobody's wish.
func TestV1OfferIsNoRetry_A12(t *testing.T) {
	bubble(t, func(t *testing.T) {
		p := newV1Plane(t)
		m := newMachine(t, p, with(sim.Closure{After: sim.After{FailedUnits: []string{"web.service"}}}))
		stop := m.start(m.sim)
		time.Sleep(2 * time.Hour)
		stop()
		started := 0
		for _, r := range p.said() {
			if r.Event == protocol.EventActivationStarted {
				started++
			}
		}
		if m.where() != all(before) || started != 1 || p.offered() < 10 {
			t.Errorf("at %v, begun %d times, offered %d times", m.where(), started, p.offered())
		}
	})
}

// A stale target is refused and reported with its age.
func TestV1StaleTarget(t *testing.T) {
	bubble(t, func(t *testing.T) {
		p := newV1Plane(t)
		p.release(target, time.Now().Add(-3*time.Hour))
		m := newMachine(t, p, good)
		stop := m.start(m.sim)
		time.Sleep(10 * time.Minute)
		stop()
		got := p.refusals(protocol.EventStaleTarget)
		if m.where() != all(before) || !strings.Contains(got, `"freshness_window_secs":7200`) ||
			!strings.Contains(got, `"age_secs":108`) {
			t.Errorf("at %v, reported %q", m.where(), got)
		}
	})
}

// A rollback without a head is honoured only with root's leave, for the rollout that
// runs here; one that is refused is reported and keeps no target away.
func TestV1Rollback(t *testing.T) {
	for name, c := range map[string]struct {
		allow   bool
		rollout string
		want    string
	}{
		"allowed":         {true, "", before},
		"not allowed":     {false, "", target},
		"another rollout": {true, strings.Repeat("7", 64), target},
	} {
		t.Run(name, func(t *testing.T) {
			bubble(t, func(t *testing.T) {
				p := newV1Plane(t)
				m := newMachine(t, p, good)
				m.adjust = func(cfg *Config) { cfg.AllowRollback = c.allow }
				stop := m.start(m.sim)
				time.Sleep(2 * time.Minute)
				p.set(func() {
					rollout := p.id
					if c.rollout != "" {
						rollout = c.rollout
					}
					p.tamper = func(r *protocol.CheckinResponse) {
						r.Rollback = &protocol.Rollback{Rollout: rollout, TargetRef: "x", Reason: strings.Repeat("r", 1<<16)}
					}
				})
				time.Sleep(5 * time.Minute)
				if m.where() != all(c.want) || p.reported(protocol.EventRollbackTriggered) != (c.want == before) {
					t.Errorf("at %v, reports %v", m.where(), p.said())
				}
				if refused := strings.Count(p.acts(), protocol.KindRollbackRefused); refused > 6 ||
					(refused > 0) != (c.want == target) {
					t.Errorf("refusals: %s", p.acts())
				}
				p.release(another, time.Now())
				time.Sleep(10 * time.Minute)
				stop()
				if m.where() != all(another) {
					t.Errorf("what mends it was not taken: at %v", m.where())
				}
			})
		})
	}
}

// What nothing signs is bounded before it is written down or reported.
func TestReferencesAreBounded(t *testing.T) {
	for name, c := range map[string]struct {
		ref  string
		want string
	}{"long": {strings.Repeat("\x01", 1<<17), before}, "none": {"", target}} {
		synctest.Test(t, func(t *testing.T) {
			p := newV1Plane(t)
			p.set(func() {
				p.tamper = func(r *protocol.CheckinResponse) {
					if r.Target != nil {
						r.Target.ChannelRef = c.ref
					}
				}
			})
			m := newMachine(t, p, good)
			stop := m.start(m.sim)
			time.Sleep(10 * time.Minute)
			stop()
			if m.where() != all(c.want) {
				t.Errorf("%s: at %v", name, m.where())
			}
		})
	}
}

// A v1 fleet has a new manifest with every signing; few are kept.
func TestManifestsDoNotPileUp(t *testing.T) {
	bubble(t, func(t *testing.T) {
		p := newV1Plane(t)
		m := newMachine(t, p, good)
		stop := m.start(m.sim)
		for i := range 3 * verify.MaxManifests {
			p.release([]string{target, another}[i%2], time.Now())
			time.Sleep(2 * time.Minute)
		}
		stop()
		kept, err := os.ReadDir(m.path("state/rollouts"))
		if err != nil || len(kept) != 2*verify.MaxManifests {
			t.Errorf("%d files, %v", len(kept), err)
		}
	})
}

// A v1 control plane takes a host for lost that is not heard at its interval: it is asked at
// that, and not at some time before.
func TestV1ControlPlaneIsPolledAtItsInterval(t *testing.T) {
	bubble(t, func(t *testing.T) {
		p := newV1Plane(t)
		p.pace = 60
		m := newMachine(t, p, good)
		stop := m.start(m.sim)
		time.Sleep(10 * time.Minute)
		before := p.asked()
		time.Sleep(time.Hour)
		stop()
		if n := p.asked() - before; n < 58 || n > 60 {
			t.Errorf("asked %d times in an hour", n)
		}
	})
}

// asked is how many check-ins have come.
func (p *plane) asked() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return len(p.sizes)
}
