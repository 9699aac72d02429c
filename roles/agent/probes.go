package agent

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"sort"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"nixfleet/nixops"
	"nixfleet/nixops/disk"
	"nixfleet/pki"
	"nixfleet/roles/agent/journal"
	"nixfleet/roles/protocol"
)

const (
	minProbeInterval = 5 * time.Second
	maxFailureReason = 512
)

// healthChecks is health-checks.json. Times are seconds.
type healthChecks struct {
	Mode  string      `json:"mode" shape:"D"`
	HTTP  []httpProbe `json:"http" shape:"D"`
	TCP   []tcpProbe  `json:"tcp" shape:"D"`
	Exec  []execProbe `json:"exec" shape:"D"`
	Units []unitProbe `json:"units" shape:"D"`
}

type probeTimes struct {
	Interval uint32 `json:"intervalSeconds" shape:"D"`
	Timeout  uint32 `json:"timeoutSeconds" shape:"D"`
	Grace    uint32 `json:"gracePeriodSeconds" shape:"D"`
}

type httpProbe struct {
	Name         string `json:"name" shape:"R"`
	URL          string `json:"url" shape:"R"`
	ExpectStatus uint32 `json:"expectStatus" shape:"D"`
	probeTimes
}

type tcpProbe struct {
	Name string `json:"name" shape:"R"`
	Host string `json:"host" shape:"D"`
	Port uint32 `json:"port" shape:"R"`
	probeTimes
}

type execProbe struct {
	Name    string   `json:"name" shape:"R"`
	Command []string `json:"command" shape:"R"`
	probeTimes
}

type unitProbe struct {
	Name string `json:"name" shape:"R"`
	Unit string `json:"unit" shape:"R"`
	probeTimes
}

// probe is one check that repeats.
type probe struct {
	name, kind               string
	interval, timeout, grace time.Duration
	run                      func(context.Context) error
}

// loadProbes reads the probes of a file; none without one.
func loadProbes(path string) (*healthChecks, error) {
	h := &healthChecks{Mode: "enforce"}
	if path == "" {
		return h, nil
	}
	doc, err := disk.ReadLinked(path, pki.MaxDocument)
	if errors.Is(err, os.ErrNotExist) {
		return h, nil
	}
	if err == nil {
		// Its commands are run by root.
		err = journal.OwnOnly(path)
	}
	if err != nil {
		return nil, fmt.Errorf("health checks: %w", err)
	}
	if err := pki.Decode(doc, h); err != nil {
		return nil, fmt.Errorf("health checks %s: %w", path, err)
	}
	switch h.Mode {
	case "disabled", "permissive", "enforce":
	default:
		return nil, fmt.Errorf("health checks %s: mode %q: use disabled, permissive or enforce", path, h.Mode)
	}
	if err := h.check(); err != nil {
		return nil, fmt.Errorf("health checks %s: %w", path, err)
	}
	return h, nil
}

// check finds probes that could never pass.
func (h *healthChecks) check() error {
	names := map[string]bool{}
	for _, p := range h.list(nil) {
		switch {
		case p.name == "":
			return fmt.Errorf("a probe of kind %s has no name", p.kind)
		case names[p.name]:
			return fmt.Errorf("two probes are named %q", p.name)
		}
		names[p.name] = true
	}
	for _, p := range h.HTTP {
		if u, err := url.Parse(p.URL); err != nil || u.Scheme != "http" && u.Scheme != "https" || u.Host == "" {
			return fmt.Errorf("probe %q: url %q must begin with http:// or https://", p.Name, p.URL)
		}
	}
	for _, p := range h.TCP {
		if p.Port == 0 || p.Port > 65535 {
			return fmt.Errorf("probe %q: port %d is not between 1 and 65535", p.Name, p.Port)
		}
	}
	for _, p := range h.Exec {
		if len(p.Command) == 0 || p.Command[0] == "" {
			return fmt.Errorf("probe %q has no command", p.Name)
		}
	}
	for _, p := range h.Units {
		if p.Unit == "" {
			return fmt.Errorf("probe %q has no unit", p.Name)
		}
	}
	return nil
}

// list is the probes in order of their names.
func (h *healthChecks) list(host nixops.Host) []probe {
	var out []probe
	add := func(name, kind string, t probeTimes, timeout uint32, run func(context.Context) error) {
		seconds := func(n, def uint32) time.Duration {
			if n == 0 {
				n = def
			}
			return time.Duration(n) * time.Second
		}
		out = append(out, probe{name, kind, max(seconds(t.Interval, 30), minProbeInterval), seconds(t.Timeout, timeout),
			seconds(t.Grace, 0), run})
	}
	for _, p := range h.HTTP {
		add(p.Name, protocol.ProbeHTTP, p.probeTimes, 5, p.run)
	}
	for _, p := range h.TCP {
		add(p.Name, protocol.ProbeTCP, p.probeTimes, 5, p.run)
	}
	for _, p := range h.Exec {
		add(p.Name, protocol.ProbeExec, p.probeTimes, 10, p.run)
	}
	for _, p := range h.Units {
		// The contract has no word for these, and one that it does not have is answered 422.
		add(p.Name, protocol.ProbeExec, p.probeTimes, 5, func(ctx context.Context) error { return p.run(ctx, host) })
	}
	sort.Slice(out, func(i, j int) bool { return out[i].name < out[j].name })
	return out
}

