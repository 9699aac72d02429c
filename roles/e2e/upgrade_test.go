package e2e

import (
	"errors"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"nixfleet/roles/protocol"
	"nixfleet/roles/protocol/client"
)

// installer makes a simulated machine and the closures for it: the release before keeps both in formats of its own.
// Its arguments are the machine, the cache, the trust file and the closures, the first of which is installed.
const installer = `package main

import (
	"os"

	"nixfleet/nixops"
)

func main() {
	trust, err := os.ReadFile(os.Args[3])
	must(err)
	must(os.MkdirAll(os.Args[2], 0o700))
	for _, closure := range os.Args[4:] {
		must(nixops.WriteSimClosure(os.Args[2], closure, nixops.SimClosure{
			Agent: "self", TrustJSON: string(trust), Size: 1 << 20,
		}))
	}
	host, err := nixops.NewSim(os.Args[1], os.Args[2])
	must(err)
	must(host.Install(os.Args[4]))
}

func must(err error) {
	if err != nil {
		panic(err)
	}
}
`

// releaseBefore builds the release before this one, whose commit .ci/before names, from git; and what installs machines
// for it.
func releaseBefore(t *testing.T) (executable, install string) {
	t.Helper()
	name, err := os.ReadFile("../../.ci/before")
	if err != nil {
		t.Fatal(err)
	}
	commit := strings.TrimSpace(string(name))
	// A shallow clone does not have it, and a tree that was not cloned has no git.
	tree := exec.CommandContext(t.Context(), "git", "archive", "--format=tar", commit)
	tree.Dir = "../.."
	source, err := tree.Output()
	if err != nil {
		t.Skipf("git has no commit %s of .ci/before: %v", commit, err)
	}
	dir := t.TempDir()
	unpack := exec.CommandContext(t.Context(), "tar", "-x", "-C", dir)
	unpack.Stdin = strings.NewReader(string(source))
	if out, err := unpack.CombinedOutput(); err != nil {
		t.Fatalf("unpack %s: %v\n%s", commit, err, out)
	}
	if err := os.Mkdir(filepath.Join(dir, "install"), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "install/main.go"), []byte(installer), 0o600); err != nil {
		t.Fatal(err)
	}
	executable, install = filepath.Join(dir, "nixfleet-before"), filepath.Join(dir, "install-before")
	for out, part := range map[string]string{executable: ".", install: "./install"} {
		build := exec.CommandContext(t.Context(), "go", "build", "-buildvcs=false", "-o", out, part)
		build.Dir = dir
		if said, err := build.CombinedOutput(); err != nil {
			t.Fatalf("build %s of %s: %v\n%s", part, commit, err, said)
		}
	}
	return executable, install
}

// TestUpgrade has agents of the release before and of this one under the control plane of either, with a rollout under
// way at each change of it: the database of the one before is opened by this one, and this one's by the one before. A
// host that was revoked stays out throughout.
func TestUpgrade(t *testing.T) {
	t.Parallel()
	before, install := releaseBefore(t)
	f := newSimFleet(t, "early", "late", "gone")
	for _, name := range f.names {
		f.machine(name)
		f.certify(name)
	}
	f.must(os.RemoveAll(f.path("hosts/early/machine")))
	args := []string{f.path("hosts/early/machine"), f.path("cache-before"), f.path("keys/trust.json")}
	for n := range 5 {
		args = append(args, simClosureName("early", n))
	}
	f.run(install, args...)
	agent := func(program, name, cache string) (stop func()) {
		t.Helper()
		f.program = program
		return f.startAgent(name, "--simulated-cache", f.path(cache))
	}
	plane := func(program string) {
		t.Helper()
		f.program = program
		f.startControlPlane()
	}
	// Their rollout waits for the revoked host until it counts as offline, which nothing here waits for.
	arrived := func(n int, names ...string) {
		t.Helper()
		f.converged(n, names...)
		for _, name := range names {
			f.until(name+" has confirmed", func() bool {
				state := f.host(name).RolloutState
				return state != nil && slices.Contains([]protocol.HostState{
					protocol.HostHealthy, protocol.HostSoaked, protocol.HostConverged,
				}, protocol.HostState(*state))
			})
		}
	}
	// begun waits until the host that takes its time is at it.
	begun := func() {
		t.Helper()
		f.until("late has begun", func() bool {
			state := f.host("late").RolloutState
			return state != nil && slices.Contains([]protocol.HostState{
				protocol.HostDispatched, protocol.HostActivating, protocol.HostConfirmWindow,
			}, protocol.HostState(*state))
		})
	}
	staysOut := func() {
		t.Helper()
		_, err := f.asHost("gone").Whoami(t.Context())
		refused := (*client.Error)(nil)
		if !errors.As(err, &refused) || refused.Status != http.StatusUnauthorized && refused.Status != http.StatusForbidden {
			t.Errorf("the revoked host was answered: %v", err)
		}
	}

	f.release(1)
	plane(before)
	agent(before, "early", "cache-before")
	agent(binary, "late", "cache")
	gone := agent(binary, "gone", "cache")
	f.settled(1, "early", "late", "gone")
	gone()
	f.run(binary, "revoke", "gone", "--reason", "stolen", "--cp-url", "https://"+f.address, "--ca-cert",
		f.path("keys/fleet-root.cert.pem"), "--client-cert", f.path("keys/operator.pem"), "--client-key",
		f.path("keys/operator.key"))
	staysOut()

	f.switching = 3 * time.Second
	t.Log("this control plane comes, in mid-rollout")
	f.release(2)
	begun()
	f.stopCP()
	plane(binary)
	arrived(2, "early", "late")
	staysOut()

	t.Log("the control plane before comes back, in mid-rollout")
	f.release(3)
	begun()
	f.stopCP()
	plane(before)
	arrived(3, "early", "late")
	staysOut()

	t.Log("and goes for good")
	f.release(4)
	begun()
	f.stopCP()
	plane(binary)
	arrived(4, "early", "late")
	staysOut()
}
