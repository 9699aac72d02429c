package demo

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"nixfleet/nixops/git"
	"nixfleet/pki"
	"nixfleet/roles/command"
	"nixfleet/roles/protocol"
	"nixfleet/roles/protocol/client"
)

const suffix = "demo.nixfleet"

// story is the fleet of a demonstration. Everything is done the way a person
// would: by the commands of this program.
type story struct {
	roles    Roles
	dir      string
	view     *view
	hosts    int
	address  string
	machines machines
	names    []string
	last     published
	pubkeys  map[string]string

	running sync.WaitGroup
	giveUp  time.Time // when the story, or a release that was pushed after it, got stuck
	stopCP  func()    // stops the control plane and waits for it
	client  *client.Client

	mu   sync.Mutex
	seen []protocol.HostEntry
}

// published are the newest release, and the one that channel edge has.
type published struct{ newest, edge int }

func (s *story) path(parts ...string) string {
	return filepath.Join(append([]string{s.dir}, parts...)...)
}
func (s *story) key(name string) string { return s.path("keys", name) }
func (s *story) config() string         { return s.path("config.toml") }
func (s *story) wait()                  { s.running.Wait() }

// limited ends what got stuck. Control plane and agents live longer, and are not started with it.
func (s *story) limited(ctx context.Context) (context.Context, context.CancelFunc) {
	return context.WithDeadline(ctx, s.giveUp)
}

// command runs a verb of this program, of one word or two, and returns what it printed. The verb reads the
// demonstration's own configuration file.
func (s *story) command(ctx context.Context, verb string, args ...string) (string, error) {
	ctx, cancel := s.limited(ctx)
	defer cancel()
	var out, said bytes.Buffer
	line := slices.Concat(strings.Fields(verb), []string{"--config", s.config()}, args)
	if err := s.roles.Operator(ctx, line, &out, &said); err != nil {
		return "", fmt.Errorf("nixfleet %s: %w", verb, err)
	}
	return out.String(), nil
}

func (s *story) git(ctx context.Context, dir string, args ...string) error {
	ctx, cancel := s.limited(ctx)
	defer cancel()
	runner := git.Runner{Environ: append(git.Environ(os.Environ()), "GIT_CONFIG_GLOBAL="+os.DevNull,
		"GIT_CONFIG_NOSYSTEM=1",
		"GIT_AUTHOR_NAME=demo", "GIT_AUTHOR_EMAIL=demo@localhost", "GIT_COMMITTER_NAME=demo",
		"GIT_COMMITTER_EMAIL=demo@localhost")}
	_, err := runner.Run(ctx, git.Call{Dir: dir, Args: args})
	if errors.Is(err, exec.ErrNotFound) {
		err = command.Hinted(err, "the demo needs git on PATH")
	}
	return err
}

// prepare makes keys, forge and machines.
func (s *story) prepare(ctx context.Context) error {
	if err := os.MkdirAll(s.path("keys"), 0o700); err != nil {
		return err
	}
	// Empty, so that the operator's own configuration, which is that of another fleet, is not read.
	if err := os.WriteFile(s.config(), nil, 0o600); err != nil {
		return err
	}
	// Any free port; the control plane must keep it over its restart.
	probe, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return fmt.Errorf("find a free port: %w", err)
	}
	s.address = probe.Addr().String()
	if err := probe.Close(); err != nil {
		return err
	}
	if _, err := s.command(ctx, "keygen all", "--dir", s.path("keys"), "--suffix", suffix, "--server",
		"127.0.0.1"); err != nil {
		return err
	}
	if _, err := s.command(ctx, "config init", "--force", "--path", s.config(), "--cp-url", "https://"+s.address,
		"--ca-cert", s.key("fleet-root.cert.pem"),
		"--client-cert", s.key("operator.pem"), "--client-key", s.key("operator.key")); err != nil {
		return err
	}
	if err := s.git(ctx, s.dir, "init", "--quiet", "--bare", "--initial-branch=main", "forge.git"); err != nil {
		return err
	}
	if err := s.git(ctx, s.dir, "init", "--quiet", "--initial-branch=main", "fleet"); err != nil {
		return err
	}
	if err := s.git(ctx, s.path("fleet"), "remote", "add", "origin", s.path("forge.git")); err != nil {
		return err
	}
	s.pubkeys = map[string]string{}
	for i := range s.hosts {
		name := fmt.Sprintf("web-%02d", i+1)
		if i >= s.stable() {
			name = fmt.Sprintf("edge-%02d", i+1-s.stable())
		}
		s.names = append(s.names, name)
		if err := s.machine(name); err != nil {
			return err
		}
	}
	if err := s.machines.install(ctx); err != nil {
		return err
	}
	cert, err := tls.LoadX509KeyPair(s.key("operator.pem"), s.key("operator.key"))
	if err != nil {
		return err
	}
	s.client, err = s.clientOf(&cert)
	return err
}

