package machines

import (
	"maps"
	"os"
	"sync"
	"testing"
	"time"

	"nixfleet/nixops/fleet"
	"nixfleet/pki"
)

// forge is a git repository with the releases of one fleet, a checkout that they are
// made in, and the CI that makes them.
type forge struct {
	g      *ground
	name   string
	window time.Duration // a host of this fleet has to confirm

	mu       sync.Mutex
	hosts    map[string]*fleet.Host
	policies map[string]string // host's channel -> its rollout policy
	closures map[string]string
	waiting  []chan error // for the next release
}

// newForge makes the repository and the first release, of an empty fleet.
func (g *ground) newForge(name string, window time.Duration) *forge {
	f := &forge{g: g, name: name, window: window, hosts: map[string]*fleet.Host{}, policies: map[string]string{},
		closures: map[string]string{}}
	g.run("git", "init", "-q", "--bare", "-b", "main", f.repository())
	g.run("git", "clone", "-q", f.repository(), f.checkout())
	must(g.t, os.WriteFile(f.checkout()+"/flake.lock", []byte("0\n"), 0o644))
	g.run("git", "-C", f.checkout(), "add", "-A")
	g.run("git", "-C", f.checkout(), "commit", "-qm", "first")
	g.run("git", "-C", f.checkout(), "push", "-q", "origin", "HEAD:main")
	must(g.t, f.publish(nil, nil, nil))
	go f.releases()
	return f
}

func (f *forge) repository() string { return f.g.path(f.name + ".git") }
func (f *forge) checkout() string   { return f.g.path(f.name) }

// declare adds a host with a channel of its own, so that no scenario halts another.
func (f *forge) declare(name, channel, pubkey string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.hosts[name] = &fleet.Host{System: "x86_64-linux", Tags: []string{}, Channel: channel, Pubkey: &pubkey}
}

// policy sets the rollout policy of a channel, which is "halt" otherwise.
func (f *forge) policy(channel, policy string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.policies[channel] = policy
}

// release publishes closures for hosts. Scenarios that ask at the same time share one
// release, as the commits of a busy day would.
func (f *forge) release(t testing.TB, closures map[string]string) {
	t.Helper()
	done := make(chan error, 1)
	f.mu.Lock()
	maps.Copy(f.closures, closures)
	f.waiting = append(f.waiting, done)
	f.mu.Unlock()
	if err := <-done; err != nil {
		t.Fatal(err)
	}
}

// releases is CI: it makes one release after the other while there is something new.
func (f *forge) releases() {
	for {
		time.Sleep(300 * time.Millisecond)
		f.mu.Lock()
		waiting := f.waiting
		f.waiting = nil
		hosts, closures, policies := maps.Clone(f.hosts), maps.Clone(f.closures), maps.Clone(f.policies)
		f.mu.Unlock()
		err := f.g.t.Context().Err()
		if len(waiting) > 0 && err == nil {
			err = f.publish(hosts, closures, policies)
		}
		for _, done := range waiting {
			done <- err
		}
		if f.g.t.Context().Err() != nil {
			return
		}
	}
}

func (f *forge) publish(hosts map[string]*fleet.Host, closures, policies map[string]string) error {
	declared := &fleet.Fleet{
		SchemaVersion: 1, Meta: fleet.Meta{SchemaVersion: 1}, Hosts: map[string]*fleet.Host{},
		Waves: map[string][]fleet.Wave{}, Channels: map[string]fleet.Channel{},
		RolloutPolicies: map[string]fleet.Policy{
			"halt":     {Strategy: "all-at-once", Waves: []fleet.PolicyWave{}, OnHealthFailure: fleet.OnFailureHalt},
			"rollback": {Strategy: "all-at-once", Waves: []fleet.PolicyWave{}, OnHealthFailure: fleet.OnFailureRollback},
		},
	}
	paths := map[string]string{}
	for name, closure := range closures {
		host := hosts[name]
		declared.Hosts[name] = host
		paths[name] = "/nix/store/" + closure
		policy := policies[host.Channel]
		if policy == "" {
			policy = "halt"
		}
		declared.Channels[host.Channel] = fleet.Channel{
			RolloutPolicy: policy, ReconcileIntervalMinutes: 1, FreshnessWindow: 120, SigningIntervalMinutes: 60,
			Compliance: fleet.Compliance{Frameworks: []string{}, Mode: fleet.ModeDisabled},
		}
		declared.Waves[host.Channel] = []fleet.Wave{}
	}
	files := map[string]any{f.name + "-declared.json": declared, f.name + "-closures.json": paths}
	for file, value := range files {
		doc, err := pki.Marshal(value)
		if err == nil {
			err = os.WriteFile(f.g.path(file), doc, 0o644)
		}
		if err != nil {
			return err
		}
	}
	g := f.g
	_, err := g.try(g.binary, "release", "--build-flake", f.checkout(), "--release-dir", f.checkout()+"/releases",
		"--fleet-file", g.path(f.name+"-declared.json"),
		"--closures", g.path(f.name+"-closures.json"), "--sign-key", g.path("keys/release.key"), "--trust-file",
		g.path("keys/trust.json"),
		"--git-push", "origin:main", "--git-user-name", "ci", "--git-user-email", "ci@"+suffix, "--confirm-window",
		f.window.String())
	return err
}
