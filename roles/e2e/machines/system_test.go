package machines

import (
	_ "embed"
	"maps"
	"os"
	"strings"
	"testing"

	"nixfleet/nixops/testnix"
	"nixfleet/pki"
)

//go:embed testdata/switch-to-configuration
var switchModel string

//go:embed testdata/activate
var activateModel string

//go:embed testdata/stage-2
var stage2Model string

//go:embed testdata/bootctl
var bootctlStub string

//go:embed testdata/network-eth0.service
var networkUnit string

// settleTime is what the agents of the machines watch units for; 15 s by default.
const settleTime = "4s"

// A system is one generation of one machine.
type system struct {
	machine *machine
	label   string   // tells generations apart
	url     string   // of the control plane
	agent   string   // a file of the test machine that becomes the closure's nixfleet
	flags   []string // of the agent, beyond those that every machine has
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
	return "[Unit]\nDescription=" + command + "\n\n[Service]\nExecStart=" + command + "\n" +
		strings.Join(settings, "\n") + "\n"
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

// rendered is where the units lie as the modules render them; the machines get those.
const rendered = "../../../nixops/modules/testdata/rendered/agent/"

// shipped is a unit of ours as NixOS would have it on this machine: with its store
// paths, and with the flags that belong to the machine.
func (s *system) shipped(t testing.TB, name, nixfleet string) string {
	t.Helper()
	text, err := os.ReadFile(rendered + name)
	must(t, err)
	own := []string{"--bootstrap-token-file=/etc/nixfleet/bootstrap-token", "--ca-cert=/etc/nixfleet/fleet-root.cert.pem"}
	unit := strings.NewReplacer(
		stub+"nixfleet/bin/nixfleet agent run", nixfleet+" agent run "+strings.Join(append(own, s.flags...), " "),
		stub+"nixfleet/bin/nixfleet", nixfleet,
		stub+"nix/bin", nixInside+"/bin", stub+"systemd/bin", systemdInside,
		"--control-plane-url=https://cp.example.com:8080", "--control-plane-url="+s.url,
		"--machine-id=web-01", "--machine-id="+s.machine.name, "--poll-interval=60", "--poll-interval=2",
		"--settle-time=15s", "--settle-time="+settleTime,
	).Replace(string(text))
	if name == "nixfleet-agent.service" && !strings.Contains(unit, " --poll-interval=2 --settle-time="+settleTime+" ") {
		t.Fatalf("the unit is not that of this machine:\n%s", unit)
	}
	_, triggers, _ := strings.Cut(unit, "X-Restart-Triggers=")
	if old, _, ok := strings.Cut(triggers, "\n"); ok {
		unit = strings.Replace(unit, old, pki.HashHex([]byte(s.trust)), 1)
	}
	return unit
}

// stub begins the store paths in the rendered units.
const stub = "/nix/store/00000000000000000000000000000000-"

// spec is the closure of the system.
func (s *system) spec(t testing.TB, nixfleet string) testnix.Spec {
	t.Helper()
	units := map[string]string{
		"nixfleet-agent.service": s.shipped(t, "nixfleet-agent.service", nixfleet),
		"nixfleet-guard.service": s.shipped(t, "nixfleet-guard.service", nixfleet),
		"network-eth0.service":   strings.ReplaceAll(networkUnit, "@address@", s.address),
		"app.service":            service("/bin/sleep infinity", "Environment=RELEASE="+s.label),
		"multi-user.target": "[Unit]\nDescription=Multi-User " +
			"System\nRequires=basic.target\nAfter=basic.target\nAllowIsolate=yes\n",
		"sysinit-reactivation.target": "[Unit]\nDescription=Reactivate sysinit units\n",
	}
	maps.Copy(units, s.units)
	spec := testnix.Spec{
		Name: "nixos-system-" + s.machine.name + "-" + s.label, Agent: s.agent, TrustJSON: s.trust, Script: switchModel,
		Specialisations: s.special,
		Links:           map[string]string{},
		Files: map[string]string{"activate": activateModel, "init-interface-version": s.init,
			"nixos-version": "25.11.20251101.0000000\n"},
	}
	for name, text := range units {
		if text == mask {
			spec.Links["etc/systemd/system/"+name] = "/dev/null"
			continue
		}
		spec.Files["etc/systemd/system/"+name] = text
	}
	for _, name := range append([]string{"nixfleet-agent.service", "nixfleet-guard.service", "network-eth0.service",
		"app.service"}, s.wanted...) {
		spec.Links["etc/systemd/system/multi-user.target.wants/"+name] = "../" + name
	}
	for name, value := range s.knobs {
		spec.Files["model/"+name] = value
	}
	maps.Copy(spec.Files, s.files)
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
	return g.store.Build(t, s.spec(t, nixfleet))
}
