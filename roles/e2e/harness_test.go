package e2e

import (
	"bytes"
	"cmp"
	"context"
	"crypto/ed25519"
	"crypto/sha256"
	"crypto/tls"
	"encoding/pem"
	"fmt"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/nix-community/go-nix/pkg/nixbase32"

	"nixfleet/nixops/fleet"
	"nixfleet/nixops/sim"
	"nixfleet/pki"
	"nixfleet/roles/protocol"
	"nixfleet/roles/protocol/client"
)

// binary is the executable under test, built once.
var binary string

func TestMain(m *testing.M) {
	dir, err := os.MkdirTemp("", "nixfleet-e2e-")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	binary = filepath.Join(dir, "nixfleet")
	out, err := exec.Command("go", "build", "-o", binary, "nixfleet").CombinedOutput()
	code := 1
	if err != nil {
		fmt.Fprintf(os.Stderr, "build nixfleet: %v\n%s", err, out)
	} else {
		code = m.Run()
	}
	os.RemoveAll(dir)
	os.Exit(code)
}

// patience is how long anything is waited for that has to come. Nothing but a failure
// takes as long, on however slow a machine.
const patience = 5 * time.Minute

// confirmWindow is never used up here either.
const confirmWindow = 5 * time.Minute

var addresses = struct {
	sync.Mutex
	given map[int]bool
}{given: map[int]bool{}}

// freeAddress is an address on loopback that nobody else takes before it is listened
// on, or between two that listen there: its port is below those that the kernel gives to
// who asks for any.
func freeAddress(t *testing.T) string {
	t.Helper()
	addresses.Lock()
	defer addresses.Unlock()
	for range 1000 {
		port := 20000 + rand.IntN(12000)
		address := fmt.Sprintf("127.0.0.1:%d", port)
		if probe, err := net.Listen("tcp", address); err == nil && !addresses.given[port] {
			probe.Close()
			addresses.given[port] = true
			return address
		}
	}
	t.Fatal("no port is free")
	return ""
}

// simFleet is a fleet of simulated machines made by the commands a person types.
type simFleet struct {
	t         *testing.T
	dir       string
	address   string
	names     []string          // declared hosts
	channels  map[string]string // of hosts that are not on stable
	pubkeys   map[string]string // of every machine, declared or not
	client    *client.Client
	switching time.Duration // how long switching to what is built from now on takes
	stopCP    func()
	program   string // what the roles that start from now on run
}

func newSimFleet(t *testing.T, names ...string) *simFleet {
	f := &simFleet{t: t, dir: t.TempDir(), names: names, pubkeys: map[string]string{}, program: binary}
	f.address = freeAddress(t)
	for _, dir := range []string{"bin", "cache", "cp", "hosts"} {
		f.must(os.Mkdir(f.path(dir), 0o700))
	}
	f.run(binary, "keygen", "all", "--dir", f.path("keys"), "--suffix", "e2e.test", "--server", "127.0.0.1")
	for _, name := range []string{"fleet", "secrets"} {
		f.run("git", "init", "-q", "--bare", "-b", "main", f.path(name+".git"))
		f.run("git", "clone", "-q", f.path(name+".git"), f.path(name))
		f.write(name+"/flake.lock", "0\n")
		f.run("git", "-C", f.path(name), "add", "-A")
		f.run("git", "-C", f.path(name), "commit", "-qm", "first")
		f.run("git", "-C", f.path(name), "push", "-q", "origin", "HEAD:main")
	}
	f.run("git", "clone", "-q", f.path("fleet.git"), f.path("ci"))
	cert, err := tls.LoadX509KeyPair(f.path("keys/operator.pem"), f.path("keys/operator.key"))
	f.must(err)
	f.client = f.clientOf(&cert)
	return f
}

func (f *simFleet) must(err error) {
	f.t.Helper()
	if err != nil {
		f.t.Fatal(err)
	}
}

func (f *simFleet) path(name string) string { return filepath.Join(f.dir, filepath.FromSlash(name)) }

func (f *simFleet) write(name, text string) {
	f.t.Helper()
	f.must(os.MkdirAll(filepath.Dir(f.path(name)), 0o700))
	f.must(os.WriteFile(f.path(name), []byte(text), 0o600))
}

func (f *simFleet) read(name string) string {
	f.t.Helper()
	data, err := os.ReadFile(f.path(name))
	f.must(err)
	return string(data)
}

func (f *simFleet) try(program string, args ...string) (string, error) {
	ctx, cancel := context.WithTimeout(f.t.Context(), patience)
	defer cancel()
	cmd := exec.CommandContext(ctx, program, args...)
	cmd.Dir, cmd.WaitDelay = f.dir, time.Second
	cmd.Env = append(os.Environ(), "PATH="+f.path("bin")+":"+filepath.Dir(binary)+":"+os.Getenv("PATH"), "HOME="+f.dir,
		"DIR="+f.dir, "EDITOR=edit",
		"XDG_CONFIG_HOME="+f.path("xdg"), "GIT_CONFIG_GLOBAL=/dev/null", "GIT_CONFIG_NOSYSTEM=1", "GIT_AUTHOR_NAME=jo",
		"GIT_AUTHOR_EMAIL=jo@e2e.test",
		"GIT_COMMITTER_NAME=jo", "GIT_COMMITTER_EMAIL=jo@e2e.test")
	var out, said bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &said
	if err := cmd.Run(); err != nil {
		return out.String(), fmt.Errorf("%s %s: %w\n%s%s", filepath.Base(program), strings.Join(args, " "), err, out.String(),
			said.String())
	}
	return out.String(), nil
}