func (s *story) clientOf(cert *tls.Certificate) (*client.Client, error) {
	ca, err := os.ReadFile(s.key("fleet-root.cert.pem"))
	if err != nil {
		return nil, err
	}
	return client.New(client.Config{
		BaseURL: "https://" + s.address, CAPEM: ca, Timeout: 5 * time.Second,
		Certificate: func() (*tls.Certificate, error) { return cert, nil },
	})
}

// machine makes a machine's ssh key.
func (s *story) machine(name string) error {
	dir := s.path("hosts", name)
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	key, err := pki.GenerateKey(pki.AlgorithmEd25519)
	if err != nil {
		return err
	}
	private, err := key.MarshalOpenSSH("root@" + name)
	if err != nil {
		return err
	}
	if err := os.WriteFile(filepath.Join(dir, "ssh_host_ed25519_key"), private, 0o600); err != nil {
		return err
	}
	public, ok := key.Crypto().Public().(ed25519.PublicKey)
	if !ok {
		return errors.New("host key is not ed25519")
	}
	s.pubkeys[name] = pki.FormatHostKey(public, "")
	return nil
}

// publish makes release n of the fleet: want says which release's closure each
// host gets, bad whether those of this release are broken.
func (s *story) publish(ctx context.Context, want func(host string) int, n int, bad bool) error {
	if err := s.writeJSON("fleet/fleet.json", s.declaration()); err != nil {
		return err
	}
	flags, err := s.machines.release(ctx, want, n, bad)
	if err != nil {
		return err
	}
	if err := s.write("fleet/VERSION", []byte(strconv.Itoa(n)+"\n")); err != nil {
		return err
	}
	for _, args := range [][]string{
		{"add", "--all"},
		{"commit", "--quiet", "-m", fmt.Sprintf("feat: release %d", n)},
		{"push", "--quiet", "origin", "HEAD:main"},
	} {
		if err := s.git(ctx, s.path("fleet"), args...); err != nil {
			return err
		}
	}
	if _, err := s.command(ctx, "release", append([]string{"--build-flake", s.path("fleet"), "--release-dir",
		s.path("fleet", "releases"),
		"--sign-key", s.key("release.key"), "--trust-file", s.key("trust.json"),
		"--git-push", "origin:main", "--git-user-name", "ci", "--git-user-email", "ci@localhost", "--confirm-window", "60s"},
		flags...)...); err != nil {
		return err
	}
	s.last = published{n, want(s.names[len(s.names)-1])}
	if s.stopCP == nil {
		return nil
	}
	return s.client.Poke(ctx)
}

func (s *story) writeJSON(name string, v any) error {
	doc, err := pki.Marshal(v)
	if err != nil {
		return err
	}
	return s.write(name, doc)
}

// write makes a file below the demonstration's directory.
func (s *story) write(name string, data []byte) error {
	file := s.path(filepath.FromSlash(name))
	if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
		return err
	}
	return os.WriteFile(file, data, 0o644)
}

