package sim

import (
	"context"
	"errors"
	"io/fs"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"nixfleet/nixops"
	"nixfleet/nixops/sim"
	"nixfleet/pki"
	"nixfleet/roles/agent"
)

// host is one machine with its agent.
type host struct {
	w       *world
	name    string
	key     *pki.PrivateKey
	reboots string        // its policy
	drift   time.Duration // of its clock, always

	life latch // held while the agent or the machine starts or stops

	mu      sync.Mutex
	sim     *sim.Host
	conns   map[net.Conn]bool
	stop    func() // of the agent; nil while none runs
	severed bool   // nothing goes through: it is dead, or switched off
	off     bool
	undoing int // deadlines and guards that run
	doomed  doom
	until   map[kind]time.Time // faults of its network, disk and clock
	wrong   time.Duration      // how far its clock is off, while it is

	// What is true of it, whatever anybody says.
	switching   bool      // between the start of a switch and its proof or undo
	switchedTo  string    // the closure of the last switch that was no undo
	armed       time.Time // when its deadline was armed; zero: not
	began       int       // the newest release that it had accepted when it began the activation
	accepted    int       // the newest release the head of which it was given
	confirmed   map[string]time.Time
	ran, well   map[string]bool // closures that it confirmed; and of which it said last that all probes pass
	lastContact time.Time
	blameless   map[string]bool // closures whose activation a fault of ours met
	recalled    bool            // a control plane that lies may have moved it
	torn        int             // looks in a row at which what runs is not what boots

	enrolled   *http.Request // the last enrolment that was answered
	enrolment  []byte
	enrolledAt time.Time
}

// latch is a lock of which who waits for it lets virtual time pass.
type latch chan struct{}

func (l latch) Lock()   { l <- struct{}{} }
func (l latch) Unlock() { <-l }
func (l latch) TryLock() bool {
	select {
	case l <- struct{}{}:
		return true
	default:
		return false
	}
}

// doom is the end of an agent, or of the power, after so many steps.
type doom struct {
	steps int
	power bool
	down  time.Duration
}

func newHost(w *world, n int) *host {
	h := &host{
		w: w, name: name(n), conns: map[net.Conn]bool{}, until: map[kind]time.Time{}, confirmed: map[string]time.Time{},
		ran: map[string]bool{}, well: map[string]bool{},
		life: make(latch, 1), blameless: map[string]bool{}, accepted: -1, began: -1,
	}
	h.key = w.seededKey("host", h.name)
	r := stream(w.scenario.seed, "machine", h.name)
	h.reboots = []string{"never", "never", "never", "never", "immediate"}[r.IntN(5)]
	h.drift = time.Duration(r.IntN(41)-20) * time.Second
	return h
}

func (h *host) path(name string) string { return h.w.path("hosts", h.name, name) }

// install makes the machine as an installer leaves it: with a token and the
// first system, and no certificate.
func (h *host) install() {
	key, err := h.key.MarshalOpenSSH("")
	h.w.must(err)
	for file, data := range map[string][]byte{"key": key, "trust.json": h.w.forge.trust(),
		"ca.pem": certPEM(h.w.forge.root.Cert), "token": h.w.forge.token(h.name, h.key), "health.json": h.w.health()} {
		h.w.must(os.MkdirAll(filepath.Dir(h.path(file)), 0o700))
		h.w.must(os.WriteFile(h.path(file), data, 0o600))
	}
	first := closureOf(h.name, 0)
	h.w.must(sim.WriteClosure(h.w.forge.cache, first,
		sim.Closure{Agent: "self", TrustJSON: string(h.w.forge.trust()), Cache: sim.Cache{Size: 1}}))
	h.open()
	h.w.must(h.sim.Install(first))
}

// open switches the machine's clockwork on.
func (h *host) open() {
	sim, err := sim.New(h.path("machine"), h.w.forge.cache)
	h.w.must(err)
	sim.Alone()
	h.mu.Lock()
	h.sim = sim
	h.mu.Unlock()
	sim.OnDeadline(func(d nixops.Deadline) {
		undo := func(ctx context.Context, cfg agent.Config) error { return agent.Deadline(ctx, cfg, d.Unit) }
		switch err := h.outside(undo); {
		case err == nil:
			h.w.fired(h)
		case !errors.Is(err, os.ErrClosed):
			h.w.log(h.name).Warn().Err(err).Msg("deadline")
		}
	})
	sim.OnSwitched(func(string) {
		h.rest(h.w.ctx, "switched")
		h.restart()
	})
}