func (p httpProbe) run(ctx context.Context) error {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, p.URL, nil)
	if err != nil {
		return err
	}
	want := int(p.ExpectStatus)
	if want == 0 {
		want = http.StatusOK
	}
	client := *http.DefaultClient
	if want/100 == 3 { // that a redirection is answered is what is looked for
		client.CheckRedirect = func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }
	}
	resp, err := client.Do(req)
	if err != nil {
		return err
	}
	resp.Body.Close()
	if resp.StatusCode != want {
		return fmt.Errorf("it answered %d, not %d", resp.StatusCode, want)
	}
	return nil
}

func (p tcpProbe) run(ctx context.Context) error {
	host := p.Host
	if host == "" {
		host = "127.0.0.1"
	}
	conn, err := (&net.Dialer{}).DialContext(ctx, "tcp", net.JoinHostPort(host, strconv.Itoa(int(p.Port))))
	if err != nil {
		return err
	}
	return conn.Close()
}

func (p execProbe) run(ctx context.Context) error {
	cmd := exec.CommandContext(ctx, p.Command[0], p.Command[1:]...)
	cmd.WaitDelay = time.Second
	// What the command has started ends with it: a probe that hangs hangs again and again.
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) }
	var out ending
	cmd.Stdout, cmd.Stderr = &out, &out
	if err := cmd.Run(); err != nil {
		return fmt.Errorf("%w: %s", err, strings.TrimSpace(strings.ToValidUTF8(string(out), "\uFFFD")))
	}
	return nil
}

// ending keeps the last bytes written to it.
type ending []byte

const endingKept = 200

func (e *ending) Write(p []byte) (int, error) {
	*e = append(*e, p[max(0, len(p)-endingKept):]...)
	*e = append((*e)[:0], (*e)[max(0, len(*e)-endingKept):]...)
	return len(p), nil
}

// run wants the unit to be active: one that was never started, or is started
// again and again, has not failed either. A service that waits for its socket to be asked is
// as ready as its socket: a switch that changes such a service stops it and starts the socket.
func (p unitProbe) run(ctx context.Context, host nixops.Host) error {
	state, err := host.ActiveState(ctx, p.Unit)
	if err != nil {
		return err
	}
	switch state {
	case "active", "reloading", "refreshing":
		return nil
	case "inactive":
		if service, ok := strings.CutSuffix(p.Unit, ".service"); ok {
			if socket, err := host.ActiveState(ctx, service+".socket"); err == nil && socket == "active" {
				return nil
			}
		}
	}
	return fmt.Errorf("unit %s is %s", p.Unit, state)
}

// prober runs probes for ever and keeps their last results.
type prober struct {
	mode    string
	probes  []probe
	changed func() // a result has changed

	mu      sync.Mutex
	results map[string]protocol.ProbeResult
	since   time.Time // of the generation that is judged: a grace period counts from here
}

func newProber(h *healthChecks, host nixops.Host, changed func()) *prober {
	p := &prober{mode: h.Mode, probes: h.list(host), changed: changed, since: time.Now()}
	p.reset()
	return p
}

// active reports whether check-ins carry probes.
func (p *prober) active() bool { return p.mode != "disabled" && len(p.probes) > 0 }

// reset forgets results: a new generation has to prove itself.
func (p *prober) reset() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.since = time.Now()
	p.results = map[string]protocol.ProbeResult{}
	for _, probe := range p.probes {
		p.results[probe.name] = protocol.ProbeResult{Name: probe.name, Kind: probe.kind, Status: protocol.ProbeUnknown}
	}
}

func (p *prober) run(ctx context.Context) {
	if !p.active() {
		return
	}
	var all sync.WaitGroup
	for _, probe := range p.probes {
		all.Go(func() {
			for {
				p.once(ctx, probe)
				if nixops.Sleep(ctx, probe.interval) != nil {
					return
				}
			}
		})
	}
	all.Wait()
}

// once runs a probe and notes the outcome. A failure within the grace period
// leaves the probe unknown.
func (p *prober) once(ctx context.Context, pr probe) {
	limited, cancel := context.WithTimeout(ctx, pr.timeout)
	err := pr.run(limited)
	cancel()
	if ctx.Err() != nil {
		return
	}
	now := pki.At(time.Now().Truncate(time.Millisecond))
	p.mu.Lock()
	r := p.results[pr.name]
	before := r.Status
	r.LastRunAt = &now
	switch {
	case err == nil:
		r.Status, r.LastPassAt, r.FailureReason = protocol.ProbePass, &now, nil
	case pr.grace > 0 && now.Sub(p.since) < pr.grace && r.LastPassAt == nil:
	default:
		// A probe prints what it likes; what is not text would make the check-in fail.
		text := err.Error()
		text = strings.ToValidUTF8(text[:min(len(text), maxFailureReason)], "")
		r.Status, r.FailureReason = protocol.ProbeFail, &text
	}
	p.results[pr.name] = r
	p.mu.Unlock()
	if r.Status != before && p.changed != nil {
		p.changed()
	}
}

// snapshot is the results in order of their names.
func (p *prober) snapshot() []protocol.ProbeResult {
	p.mu.Lock()
	defer p.mu.Unlock()
	out := []protocol.ProbeResult{}
	for _, probe := range p.probes {
		out = append(out, p.results[probe.name])
	}
	return out
}

// failing names the probes that do not allow a new generation to be proven: in
// enforce mode all must pass, in permissive mode none may fail.
func (p *prober) failing() []string {
	if !p.active() {
		return nil
	}
	var names []string
	for _, r := range p.snapshot() {
		if r.Status == protocol.ProbeFail || p.mode == "enforce" && r.Status != protocol.ProbePass {
			names = append(names, r.Name+" ("+r.Status+")")
		}
	}
	return names
}
