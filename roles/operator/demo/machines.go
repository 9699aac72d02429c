package demo

import (
	"context"
	"crypto/sha256"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"time"

	"github.com/nix-community/go-nix/pkg/nixbase32"

	"nixfleet/nixops/sim"
)

// machines are what the hosts of a demonstration are: simulated ones, or real
// private Nix stores. Keys, git, TLS, control plane and agents are real with both.
type machines interface {
	// install gives every host a first system, release 0.
	install(ctx context.Context) error
	// release puts release n into the fleet's checkout. want says which release's
	// closure each host gets; a bad one starts a unit that fails. The answer are the
	// flags by which `nixfleet release` finds the closures.
	release(ctx context.Context, want func(host string) int, n int, bad bool) ([]string, error)
	// agentFlags say where a host lies.
	agentFlags(name string) []string
	// stop ends what install began.
	stop()
	// String says what they are, as the end of a sentence.
	String() string
}

// systemName is the name of what a host runs in one release, without its hash.
func systemName(host string, n int) string {
	return "nixos-system-" + host + "-" + strconv.Itoa(n)
}

// failingUnit is what the broken release starts.
const failingUnit = "web.service"

// simulatedMachines need no Nix: a closure is a small file that says what
// switching to it does.
type simulatedMachines struct{ s *story }

func simulatedClosure(host string, n int) string {
	sum := sha256.Sum256([]byte(host + strconv.Itoa(n)))
	return nixbase32.EncodeToString(sum[:20]) + "-" + systemName(host, n)
}

func (m simulatedMachines) install(ctx context.Context) error {
	for _, name := range m.s.names {
		if err := m.build(name, 0, true); err != nil {
			return err
		}
		sim, err := sim.New(m.s.path("hosts", name, "machine"), m.s.path("cache"))
		if err != nil {
			return err
		}
		if err := sim.Install(simulatedClosure(name, 0)); err != nil {
			return err
		}
	}
	return nil
}

func (m simulatedMachines) build(name string, n int, good bool) error {
	if err := os.MkdirAll(m.s.path("cache"), 0o755); err != nil {
		return err
	}
	trust, err := os.ReadFile(m.s.key("trust.json"))
	if err != nil {
		return err
	}
	c := sim.Closure{Agent: "self", TrustJSON: string(trust),
		Cache:  sim.Cache{FetchTime: 300 * time.Millisecond, Size: 1 << 20},
		Script: sim.Script{SwitchTime: 200 * time.Millisecond}}
	if !good {
		c.After.FailedUnits = []string{failingUnit}
	}
	return sim.WriteClosure(m.s.path("cache"), simulatedClosure(name, n), c)
}

func (m simulatedMachines) release(ctx context.Context, want func(string) int, n int, bad bool) ([]string, error) {
	closures := map[string]string{}
	for _, name := range m.s.names {
		closures[name] = "/nix/store/" + simulatedClosure(name, want(name))
		if want(name) == n {
			if err := m.build(name, n, !bad); err != nil {
				return nil, err
			}
		}
	}
	if err := m.s.writeJSON("closures.json", closures); err != nil {
		return nil, err
	}
	return []string{"--fleet-file", m.s.path("fleet", "fleet.json"), "--closures", m.s.path("closures.json")}, nil
}

func (m simulatedMachines) agentFlags(name string) []string {
	return []string{"--simulated-host", m.s.path("hosts", name, "machine"), "--simulated-cache", m.s.path("cache")}
}

func (m simulatedMachines) stop()          {}
func (m simulatedMachines) String() string { return "simulated" }

// removeStores removes a directory with Nix stores, whose directories nobody may write.
func removeStores(dir string) error {
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err == nil && d.IsDir() {
			err = os.Chmod(path, 0o700)
		}
		return err
	})
	if err != nil {
		return err
	}
	return os.RemoveAll(dir)
}