func (f *simFleet) run(program string, args ...string) string {
	f.t.Helper()
	out, err := f.try(program, args...)
	f.must(err)
	return out
}

func simClosureName(host string, n int) string {
	sum := sha256.Sum256(fmt.Appendf(nil, "%s %d", host, n))
	return fmt.Sprintf("%s-nixos-system-%s-%d", nixbase32.EncodeToString(sum[:20]), host, n)
}

func (f *simFleet) build(host string, n int) {
	f.t.Helper()
	f.must(sim.WriteClosure(f.path("cache"), simClosureName(host, n), sim.Closure{
		Agent: "self", TrustJSON: f.read("keys/trust.json"), Cache: sim.Cache{Size: 1 << 20},
		Script: sim.Script{SwitchTime: f.switching},
	}))
}

// machine makes a machine with an ssh key that runs closure 0.
func (f *simFleet) machine(name string) {
	f.t.Helper()
	key, err := pki.GenerateKey(pki.AlgorithmEd25519)
	f.must(err)
	private, err := key.MarshalOpenSSH("root@" + name)
	f.must(err)
	f.write("hosts/"+name+"/key", string(private))
	f.pubkeys[name] = pki.FormatHostKey(key.Crypto().Public().(ed25519.PublicKey), "")
	f.write("hosts/"+name+"/key.pub", f.pubkeys[name]+"\n")
	f.build(name, 0)
	sim, err := sim.New(f.path("hosts/"+name+"/machine"), f.path("cache"))
	f.must(err)
	defer sim.Close()
	f.must(sim.Install(simClosureName(name, 0)))
}

func (f *simFleet) fingerprint(name string) string {
	f.t.Helper()
	key, err := pki.ParseHostKey(f.pubkeys[name])
	f.must(err)
	return pki.Fingerprint(key)
}

// release is what CI does after a push: closure n for every declared host.
func (f *simFleet) release(n int) {
	f.t.Helper()
	f.run("git", "-C", f.path("ci"), "pull", "-q", "--rebase", "origin", "main")
	declared := &fleet.Fleet{
		SchemaVersion: 1, Meta: fleet.Meta{SchemaVersion: 1}, Hosts: map[string]*fleet.Host{},
		Waves: map[string][]fleet.Wave{},
		RolloutPolicies: map[string]fleet.Policy{
			"now": {Strategy: "all-at-once", Waves: []fleet.PolicyWave{}, OnHealthFailure: fleet.OnFailureHalt}},
		Channels: map[string]fleet.Channel{},
	}
	closures := map[string]string{}
	for _, name := range f.names {
		pubkey := f.pubkeys[name]
		channel := cmp.Or(f.channels[name], "stable")
		declared.Hosts[name] = &fleet.Host{System: "x86_64-linux", Tags: []string{}, Channel: channel, Pubkey: &pubkey}
		declared.Waves[channel] = []fleet.Wave{}
		declared.Channels[channel] = fleet.Channel{RolloutPolicy: "now", ReconcileIntervalMinutes: 1, FreshnessWindow: 120,
			SigningIntervalMinutes: 60,
			Compliance:             fleet.Compliance{Frameworks: []string{}, Mode: fleet.ModeDisabled}}
		f.build(name, n)
		closures[name] = "/nix/store/" + simClosureName(name, n)
	}
	for file, value := range map[string]any{"declared.json": declared, "closures.json": closures} {
		doc, err := pki.Marshal(value)
		f.must(err)
		f.write(file, string(doc))
	}
	f.ci("--fleet-file", f.path("declared.json"), "--closures", f.path("closures.json"), "--confirm-window",
		confirmWindow.String())
}

// resign is what CI's timer does: the same release, signed again.
func (f *simFleet) resign() {
	f.t.Helper()
	f.run("git", "-C", f.path("ci"), "pull", "-q", "--rebase", "origin", "main")
	f.ci("--resign")
}

func (f *simFleet) ci(flags ...string) {
	f.t.Helper()
	f.run(binary, append([]string{"release", "--build-flake", f.path("ci"), "--release-dir", f.path("ci/releases"),
		"--sign-key", f.path("keys/release.key"),
		"--trust-file", f.path("keys/trust.json"), "--git-push", "origin:main", "--git-user-name", "ci", "--git-user-email",
		"ci@e2e.test"}, flags...)...)
	f.run("git", "-C", f.path("fleet"), "pull", "-q", "--rebase", "origin", "main")
}

