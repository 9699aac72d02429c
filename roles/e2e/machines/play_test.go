package machines

import (
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/go-json-experiment/json"

	"nixfleet/roles/protocol"
)

// play is one scenario: a machine, its control plane, and the closures it goes through.
type play struct {
	*testing.T
	g     *ground
	m     *machine
	cp    *controlPlane
	first string // the closure that it starts with
	begun time.Time
	saw   string // the words of the last report that was waited for
}

// newPlay makes a machine that runs a first system, enrols it, and waits until the
// control plane knows that it is where the fleet wants it.
func newPlay(t *testing.T, g *ground, cp *controlPlane, name string, changes ...change) *play {
	t.Helper()
	return newPlayOn(t, g, cp, name, "channel-"+name, func(*machine) {}, changes...)
}

// newPlayOn is newPlay on a channel that may be shared, with a machine that is prepared
// before anything is installed.
func newPlayOn(t *testing.T, g *ground, cp *controlPlane, name, channel string, prepare func(*machine), changes ...change) *play {
	t.Helper()
	g.setup <- struct{}{}
	p := &play{T: t, g: g, cp: cp, m: newMachine(t, g.net, name, g.base, g.binary)}
	prepare(p.m)
	private, public := newKey(t, name)
	p.m.write("/etc/ssh/ssh_host_ed25519_key", private, 0o600)
	token := g.run(g.binary, "mint-token", "--hostname", name, "--host-pubkey", public, "--org-root-key", g.path("keys/org-root.key"))
	p.m.write("/etc/nixfleet/bootstrap-token", token, 0o600)
	p.m.write("/etc/nixfleet/fleet-root.cert.pem", g.read("keys/fleet-root.cert.pem"), 0o644)
	p.m.write("/etc/nix/nix.conf", "experimental-features = nix-command flakes\nsandbox = false\nbuild-users-group =\nsubstituters = http://"+hubAddress+":"+cachePort+
		"\ntrusted-public-keys = "+g.cacheKey+"\n", 0o644)
	p.m.write("/usr/local/sbin/stage-2", stage2Model, 0o755)
	p.m.write(systemdInside+"/bootctl", bootctlStub, 0o755)

	p.first = p.build(append([]change{labelled("installed")}, changes...)...)
	p.install(p.first)
	<-g.setup
	g.declare(name, channel, public)
	g.release(t, map[string]string{name: p.first})
	p.m.boot()
	until(t, 2*time.Minute, name+" is enrolled and known", func() string {
		h, err := cp.host(t, name)
		if err != nil {
			return err.Error()
		}
		if h.CurrentClosureHash == nil || *h.CurrentClosureHash != p.first {
			return "it has not been heard of"
		}
		return ""
	})
	return p
}

// copyIn brings a closure into the machine's store by hand.
func (p *play) copyIn(closure string) {
	p.Helper()
	p.g.nix.Run(p, "nix", "copy", "--store", p.g.store.Dir, "--to", p.m.root, "--no-check-sigs", "/nix/store/"+closure)
}

// install puts a closure where an installer would: store, profile, boot loader.
func (p *play) install(closure string) {
	p.Helper()
	p.copyIn(closure)
	must(p, os.MkdirAll(p.m.path("/nix/var/nix/profiles"), 0o755))
	must(p, os.Symlink("/nix/store/"+closure, p.m.path("/nix/var/nix/profiles/system-1-link")))
	must(p, os.Symlink("system-1-link", p.m.path("/nix/var/nix/profiles/system")))
	must(p, os.MkdirAll(p.m.path("/nix/var/nix/gcroots"), 0o755))
	for _, link := range []string{"booted-system", "current-system"} {
		must(p, os.Symlink("/run/"+link, p.m.path("/nix/var/nix/gcroots/"+link)))
	}
	p.m.write("/boot/loader/loader.conf", "default nixos-"+closure+".conf\n", 0o644)
	p.m.write("/boot/loader/entries/nixos-"+closure+".conf", "options init=/nix/store/"+closure+"/init loglevel=4\n", 0o644)
}

// system is a generation of this machine like the first one, but for the changes.
func (p *play) system(changes ...change) *system {
	s := &system{
		machine: p.m, url: p.cp.url(), agent: p.g.agent, trust: p.g.read("keys/trust.json"), address: p.m.address, init: "1\n",
		units: map[string]string{}, knobs: map[string]string{}, files: map[string]string{},
	}
	for _, change := range changes {
		change(s)
	}
	return s
}

// build builds a generation.
func (p *play) build(changes ...change) string {
	p.Helper()
	p.g.building.Lock()
	defer p.g.building.Unlock()
	return p.g.build(p, p.system(changes...))
}

// next builds a generation and pushes it, signed, to the cache.
func (p *play) next(label string, changes ...change) string {
	p.Helper()
	closure := p.build(append([]change{labelled(label)}, changes...)...)
	p.push(closure)
	return closure
}

