package sim

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"strings"
	"sync"
	"time"

	"github.com/go-json-experiment/json"

	"nixfleet/roles/protocol"
)

// violation is a promise that was broken.
type violation struct {
	invariant string
	at        time.Duration
	text      string
}

func (v violation) String() string { return fmt.Sprintf("%s after %s: %s", v.invariant, v.at, v.text) }

// world is one fleet for the time of one scenario.
type world struct {
	scenario *scenario
	dir      string
	trace    io.Writer // of all logs; nil: none
	began    time.Time

	forge *forge
	plane *plane
	edge  *edge
	hosts map[string]*host

	ctx    context.Context
	cancel context.CancelFunc
	chores sync.WaitGroup

	mu         sync.Mutex
	ended      bool
	violations []violation
	events     []protocol.Event
	seq        int64 // of the last event of this database

	// What the control plane acknowledged since its database was last lost.
	acked     map[[2]string]string // host and rollout id -> closure
	halted    map[string]string    // intents, until a person acts, and why
	retried   map[[2]string]bool   // intent and host: may be given one more attempt
	bad       map[[2]string]bool   // channel and closure: quarantined
	opened    map[string]int       // intent -> highest wave that was opened
	newest    map[string]string    // channel -> intent
	converged map[string]bool      // intents
	skipped   map[[2]string]string // intent and host -> why it is not waited for
	emptied   time.Time            // when the database was lost

	recalled map[string]bool // intents, ever
}

func newWorld(s *scenario, dir string, trace io.Writer) *world {
	w := &world{scenario: s, dir: dir, trace: trace, began: time.Now(), hosts: map[string]*host{},
		recalled: map[string]bool{}}
	w.ctx, w.cancel = context.WithCancel(context.Background())
	w.wiped()
	w.forge = newForge(w)
	w.plane = newPlane(w)
	w.edge = newEdge(w)
	for n := range s.hosts {
		h := newHost(w, n)
		w.hosts[h.name] = h
		line := hostLine(h)
		w.forge.fleet.Hosts[h.name].Pubkey = &line
	}
	return w
}

// wiped forgets what only the database knew. It needs the lock.
func (w *world) wiped() {
	w.acked, w.halted, w.opened, w.seq, w.emptied = map[[2]string]string{}, map[string]string{}, map[string]int{}, 0,
		time.Now()
	w.retried, w.bad, w.newest, w.converged, w.skipped = map[[2]string]bool{}, map[[2]string]bool{}, map[string]string{},
		map[string]bool{}, map[[2]string]string{}
}

func (w *world) locked(f func()) {
	w.mu.Lock()
	defer w.mu.Unlock()
	f()
}

func (w *world) over() bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.ended
}

func (w *world) lastSeq() int64 {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.seq
}

// later runs a chore beside; it ends with the world.
func (w *world) later(f func(ctx context.Context)) { w.chores.Go(func() { f(w.ctx) }) }

func (w *world) violate(invariant, format string, args ...any) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.broken(invariant, format, args...)
}

// broken is violate for who has the lock.
func (w *world) broken(invariant, format string, args ...any) {
	v := violation{invariant, time.Since(w.began), fmt.Sprintf(format, args...)}
	w.violations = append(w.violations, v)
	if w.trace != nil {
		fmt.Fprintf(w.trace, "VIOLATION %s\n", v)
	}
}

// play runs the scenario to its end, and then to peace.
func (w *world) play() {
	for _, h := range w.hosts {
		h.install()
	}
	w.forge.advance(nil, nil)
	w.plane.start()
	w.later(w.plane.follow)
	w.later(w.look)
	for n := range w.scenario.hosts {
		h := w.hosts[name(n)]
		h.life.Lock()
		time.Sleep(w.aside("start", n))
		h.start()
		h.life.Unlock()
	}
	for n, e := range w.scenario.events {
		time.Sleep(time.Until(w.began.Add(e.at)) + w.aside("event", n))
		if w.failed() {
			break
		}
		w.happen(e)
	}
	if !w.failed() {
		w.settle()
	}
	w.end()
}

func (w *world) failed() bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	return len(w.violations) > 0
}