// start runs a role as a process of its own until stop or the end of the test.
func (f *simFleet) start(log string, args ...string) (stop func()) {
	f.t.Helper()
	out, err := os.OpenFile(f.path(log), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	f.must(err)
	cmd := exec.Command(f.program, args...)
	cmd.Stdout, cmd.Stderr, cmd.Env = out, out, append(os.Environ(), "HOME="+f.dir)
	f.must(cmd.Start())
	f.write(log+".pid", strconv.Itoa(cmd.Process.Pid))
	stop = sync.OnceFunc(func() {
		os.Remove(f.path(log + ".pid"))
		cmd.Process.Signal(syscall.SIGTERM)
		timer := time.AfterFunc(time.Minute, func() { cmd.Process.Kill() })
		cmd.Wait()
		timer.Stop()
		out.Close()
		if f.t.Failed() {
			f.t.Logf("the end of %s:\n%s", log, nixTail(f.path(log)))
		}
	})
	f.t.Cleanup(stop)
	return stop
}

func (f *simFleet) startControlPlane() {
	f.t.Helper()
	f.stopCP = f.serve("--poll-interval", "1s", "--checkin-interval", "1s")
	f.until("the control plane answers", func() bool { _, err := f.client.Whoami(f.t.Context()); return err == nil })
}

// serve runs a control plane with more flags.
func (f *simFleet) serve(flags ...string) (stop func()) {
	f.t.Helper()
	return f.start("cp.log", append(
		[]string{"cp", "serve", "--listen", f.address, "--tls-cert", f.path("keys/server.cert.pem"), "--tls-key",
			f.path("keys/server.key.pem"),
			"--client-ca", f.path("keys/client-ca.pem"), "--fleet-ca-cert", f.path("keys/issuing-ca.cert.pem"), "--fleet-ca-key",
			f.path("keys/issuing-ca.key.pem"),
			"--agent-cn-suffix", "e2e.test", "--trust-file", f.path("keys/trust.json"), "--state-dir", f.path("cp"), "--db-path",
			f.path("cp/state.db"),
			"--source", "git+file://" + f.path("fleet.git") + "#main", "--confirm-deadline-secs",
			fmt.Sprint(int(confirmWindow.Seconds()))}, flags...)...)
}

func (f *simFleet) startAgent(name string, more ...string) (stop func()) {
	f.t.Helper()
	dir := f.path("hosts/" + name)
	return f.start("hosts/"+name+"/agent.log", append([]string{
		"agent", "run", "--control-plane-url", "https://" + f.address,
		"--machine-id", name,
		"--trust-file", f.path("keys/trust.json"), "--ca-cert", f.path("keys/fleet-root.cert.pem"),
		"--client-cert", dir + "/cert.pem", "--client-key", dir + "/key", "--ssh-host-key-file", dir + "/key",
		"--bootstrap-token-file", dir + "/token", "--state-dir", dir + "/state",
		"--allow-volatile-state", "--poll-interval", "1", "--settle-time", "300ms",
		"--agent-outside-closure",
		"--simulated-host", dir + "/machine", "--simulated-cache", f.path("cache")}, more...)...)
}

func (f *simFleet) until(what string, holds func() bool) {
	f.t.Helper()
	for deadline := time.Now().Add(patience); !holds(); time.Sleep(50 * time.Millisecond) {
		if time.Now().After(deadline) {
			f.t.Fatalf("waited for this in vain: %s", what)
		}
	}
}

func (f *simFleet) host(name string) protocol.HostEntry {
	all, err := f.client.Hosts(f.t.Context())
	if err == nil {
		for _, h := range all.Hosts {
			if h.Hostname == name {
				return h
			}
		}
	}
	return protocol.HostEntry{}
}

func (f *simFleet) converged(n int, names ...string) {
	f.t.Helper()
	for _, name := range names {
		f.until(fmt.Sprintf("%s runs closure %d", name, n), func() bool {
			h := f.host(name)
			return h.Converged && h.CurrentClosureHash != nil && *h.CurrentClosureHash == simClosureName(name, n)
		})
	}
}

func (f *simFleet) clientOf(cert *tls.Certificate) *client.Client {
	f.t.Helper()
	c, err := client.New(client.Config{BaseURL: "https://" + f.address, CAPEM: []byte(f.read("keys/fleet-root.cert.pem")),
		Timeout: time.Minute, Certificate: func() (*tls.Certificate, error) { return cert, nil }})
	f.must(err)
	f.t.Cleanup(c.CloseIdle)
	return c
}

// asHost speaks with the certificate that a host was given.
func (f *simFleet) asHost(name string) *client.Client {
	f.t.Helper()
	key, err := pki.ReadPrivateKey(f.path("hosts/" + name + "/key"))
	f.must(err)
	block, _ := pem.Decode([]byte(f.read("hosts/" + name + "/cert.pem")))
	if block == nil {
		f.t.Fatalf("no certificate of %s", name)
	}
	return f.clientOf(&tls.Certificate{Certificate: [][]byte{block.Bytes}, PrivateKey: key.Crypto()})
}