func (p *play) push(closures ...string) {
	p.Helper()
	p.g.building.Lock()
	defer p.g.building.Unlock()
	p.g.cache.Push(p, p.g.store, p.g.cacheSecret(), closures...)
}

// release has the fleet want a closure on this machine; the clock of the table starts.
func (p *play) release(closure string) {
	p.Helper()
	p.begun = time.Now()
	p.g.release(p, map[string]string{p.m.name: closure})
}

// outside is the state of the machine as somebody with its disk and its processes sees it.
type outside struct {
	current, profile, boot string
}

func (p *play) outside() outside {
	var o outside
	if target, err := os.Readlink(fmt.Sprintf("/proc/%d/root/run/current-system", p.m.pid())); err == nil {
		o.current = filepath.Base(target)
	}
	link, err := os.Readlink(p.m.path("/nix/var/nix/profiles/system"))
	if err == nil {
		target, _ := os.Readlink(p.m.path("/nix/var/nix/profiles/" + link))
		o.profile = filepath.Base(target)
	}
	conf, _ := os.ReadFile(p.m.path("/boot/loader/loader.conf"))
	entry, _ := os.ReadFile(p.m.path("/boot/loader/entries/" + strings.TrimSpace(strings.TrimPrefix(string(conf), "default "))))
	if found := initOf.FindSubmatch(entry); found != nil {
		o.boot = string(found[1])
	}
	return o
}

var initOf = regexp.MustCompile(`init=/nix/store/([^/\s]+)/init`)

// all says that everything names one closure.
func all(closure string) outside { return outside{closure, closure, closure} }

// localStatus is the part of `nixfleet agent status --json` that is looked at.
type localStatus struct {
	Agent *struct {
		Waiting       string `json:"waiting"`
		RebootPending string `json:"rebootPending"`
		Told          string `json:"told"`
	} `json:"agent"`
	Current    string `json:"current"`
	Activation *struct {
		Step string `json:"step"`
	} `json:"activation"`
	Confirmed *struct {
		Closure string `json:"closure"`
	} `json:"confirmed"`
	Quarantine *struct {
		Closure     string `json:"closure"`
		Reason      string `json:"reason"`
		Failures    int    `json:"failures"`
		Unreachable int    `json:"unreachable"`
	} `json:"quarantine"`
	Mark *struct {
		Intent string `json:"intent"`
	} `json:"mark"`
	Problems []string `json:"problems"`
}

// status asks the machine itself, as root does.
func (p *play) status() (localStatus, error) {
	var s localStatus
	out, err := p.m.try("/usr/local/bin/nixfleet", "agent", "status", "--json")
	if err == nil {
		err = json.Unmarshal([]byte(out), &s)
	}
	return s, err
}

var stepIn = regexp.MustCompile(`"step":"([a-z]+)"`)

// step is where the journal on disk stands, "" without one.
func (m *machine) step() string {
	text, _ := os.ReadFile(m.path("/var/lib/nixfleet-agent/journal.json"))
	if found := stepIn.FindSubmatch(text); found != nil {
		return string(found[1])
	}
	return ""
}

// settled waits until the machine is in a state, by its links from outside and with no
// activation under way.
func (p *play) settled(limit time.Duration, want outside) {
	p.Helper()
	until(p, limit, p.m.name+" comes to its end", func() string {
		if o := p.outside(); o != want {
			return fmt.Sprintf("it is %+v, wanted %+v, step %q", o, want, p.m.step())
		}
		if step := p.m.step(); step != "" {
			return "the activation is " + step
		}
		return ""
	})
}

// confirmed waits until the machine runs the closure for good and everybody knows.
func (p *play) confirmed(closure string) {
	p.Helper()
	p.settled(3*time.Minute, all(closure))
	until(p, time.Minute, "agent status confirms", func() string {
		s, err := p.status()
		if err != nil {
			return err.Error()
		}
		if s.Confirmed == nil || s.Confirmed.Closure != closure || len(s.Problems) > 0 {
			return fmt.Sprintf("%+v", s)
		}
		return ""
	})
	until(p, time.Minute, "the control plane sees it converged", func() string {
		h, err := p.cp.host(p, p.m.name)
		if err != nil {
			return err.Error()
		}
		if !h.Converged || h.CurrentClosureHash == nil || *h.CurrentClosureHash != closure {
			return fmt.Sprintf("%+v", h)
		}
		return ""
	})
	p.healthy()
}