// happen brings one event about.
func (w *world) happen(e event) {
	if w.trace != nil {
		fmt.Fprintf(w.trace, "EVENT %s %s h%02d for %s, n %d\n", e.at, e.kind, e.host, e.last, e.n)
	}
	hosts := []*host{}
	for n := range w.scenario.hosts {
		if e.host == n || e.host < 0 {
			hosts = append(hosts, w.hosts[name(n)])
		}
	}
	switch e.kind {
	case release:
		w.forge.advance(nil, nil)
	case badRelease:
		w.forge.advance(w.some("bad", e), nil)
	case staged:
		w.forge.advance(nil, w.some("staged", e))
		w.later(func(ctx context.Context) {
			hosts[0].wait(ctx, e.last)
			hosts[0].poweroff(time.Minute)
		})
	case resign:
		w.forge.publish()
	case move:
		if len(w.scenario.channels) > 1 {
			h := w.forge.fleet.Hosts[hosts[0].name]
			h.Channel = map[string]string{"c0": "c1", "c1": "c0"}[h.Channel]
			w.forge.publish()
		}
	case kill, wipe:
		// Its end takes as long as who is held then takes to notice.
		back := time.Now().Add(e.last + w.aside("starts again", e.at))
		w.plane.kill(e.kind == wipe)
		w.later(func(ctx context.Context) {
			select {
			case <-ctx.Done():
			case <-time.After(time.Until(back)):
			}
			if !w.plane.up() && !w.over() {
				w.plane.start()
			}
		})
	case cut, cutUp, cutDown, lossy, lie, slowDisk, skew:
		for _, h := range hosts {
			if e.kind == skew {
				h.misset(time.Duration(e.n-10) * 4 * time.Minute)
			}
			if h.suffer(e.kind, e.last); e.kind == slowDisk || e.kind == lie {
				w.acquit(h)
			}
		}
	case crash, powerCut:
		h := hosts[0]
		h.mu.Lock()
		h.doomed = doom{steps: e.n, power: e.kind == powerCut, down: e.last}
		h.mu.Unlock()
	case vanish, reboot:
		down := e.last
		if e.kind == reboot {
			down = time.Minute
		}
		hosts[0].poweroff(down)
	case replayToken:
		w.replay(hosts[0])
	case pause, cancel, resume, retry:
		w.person(e, hosts)
	}
}

// some are the hosts of one in a few.
func (w *world) some(what string, e event) func(host string) bool {
	return func(host string) bool { return stream(w.scenario.seed, what, e.at, host).IntN(1+e.n/4) == 0 }
}

// person has an operator act. What comes of it shows in the log of events.
func (w *world) person(e event, hosts []*host) {
	w.later(func(ctx context.Context) {
		if e.kind == retry {
			for _, h := range hosts {
				_ = w.plane.operator.Retry(ctx, h.name, "simulated")
			}
			return
		}
		w.mu.Lock()
		id := w.forge.rolloutOf(fmt.Sprint("c", e.n%len(w.scenario.channels)))
		w.mu.Unlock()
		if w.plane.operator.Hold(ctx, id, string(e.kind), "simulated") == nil && e.kind == pause {
			hosts[0].wait(ctx, e.last)
			_ = w.plane.operator.Hold(ctx, id, "resume", "simulated")
		}
	})
}

// replay offers a token that was used.
func (w *world) replay(h *host) {
	w.later(func(ctx context.Context) {
		h.mu.Lock()
		enrol := h.enrolled
		h.mu.Unlock()
		if enrol == nil {
			return
		}
		request := enrol.Clone(ctx)
		got, err := w.edge.ask(ctx, h, request, h.enrolment)
		w.mu.Lock()
		defer w.mu.Unlock()
		if err == nil && got.status == http.StatusOK && h.enrolledAt.After(w.emptied) {
			w.broken(invAcknowledged, "a used token of %s enrolled it again", h.name)
		}
	})
}

// settle ends all faults, publishes a release that works, and waits until every
// host runs it.
func (w *world) settle() {
	for _, h := range w.hosts {
		h.mu.Lock()
		clear(h.until)
		h.doomed = doom{}
		h.mu.Unlock()
		h.hangUp()
	}
	// Whoever is away comes back first, and whoever leaves with the last event has to
	// have gone.
	time.Sleep(time.Minute + 4*apart)
	for wait := 0; wait < 24*40; wait++ {
		away := !w.plane.up()
		for _, h := range w.hosts {
			h.mu.Lock()
			away = away || h.off || h.severed
			h.mu.Unlock()
		}
		if !away || w.failed() {
			break
		}
		time.Sleep(time.Hour)
		w.forge.publish()
	}
	for _, h := range w.hosts {
		h.renewToken()
	}
	w.forge.advance(nil, nil)
	var left []string
	for range 6 {
		for range 12 {
			time.Sleep(5 * time.Minute)
			if left = w.behind(); len(left) == 0 || w.failed() {
				break
			}
		}
		if len(left) == 0 || w.failed() {
			break
		}
		w.forge.publish()
	}
	if len(left) > 0 && !w.failed() {
		w.violate(invArrives, "%s", strings.Join(left, "; "))
	}
	if !w.failed() {
		w.lookBack()
	}
}

// behind are the hosts that do not run what they should, and what the control
// plane says of it.
func (w *world) behind() []string {
	var left []string
	for n := range w.scenario.hosts {
		h := w.hosts[name(n)]
		want := *w.forge.fleet.Hosts[h.name].ClosureHash
		if got, err := h.sim.CurrentSystem(w.ctx); err == nil && got == want {
			continue
		}
		why := "no explanation"
		if x, err := w.plane.operator.Explain(w.ctx, h.name); err == nil {
			why = x.Reason.Code + ": " + x.Reason.Text
		}
		left = append(left, h.name+" ("+why+")")
	}
	return left
}

// end takes everything down.
func (w *world) end() {
	w.locked(func() { w.ended = true })
	w.cancel()
	w.plane.down()
	w.edge.close()
	for _, h := range w.hosts {
		h.hangUp()
	}
	w.chores.Wait()
	for _, h := range w.hosts {
		h.life.Lock()
		h.halt()
		h.sim.Close()
		h.life.Unlock()
		for h.undoes() {
			time.Sleep(time.Second)
		}
	}
	w.plane.down()
}

func decode(doc []byte, v any) bool { return json.Unmarshal(doc, v) == nil }
