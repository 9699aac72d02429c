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

	"nixfleet/nixops/disk"
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
	saw   string          // the words of the last report that was waited for
	known map[string]bool // reports from before the last release
}

// newPlay makes a machine that runs a first system, enrols it, and waits until the
// control plane knows that it is where the fleet wants it.
func newPlay(t *testing.T, g *ground, cp *controlPlane, name string, changes ...change) *play {
	t.Helper()
	return newPlayOn(t, g, cp, name, "channel-"+name, func(*machine) {}, changes...)
}

// newPlayOn is newPlay on a channel that may be shared, with a machine that is prepared
// before anything is installed.
func newPlayOn(t *testing.T, g *ground, cp *controlPlane, name, channel string, prepare func(*machine),
	changes ...change) *play {
	t.Helper()
	g.setup <- struct{}{}
	p := &play{T: t, g: g, cp: cp, m: newMachine(t, g.net, name, g.base, g.binary), known: map[string]bool{}}
	prepare(p.m)
	private, public := newKey(t, name)
	p.m.write("/etc/ssh/ssh_host_ed25519_key", private, 0o600)
	token := g.run(g.binary, "mint-token", "--hostname", name, "--host-pubkey", public, "--org-root-key",
		g.path("keys/org-root.key"))
	p.m.write("/etc/nixfleet/bootstrap-token", token, 0o600)
	p.m.write("/etc/nixfleet/fleet-root.cert.pem", g.read("keys/fleet-root.cert.pem"), 0o644)
	p.m.write("/etc/nix/nix.conf",
		"experimental-features = nix-command flakes\nsandbox = false\nbuild-users-group =\nsubstituters = http://"+hubAddress+
			":"+cachePort+
			"\ntrusted-public-keys = "+g.cacheKey+"\n", 0o644)
	p.m.write("/usr/local/sbin/stage-2", stage2Model, 0o755)
	p.m.write(systemdInside+"/bootctl", bootctlStub, 0o755)

	p.first = p.build(append([]change{labelled("installed")}, changes...)...)
	p.install(p.first)
	<-g.setup
	cp.forge.declare(name, channel, public)
	cp.forge.release(t, map[string]string{name: p.first})
	p.m.boot()
	until(t, name+" is enrolled and known", func() string {
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
	p.m.write("/boot/loader/entries/nixos-"+closure+".conf",
		"options init=/nix/store/"+closure+"/init loglevel=4\n", 0o644)
}

// system is a generation of this machine like the first one, but for the changes.
func (p *play) system(changes ...change) *system {
	s := &system{
		machine: p.m, url: p.cp.url(), agent: p.g.agent, trust: p.g.read("keys/trust.json"), address: p.m.address,
		init:  "1\n",
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
	p.begun, p.saw = time.Now(), ""
	for _, r := range p.cp.reports(p, p.m.name) {
		p.known[r.EventID] = true
	}
	p.cp.forge.release(p, map[string]string{p.m.name: closure})
}

// reports are what the control plane has heard of the machine since the last release.
func (p *play) reports() []protocol.HostReport {
	return slices.DeleteFunc(p.cp.reports(p, p.m.name), func(r protocol.HostReport) bool { return p.known[r.EventID] })
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
	entry, _ := os.ReadFile(p.m.path("/boot/loader/entries/" +
		strings.TrimSpace(strings.TrimPrefix(string(conf), "default "))))
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
	text, _ := disk.Read(m.path("/var/lib/nixfleet-agent/journal.json"), 4<<20) // which may be a pipe
	if found := stepIn.FindSubmatch(text); found != nil {
		return string(found[1])
	}
	return ""
}

// settled waits until the machine is in a state, by its links from outside and with no
// activation under way.
func (p *play) settled(want outside) {
	p.Helper()
	until(p, p.m.name+" comes to its end", func() string {
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
	p.settled(all(closure))
	until(p, "agent status confirms", func() string {
		s, err := p.status()
		if err != nil {
			return err.Error()
		}
		if s.Confirmed == nil || s.Confirmed.Closure != closure || len(s.Problems) > 0 {
			return fmt.Sprintf("%+v", s)
		}
		return ""
	})
	until(p, "the control plane sees it converged", func() string {
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

// hears waits until the control plane has heard why the target was taken back.
func (p *play) hears(reason string) {
	p.Helper()
	until(p, "the control plane hears why", func() string {
		for _, r := range p.reports() {
			if r.Event == "rollback-triggered" && strings.Contains(string(r.Details), reason) {
				p.saw = words(r)
				return ""
			}
		}
		return fmt.Sprintf("no report of a rollback that names %s; it is %+v, step %q", reason, p.outside(), p.m.step())
	})
}

// back waits until the control plane has heard why the target was taken back, and finds
// the machine where it was, remembering whether the target is to blame.
func (p *play) back(reason string, blamed bool) {
	p.Helper()
	p.hears(reason)
	p.settled(all(p.first))
	until(p, p.m.name+" remembers the undo", func() string {
		s, err := p.status()
		if err != nil {
			return err.Error()
		}
		if s.Quarantine == nil || blamed != (s.Quarantine.Failures > 0) {
			return fmt.Sprintf("its quarantine is %+v; the target should be blamed: %v", s.Quarantine, blamed)
		}
		return ""
	})
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
	return strings.ReplaceAll(strings.TrimRight(line, ": "), "|", "/")
}

var hashes = regexp.MustCompile(`[0-9a-z]{32}-`)

// stays waits until the control plane has heard of an event that says why the target
// was not activated, and finds the machine where it was.
func (p *play) stays(event, reason string) {
	p.Helper()
	until(p, "the control plane hears of "+event, func() string {
		var heard []string
		for _, r := range p.reports() {
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
	p.settled(all(p.first))
	p.healthy()
}

// remembers waits until the machine's own status names a reason for which the target
// was given up without blame.
func (p *play) remembers(reason string) {
	p.Helper()
	until(p, p.m.name+" notes "+reason, func() string {
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

// at waits until the journal on the machine's disk is at a step where it stays.
func (p *play) at(step string) {
	p.Helper()
	until(p, p.m.name+" is "+step, func() string {
		if found := p.m.step(); found != step {
			return fmt.Sprintf("it is at %q, %+v", found, p.outside())
		}
		return ""
	})
}

// healthy: the units that this machine always has are up.
func (p *play) healthy() {
	p.Helper()
	until(p, p.m.name+"'s units are up", func() string {
		for _, unit := range []string{"nixfleet-agent.service", "app.service", "network-eth0.service"} {
			if out, err := p.m.try("systemctl", "is-active", unit); err != nil {
				return unit + " is " + strings.TrimSpace(out)
			}
		}
		return ""
	})
}

// part is one of several scenarios that a machine goes through, each from where the one
// before has left it.
type part struct {
	name string // of the closure, too
	play func(p *play, next func(...change) string)
}

// course is a scenario of several parts, which share the making of a machine. One that
// fails ends it, since nobody knows where it has left the machine.
func course(name string, begin func(*testing.T, *ground) *play, parts ...part) scenario {
	return scenario{name, func(t *testing.T, g *ground) {
		whole := begin(t, g)
		for _, part := range parts {
			if !t.Run(part.name, func(t *testing.T) {
				p := *whole
				p.T = t
				part.play(&p, func(changes ...change) string { return p.next(part.name, changes...) })
				whole.first = p.outside().current
			}) {
				t.Fatalf("%s was left somewhere", whole.m.name)
			}
		}
	}}
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