// outside runs what runs beside the agent.
func (h *host) outside(run func(context.Context, agent.Config) error) error {
	h.mu.Lock()
	h.undoing++
	h.mu.Unlock()
	defer func() {
		h.mu.Lock()
		defer h.mu.Unlock()
		h.undoing--
	}()
	return run(h.w.ctx, h.config(false))
}

// undoes: a deadline or a guard still runs.
func (h *host) undoes() bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.undoing > 0
}

func (h *host) config(mortal bool) agent.Config {
	h.mu.Lock()
	defer h.mu.Unlock()
	return agent.Config{
		URL: "https://cp", MachineID: h.name, TrustFile: h.path("trust.json"), CACert: h.path("ca.pem"),
		ClientCert: h.path("cert/agent.pem"),
		ClientKey:  h.path("key"), SSHHostKey: h.path("key"), TokenFile: h.path("token"), StateDir: h.path("state"),
		AllowVolatile: true, ActsPoll: time.Hour,
		HealthChecks: h.path("health.json"), RebootPolicy: h.reboots, Clock: h.clock,
		Host: &watched{h.sim, h, mortal}, Dial: h.dial, Log: *h.w.log(h.name),
		Jitter: h.w.jitter(h.name),
	}
}

func (h *host) dial(ctx context.Context, _, _ string) (net.Conn, error) {
	h.mu.Lock()
	severed, sim := h.severed, h.sim
	h.mu.Unlock()
	if f := h.faults(time.Now()); severed || f.up && f.down || !sim.Online() {
		return nil, errNoRoute
	}
	conn, err := h.w.edge.wire.dial(ctx, func(far net.Conn) net.Conn { return &hostConn{far, h} })
	if err != nil {
		return nil, err
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	h.conns[conn] = true
	return conn, nil
}

// start and halt need h.life.
func (h *host) start() {
	cfg := h.config(true)
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	h.mu.Lock()
	if !h.sim.AgentStarts() {
		h.mu.Unlock()
		cancel()
		return
	}
	h.stop = func() {
		cancel()
		<-done
	}
	h.mu.Unlock()
	go func() {
		err := agent.Run(ctx, cfg)
		done <- err
		if err != nil && ctx.Err() == nil {
			h.w.log(h.name).Error().Err(err).Msg("agent ended")
			h.again()
		}
	}()
}

// again is what systemd does with an agent that ended by itself.
func (h *host) again() {
	h.w.later(func(ctx context.Context) {
		select {
		case <-ctx.Done():
		case <-time.After(30 * time.Second):
			h.restart()
		}
	})
}

func (h *host) halt() {
	h.mu.Lock()
	stop := h.stop
	h.stop = nil
	h.mu.Unlock()
	if stop != nil {
		stop()
	}
}

// restart ends the agent and starts another, as a switch does to its unit.
func (h *host) restart() {
	if !h.life.TryLock() {
		return
	}
	defer h.life.Unlock()
	h.mu.Lock()
	gone := h.stop == nil || h.off || h.severed
	h.mu.Unlock()
	if gone || h.w.over() {
		return
	}
	h.halt()
	h.start()
}

// die ends the agent at this very moment, and with it the power if there is to
// be none: whatever it still does until it has noticed is taken back.
func (h *host) die(d doom) bool {
	if !h.life.TryLock() {
		return false
	}
	h.mu.Lock()
	if h.undoing > 0 || h.off {
		// What undoes is another process, which an image would end as well.
		h.mu.Unlock()
		h.life.Unlock()
		return false
	}
	h.severed = true
	h.mu.Unlock()
	h.hangUp()
	image := h.w.path("hosts", h.name+".image")
	h.w.must(os.RemoveAll(image))
	h.w.must(copyTree(image, h.path("")))
	h.w.later(func(ctx context.Context) {
		defer h.life.Unlock()
		h.halt()
		h.sim.Close()
		h.w.must(os.RemoveAll(h.path("")))
		h.w.must(os.Rename(image, h.path("")))
		h.w.acquit(h)
		if d.power {
			h.dark(ctx, d.down)
			return
		}
		h.open()
		h.wait(ctx, d.down)
		h.revive()
	})
	return true
}

// copyTree copies what is there of a directory in which somebody may still write.
func copyTree(to, from string) error {
	return filepath.WalkDir(from, func(path string, d fs.DirEntry, err error) error {
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		} else if err != nil {
			return err
		}
		place, err := filepath.Rel(from, path)
		if err != nil {
			return err
		}
		if d.IsDir() {
			return os.MkdirAll(filepath.Join(to, place), 0o700)
		}
		data, err := os.ReadFile(path)
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		} else if err != nil {
			return err
		}
		return os.WriteFile(filepath.Join(to, place), data, 0o600)
	})
}

