package machines

import (
	_ "embed"
	"fmt"
	"strings"
	"testing"

	"nixfleet/nixops/testnix"
)

//go:embed testdata/switch-to-configuration
var switchModel string

//go:embed testdata/activate
var activateModel string

//go:embed testdata/stage-2
var stage2Model string

//go:embed testdata/bootctl
var bootctlStub string

//go:embed testdata/nixfleet-agent.service
var agentUnit string

//go:embed testdata/nixfleet-guard.service
var guardUnit string

//go:embed testdata/network-eth0.service
var networkUnit string

// settleTime is what the agents of the machines watch units for; 15 s by default.
const settleTime = "4s"

// A system is one generation of one machine.
type system struct {
	machine *machine
	label   string // tells generations apart
	url     string // of the control plane
	agent   string // a file of the test machine that becomes the closure's nixfleet
	flags   []string
	trust   string
	address string            // that eth0 gets
	units   map[string]string // name -> text; the text mask masks it
	wanted  []string          // units that multi-user.target wants
	knobs   map[string]string // of the model, testdata/switch-to-configuration
	files   map[string]string // in the closure
	special map[string]string // specialisation -> base name of its closure
	init    string            // init-interface-version
}

const mask = "mask"

// service is a unit that runs a command for good.
func service(command string, settings ...string) string {
	return "[Unit]\nDescription=" + command + "\n\n[Service]\nExecStart=" + command + "\n" + strings.Join(settings, "\n") + "\n"
}

// knob, unit and the like change a system that is about to be built.
type change func(*system)

func labelled(text string) change { return func(s *system) { s.label = text } }
func knob(name, value string) change {
	return func(s *system) { s.knobs[name] = value }
}
func unit(name, text string) change {
	return func(s *system) {
		s.units[name] = text
		s.wanted = append(s.wanted, name)
	}
}
func agentOf(file string) change { return func(s *system) { s.agent = file } }
func file(name, text string) change {
	return func(s *system) { s.files[name] = text }
}
func option(text ...string) change { return func(s *system) { s.flags = append(s.flags, text...) } }

// spec is the closure of the system.
func (s *system) spec(nixfleet string) testnix.Spec {
	units := map[string]string{
		"nixfleet-agent.service": agentUnit, "nixfleet-guard.service": guardUnit, "network-eth0.service": networkUnit,
		"app.service":                 service("/bin/sleep infinity", "Environment=RELEASE="+s.label),
		"multi-user.target":           "[Unit]\nDescription=Multi-User System\nRequires=basic.target\nAfter=basic.target\nAllowIsolate=yes\n",
		"sysinit-reactivation.target": "[Unit]\nDescription=Reactivate sysinit units\n",
	}
	for name, text := range s.units {
		units[name] = text
	}
	flags := append([]string{
		"--bootstrap-token-file /etc/nixfleet/bootstrap-token", "--ca-cert /etc/nixfleet/fleet-root.cert.pem", "--client-cert /var/lib/nixfleet/agent-cert.pem",
		"--client-key /etc/ssh/ssh_host_ed25519_key", "--compliance-gate-mode auto", "--control-plane-url " + s.url, "--machine-id " + s.machine.name,
		"--poll-interval 2", "--ssh-host-key-file /etc/ssh/ssh_host_ed25519_key", "--state-dir /var/lib/nixfleet-agent",
		"--trust-file /etc/nixfleet/agent/trust.json",
	}, s.flags...)
	spec := testnix.Spec{
		Name: "nixos-system-" + s.machine.name + "-" + s.label, Agent: s.agent, TrustJSON: s.trust, Script: switchModel, Specialisations: s.special,
		Links: map[string]string{}, Files: map[string]string{"activate": activateModel, "init-interface-version": s.init, "nixos-version": "25.11.20251101.0000000\n"},
	}
	replace := strings.NewReplacer("@nixfleet@", nixfleet, "@settle@", settleTime, "@flags@", strings.Join(flags, " "),
		"@trigger@", fmt.Sprintf("%x", len(s.trust)), "@address@", s.address)
	for name, text := range units {
		if text == mask {
			spec.Links["etc/systemd/system/"+name] = "/dev/null"
			continue
		}
		spec.Files["etc/systemd/system/"+name] = replace.Replace(text)
	}
	for _, name := range append([]string{"nixfleet-agent.service", "nixfleet-guard.service", "network-eth0.service", "app.service"}, s.wanted...) {
		spec.Links["etc/systemd/system/multi-user.target.wants/"+name] = "../" + name
	}
	for name, value := range s.knobs {
		spec.Files["model/"+name] = value
	}
	for name, text := range s.files {
		spec.Files[name] = text
	}
	return spec
}

// build makes the closure. Its units name the agent by store path, as the module's do.
func (g *ground) build(t testing.TB, s *system) string {
	t.Helper()
	g.mu.Lock()
	nixfleet := g.agents[s.agent]
	if nixfleet == "" {
		nixfleet = g.nix.Run(t, "nix", "store", "add", "--store", g.store.Dir, "--name", "nixfleet-agent", s.agent)
		g.agents[s.agent] = nixfleet
	}
	g.mu.Unlock()
	return g.store.Build(t, s.spec(nixfleet))
}