// startControlPlane runs the control plane until stopCP or ctx ends it.
func (s *story) startControlPlane(ctx context.Context) error {
	log, err := os.OpenFile(s.path("cp.log"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	ctx, stop := context.WithCancel(ctx)
	done := make(chan error, 1)
	s.running.Go(func() {
		defer log.Close()
		done <- s.roles.ControlPlane(ctx, []string{
			"serve", "--listen", s.address, "--tls-cert", s.key("server.cert.pem"), "--tls-key", s.key("server.key.pem"),
			"--client-ca", s.key("client-ca.pem"), "--fleet-ca-cert", s.key("issuing-ca.cert.pem"), "--fleet-ca-key",
			s.key("issuing-ca.key.pem"),
			"--agent-cn-suffix", suffix, "--trust-file", s.key("trust.json"), "--state-dir", s.path("cp"), "--db-path",
			s.path("cp", "state.db"),
			"--source", "git+file://" + s.path("forge.git") +
				"#main", "--checkin-interval", "1s", "--confirm-deadline-secs", "60",
		}, log, log)
	})
	s.stopCP = func() {
		stop()
		<-done
	}
	return s.until(ctx, "the control plane answers", func() (bool, error) {
		select {
		case err := <-done:
			done <- err
			return false, errors.Join(errors.New("the control plane stopped"), err)
		default:
		}
		_, err := s.client.Whoami(ctx)
		return err == nil, nil
	})
}

// startAgent runs one host's agent.
func (s *story) startAgent(ctx context.Context, name string) error {
	dir := s.path("hosts", name)
	log, err := os.OpenFile(filepath.Join(dir, "agent.log"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	key := filepath.Join(dir, "ssh_host_ed25519_key")
	s.running.Go(func() {
		defer log.Close()
		if err := s.roles.Agent(ctx, append([]string{
			"run", "--control-plane-url", "https://" + s.address, "--machine-id", name, "--trust-file", s.key("trust.json"),
			"--ca-cert", s.key("fleet-root.cert.pem"), "--client-cert", filepath.Join(dir,
				"agent-cert.pem"), "--client-key", key, "--ssh-host-key-file", key,
			"--bootstrap-token-file", filepath.Join(dir, "token.json"), "--state-dir", filepath.Join(dir,
				"state"), "--allow-volatile-state",
			"--poll-interval", "1", "--settle-time", "500ms",
		}, s.machines.agentFlags(name)...), log, log); err != nil {
			fmt.Fprintf(log, "agent ended: %v\n", err)
		}
	})
	return nil
}

// mint writes a bootstrap token for a host.
func (s *story) mint(ctx context.Context, name string) error {
	token, err := s.command(ctx, "mint-token", "--hostname", name, "--host-pubkey", s.pubkeys[name], "--org-root-key",
		s.key("org-root.key"))
	if err != nil {
		return err
	}
	return os.WriteFile(s.path("hosts", name, "token.json"), []byte(token), 0o600)
}

// until looks at the fleet, shows it, and waits for the condition.
func (s *story) until(ctx context.Context, what string, reached func() (bool, error)) error {
	ctx, cancel := s.limited(ctx)
	defer cancel()
	for {
		if answer, err := s.client.Hosts(ctx); err == nil {
			s.mu.Lock()
			s.seen = answer.Hosts
			s.mu.Unlock()
			s.view.show(answer.Hosts)
		}
		ok, err := reached()
		if err != nil || ok {
			return err
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("gave up waiting: %s: %w", what, ctx.Err())
		case <-time.After(150 * time.Millisecond):
		}
	}
}

// all waits until a condition holds for every host of the last view.
func (s *story) all(ctx context.Context, what string, holds func(protocol.HostEntry) bool) error {
	return s.until(ctx, what, func() (bool, error) {
		s.mu.Lock()
		defer s.mu.Unlock()
		if len(s.seen) != len(s.names) {
			return false, nil
		}
		for _, h := range s.seen {
			if !holds(h) {
				return false, nil
			}
		}
		return true, nil
	})
}

func (s *story) host(name string) protocol.HostEntry {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, h := range s.seen {
		if h.Hostname == name {
			return h
		}
	}
	return protocol.HostEntry{}
}

func runs(h protocol.HostEntry, n int) bool {
	return h.CurrentClosureHash != nil && strings.HasSuffix(*h.CurrentClosureHash, "-"+systemName(h.Hostname, n))
}