// dark is a machine without power, and then its boot. It needs h.life.
func (h *host) dark(ctx context.Context, down time.Duration) {
	h.w.disarms(h)
	h.mu.Lock()
	h.off, h.severed = true, true
	h.mu.Unlock()
	h.hangUp()
	h.wait(ctx, down)
	h.open()
	h.mu.Lock()
	h.off = false
	h.mu.Unlock()
	h.w.must(h.sim.PowerCycle())
	if err := h.outside(agent.Guard); err != nil {
		h.w.log(h.name).Warn().Err(err).Msg("guard")
	}
	h.revive()
}

func (h *host) revive() {
	h.mu.Lock()
	h.severed = false
	h.mu.Unlock()
	if !h.w.over() {
		h.start()
	}
}

func (h *host) wait(ctx context.Context, d time.Duration) {
	select {
	case <-ctx.Done():
	case <-time.After(d):
	}
}

// poweroff switches the machine off properly, for so long.
func (h *host) poweroff(down time.Duration) {
	h.w.later(func(ctx context.Context) {
		h.life.Lock()
		defer h.life.Unlock()
		h.mu.Lock()
		gone := h.off || h.undoing > 0
		h.mu.Unlock()
		if gone {
			return
		}
		h.halt()
		h.sim.Close()
		h.w.acquit(h)
		h.dark(ctx, down)
	})
}

// watched is the machine as its agent sees it; what it does to the machine is
// noted, and may be the last thing it does.
type watched struct {
	*sim.Host
	h      *host
	mortal bool
}

var errDead = errors.New("the agent was killed")

// step may be the agent's last.
func (m *watched) step(ctx context.Context) error {
	if f := m.h.faults(time.Now()); f.slow {
		time.Sleep(2 * time.Second)
	}
	m.h.w.note("STEP", m.h, "")
	m.h.rest(ctx, "step")
	if !m.mortal {
		return nil
	}
	m.h.mu.Lock()
	d := m.h.doomed
	if d.steps > 0 {
		m.h.doomed.steps--
	}
	severed := m.h.severed
	m.h.mu.Unlock()
	if d.steps == 1 && m.h.die(d) || severed {
		return errDead
	}
	return nil
}

func (m *watched) Reboot(context.Context) error {
	m.h.poweroff(time.Minute)
	return nil
}

func (m *watched) Realise(ctx context.Context, closure string, progress func(string), how ...nixops.Fetch) error {
	m.h.w.begins(m.h, closure)
	if err := m.step(ctx); err != nil {
		return err
	}
	return m.Host.Realise(ctx, closure, progress, how...)
}

func (m *watched) ArmDeadline(ctx context.Context, d nixops.Deadline) error {
	if err := m.step(ctx); err != nil {
		return err
	}
	err := m.Host.ArmDeadline(ctx, d)
	if err == nil {
		m.h.w.arms(m.h, d.After)
	}
	return errors.Join(err, m.step(ctx))
}

func (m *watched) DisarmDeadline(ctx context.Context, unit string) error {
	if err := m.step(ctx); err != nil {
		return err
	}
	err := m.Host.DisarmDeadline(ctx, unit)
	if err == nil {
		m.h.w.disarms(m.h)
	}
	return errors.Join(err, m.step(ctx))
}

func (m *watched) Switch(ctx context.Context, r nixops.SwitchRequest) (nixops.Exit, error) {
	if err := m.step(ctx); err != nil {
		return nixops.Exit{}, err
	}
	if r.Action == nixops.ActionTest {
		back := strings.Contains(strings.Join(r.Env, " "), "NIXOS_NO_CHECK=1")
		m.h.w.switches(m.h, r.Closure, back)
	}
	exit, err := m.Host.Switch(ctx, r)
	return exit, errors.Join(err, m.step(ctx))
}

func (m *watched) SetProfile(ctx context.Context, closure string) error {
	if err := m.step(ctx); err != nil {
		return err
	}
	return errors.Join(m.Host.SetProfile(ctx, closure), m.step(ctx))
}

func (m *watched) RestoreCurrent(ctx context.Context, closure string) error {
	if err := m.step(ctx); err != nil {
		return err
	}
	return errors.Join(m.Host.RestoreCurrent(ctx, closure), m.step(ctx))
}

func (m *watched) Units(ctx context.Context) ([]nixops.Unit, error) {
	if err := m.step(ctx); err != nil {
		return nil, err
	}
	return m.Host.Units(ctx)
}

// ActiveState is what probes ask, beside all else.
func (m *watched) ActiveState(ctx context.Context, unit string) (string, error) {
	m.h.rest(ctx, "probe "+unit)
	return m.Host.ActiveState(ctx, unit)
}