// back waits until the control plane has heard why the target was taken back, and finds
// the machine where it was.
func (p *play) back(limit time.Duration, reason string, blamed bool) {
	p.Helper()
	until(p, limit, "the control plane hears why", func() string {
		for _, r := range p.cp.reports(p, p.m.name) {
			if r.Event == "rollback-triggered" && strings.Contains(string(r.Details), reason) {
				p.saw = words(r)
				return ""
			}
		}
		return fmt.Sprintf("no report of a rollback that names %s; it is %+v, step %q", reason, p.outside(), p.m.step())
	})
	p.settled(time.Minute, all(p.first))
	s, err := p.status()
	must(p, err)
	switch {
	case s.Quarantine == nil:
		p.Errorf("%s remembers nothing of the undo", p.m.name)
		return

	case blamed != (s.Quarantine.Failures > 0):
		p.Errorf("%s: quarantine %+v, blamed should be %v", p.m.name, *s.Quarantine, blamed)
	}
	p.saw += map[bool]string{true: "; quarantined", false: "; to be tried again"}[blamed]
	p.healthy()
}

// words are what a report tells a person, without what only this run knows.
func words(r protocol.HostReport) string {
	var d struct {
		Reason     string `json:"reason"`
		StderrTail string `json:"stderr_tail"`
	}
	if err := json.Unmarshal(r.Details, &d); err != nil {
		return err.Error()
	}
	text := strings.TrimSpace(d.Reason)
	if text == "" {
		text = strings.TrimSpace(d.StderrTail)
	}
	line, _, _ := strings.Cut(hashes.ReplaceAllString(text, "…"), "\n")
	line, _, _ = strings.Cut(line, ": run nix") // and all that Nix said
	const most = 170                            // characters in a cell of the table
	if short := []rune(line); len(short) > most {
		line = string(short[:most]) + "…"
	}
	return strings.ReplaceAll(line, "|", "/")
}

var hashes = regexp.MustCompile(`[0-9a-z]{32}-`)

// stays waits until the control plane has heard of an event that says why the target
// was not activated, and finds the machine where it was.
func (p *play) stays(event, reason string) {
	p.Helper()
	until(p, 2*time.Minute, "the control plane hears of "+event, func() string {
		var heard []string
		for _, r := range p.cp.reports(p, p.m.name) {
			if r.Event == event && strings.Contains(string(r.Details), reason) {
				if r.SignatureStatus == nil || *r.SignatureStatus == "mismatch" {
					return fmt.Sprintf("the report's signature is %v", r.SignatureStatus)
				}
				p.saw = r.Event + ": " + words(r)
				return ""
			}
			heard = append(heard, r.Event+" "+string(r.Details))
		}
		return fmt.Sprintf("%d other reports: %s", len(heard), strings.Join(heard, "; "))
	})
	p.settled(time.Minute, all(p.first))
	p.healthy()
}

// remembers waits until the machine's own status names a reason for which the target
// was given up without blame.
func (p *play) remembers(reason string) {
	p.Helper()
	until(p, 2*time.Minute, p.m.name+" notes "+reason, func() string {
		s, err := p.status()
		if err != nil {
			return err.Error()
		}
		if s.Quarantine == nil || !strings.Contains(s.Quarantine.Reason, reason) || s.Quarantine.Failures > 0 {
			return fmt.Sprintf("%+v", s)
		}
		p.saw = s.Quarantine.Reason + "; to be tried again"
		return ""
	})
}

// at waits until the journal on the machine's disk is at one of the steps.
func (p *play) at(steps ...string) (step string) {
	p.Helper()
	for deadline := time.Now().Add(2 * time.Minute); ; time.Sleep(500 * time.Microsecond) {
		if step = p.m.step(); slices.Contains(steps, step) {
			return step
		}
		if time.Now().After(deadline) {
			p.Fatalf("%s never came to %v; it is at %q, %+v", p.m.name, steps, step, p.outside())
		}
	}
}

// powerCut cuts the power and gives the step that the disk was left at.
func (p *play) powerCut() (step string) {
	p.Helper()
	p.m.cut()
	step = p.m.step()
	p.m.boot()
	return step
}

// healthy: the units that this machine always has are up.
func (p *play) healthy() {
	p.Helper()
	until(p, time.Minute, p.m.name+"'s units are up", func() string {
		for _, unit := range []string{"nixfleet-agent.service", "app.service", "network-eth0.service"} {
			if out, err := p.m.try("systemctl", "is-active", unit); err != nil {
				return unit + " is " + strings.TrimSpace(out)
			}
		}
		return ""
	})
}

// row is a line of the table in docs/activation.md.
type row struct {
	scenario, runs, saw string
	took                time.Duration
}

// tell adds the scenario to the table; without words of its own, with those of the
// report that was waited for.
func (p *play) tell(scenario, runs, saw string) {
	if saw == "" {
		saw = p.saw
	}
	if p.Failed() {
		return
	}
	took := time.Since(p.begun).Round(time.Second)
	p.g.mu.Lock()
	defer p.g.mu.Unlock()
	p.g.rows = append(p.g.rows, row{scenario, runs, saw, took})
}
