package e2e

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/go-json-experiment/json/jsontext"
	"github.com/rogpeppe/go-internal/testscript"

	"nixfleet/pki"
	"nixfleet/roles/protocol"
)

// TestActors runs scripts in which an operator, hosts and an attacker act upon a
// running control plane. Hosts web-1 and web-2 are declared on channel stable,
// edge-1 on edge, and rogue is a machine that nobody declared. Every refused
// request is checked to have changed nothing; see testdata/actors/README.
func TestActors(t *testing.T) {
	scripts, err := filepath.Glob("testdata/actors/*.txtar")
	if err != nil || len(scripts) == 0 {
		t.Fatalf("no scripts: %v", err)
	}
	for _, script := range scripts {
		t.Run(strings.TrimSuffix(filepath.Base(script), ".txtar"), func(t *testing.T) {
			t.Parallel()
			a := newActors(t)
			testscript.Run(t, testscript.Params{
				Files: []string{script}, RequireExplicitExec: true, RequireUniqueNames: true, Setup: a.setup,
				Cmds: map[string]func(*testscript.TestScript, bool, []string){
					"controlplane": a.controlPlane, "operator": a.operator, "host": a.host, "attacker": a.attacker,
				},
			})
		})
	}
}

// actors is a fleet with what each of its actors holds.
type actors struct {
	*simFleet
	mu    sync.Mutex
	certs map[string]*tls.Certificate // by holder
	keys  map[string]*pki.PrivateKey  // of machines
	older string                      // commit of release 1
}

func newActors(t *testing.T) *actors {
	a := &actors{simFleet: newSimFleet(t, "web-1", "web-2", "edge-1"), certs: map[string]*tls.Certificate{},
		keys: map[string]*pki.PrivateKey{}}
	a.channels = map[string]string{"edge-1": "edge"}
	for _, name := range append(slices.Clone(a.names), "rogue") {
		a.machine(name)
		key, err := pki.ReadPrivateKey(a.path("hosts/" + name + "/key"))
		a.must(err)
		a.keys[name] = key
	}
	a.run("git", "clone", "-q", a.path("fleet.git"), a.path("attacker"))
	operator, err := tls.LoadX509KeyPair(a.path("keys/operator.pem"), a.path("keys/operator.key"))
	a.must(err)
	server, err := tls.LoadX509KeyPair(a.path("keys/server.cert.pem"), a.path("keys/server.key.pem"))
	a.must(err)
	a.certs["operator"], a.certs["server"] = &operator, &server
	a.run(binary, "config", "init", "--path", a.path("config.toml"), "--cp-url", "https://"+a.address, "--ca-cert",
		a.path("keys/fleet-root.cert.pem"),
		"--client-cert", a.path("keys/operator.pem"), "--client-key", a.path("keys/operator.key"))
	a.release(1)
	a.older = strings.TrimSpace(a.run("git", "-C", a.path("ci"), "rev-parse", "HEAD"))
	a.release(2)
	return a
}

func (a *actors) setup(env *testscript.Env) error {
	for _, name := range append(slices.Clone(a.names), "rogue") {
		env.Setenv("PUBKEY_"+strings.ReplaceAll(name, "-", "_"), a.pubkeys[name])
	}
	env.Setenv("KEYS", a.path("keys"))
	env.Setenv("HOME", env.WorkDir)
	return nil
}

// controlPlane [FLAG...]: (re)starts it with more flags.
func (a *actors) controlPlane(ts *testscript.TestScript, neg bool, args []string) {
	if a.stopCP != nil {
		a.stopCP()
	}
	a.stopCP = a.serve(args...)
	a.await(ts, "the control plane answers", func() bool { _, err := a.client.Whoami(a.t.Context()); return err == nil })
}

func (a *actors) await(ts *testscript.TestScript, what string, holds func() bool) {
	for deadline := time.Now().Add(patience); !holds(); time.Sleep(20 * time.Millisecond) {
		if time.Now().After(deadline) {
			ts.Fatalf("waited for this in vain: %s", what)
		}
	}
}

// operator METHOD PATH STATUS [...] is a request; operator WORD... a command line.
func (a *actors) operator(ts *testscript.TestScript, neg bool, args []string) {
	if len(args) > 1 && strings.ToUpper(args[0]) == args[0] {
		a.request(ts, "operator", args)
		return
	}
	ctx, cancel := context.WithTimeout(a.t.Context(), patience)
	defer cancel()
	cmd := exec.CommandContext(ctx, binary, args...)
	cmd.Dir, cmd.WaitDelay = ts.MkAbs("."), time.Second
	cmd.Env = append(os.Environ(), "HOME="+ts.Getenv("HOME"), "NIXFLEET_CONFIG="+a.path("config.toml"))
	cmd.Stdout, cmd.Stderr = ts.Stdout(), ts.Stderr()
	if err := cmd.Run(); (err != nil) != neg {
		ts.Fatalf("operator %s: %v", strings.Join(args, " "), err)
	}
}

// host NAME WHAT...: with the host's own certificate and key.
func (a *actors) host(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) < 2 || a.keys[args[0]] == nil {
		ts.Fatalf("usage: host NAME METHOD PATH STATUS [...] or host NAME enrol|renew|checkin|confirm|report STATUS [...]")
	}
	a.act(ts, args[0], args[0], args[1:])
}

// attacker CERT WHAT...: with a certificate of any making, or nobody's.
func (a *actors) attacker(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) < 2 {
		ts.Fatalf("usage: attacker CERT WHAT..., attacker forge|push|race|slowloris ...")
	}
	switch args[0] {
	case "forge":
		a.forge(ts, args[1], args[2:])
	case "push":
		a.push(ts, args[1], args[2])
	case "race":
		a.race(ts, args[1:])
	case "slowloris":
		a.slowloris(ts, args[1:])
	default:
		a.act(ts, args[0], "rogue", args[1:])
	}
}

// act is one call of the API in someone's name. as= and key= lie about it.
func (a *actors) act(ts *testscript.TestScript, who, key string, args []string) {
	body, path := a.message(ts, who, key, args)
	if path == "" {
		a.request(ts, who, args)
		return
	}
	doc, err := pki.Marshal(body)
	ts.Check(err)
	answer := a.request(ts, who, []string{"POST", path, args[1], "json=" + string(doc)})
	var issued protocol.CertResponse
	if (args[0] == "enrol" || args[0] == "renew") && pki.Decode([]byte(answer), &issued) == nil {
		block, _ := pem.Decode([]byte(issued.CertPEM))
		a.mu.Lock()
		a.certs[who] = &tls.Certificate{Certificate: [][]byte{block.Bytes}, PrivateKey: a.keys[key].Crypto()}
		a.mu.Unlock()
	}
}

// message makes the body of a call by name; no path means that it is none.
func (a *actors) message(ts *testscript.TestScript, who, key string, args []string) (body any, path string) {
	word := map[string]string{"as": who, "key": key, "closure": simClosureName(who, 2), "token": "",
		"rollout": strings.Repeat("0", 64)}
	if !slices.Contains([]string{"enrol", "renew", "checkin", "confirm", "report"}, args[0]) {
		return nil, ""
	}
	for _, arg := range args[2:] {
		name, value, ok := strings.Cut(arg, "=")
		if _, known := word[name]; !ok || !known {
			ts.Fatalf("%s does not take %q", args[0], arg)
		}
		word[name] = value
	}
	csr := func() string {
		text, err := pki.NewCSR(a.keys[word["key"]].Crypto(), word["as"])
		ts.Check(err)
		return string(text)
	}
	generation := protocol.Generation{ClosureHash: word["closure"], BootID: "boot-1"}
	switch args[0] {
	case "enrol":
		token, err := pki.ParseToken([]byte(ts.ReadFile(word["token"])))
		ts.Check(err)
		return protocol.EnrollRequest{Token: *token, CSRPEM: csr()}, "/v1/enroll"
	case "renew":
		return protocol.RenewRequest{CSRPEM: csr()}, "/v1/agent/renew"
	case "checkin":
		return protocol.CheckinRequest{Hostname: word["as"], AgentVersion: "test", CurrentGeneration: generation,
			HealthProbes: []protocol.ProbeResult{}}, "/v1/agent/checkin"
	case "confirm":
		return protocol.ConfirmRequest{Hostname: word["as"], Rollout: word["rollout"], Generation: generation},
			protocol.ConfirmPath
	}
	details, err := pki.Marshal(protocol.Other{Kind: "test", Detail: jsontext.Value(`{}`)})
	ts.Check(err)
	return protocol.ReportRequest{Hostname: word["as"], AgentVersion: "test",
		OccurredAt: pki.At(time.Now().Truncate(time.Second)),
		Rollout:    nil, Event: protocol.EventOther, Details: details}, "/v1/agent/report"
}

// request METHOD PATH STATUS [json=TEXT] [size=N] [Name:value]...: prints the
// answer. One that is refused must have changed nothing. The status tls is a
// handshake that is refused; by TLS 1.3 it can come to light in many words.
func (a *actors) request(ts *testscript.TestScript, who string, args []string) string {
	if len(args) < 3 {
		ts.Fatalf("usage: METHOD PATH STATUS [json=TEXT] [size=N] [Name:value]...")
	}
	want := 0
	if args[2] != "tls" {
		var err error
		want, err = strconv.Atoi(args[2])
		ts.Check(err)
	}
	before := ""
	if want == 0 || want >= 400 {
		before = a.digest(ts)
	}
	got, answer, err := a.send(who, args)
	if (err != nil) != (want == 0) {
		ts.Fatalf("%s %s as %s: %d %v", args[0], args[1], who, got, err)
	}
	fmt.Fprintln(ts.Stdout(), answer)
	if got != want {
		ts.Fatalf("%s %s as %s: %d, want %d\n%s", args[0], args[1], who, got, want, answer)
	}
	if want == 0 || want >= 400 {
		after := a.digest(ts)
		if who == "operator" { // whose acts are recorded before they are tried
			before, after = withoutAudit(before), withoutAudit(after)
		}
		if after != before {
			ts.Fatalf("%s %s as %s was refused with %d and changed the control plane:\n%s", args[0], args[1], who, got,
				changed(before, after))
		}
	}
	return answer
}

func (a *actors) send(who string, args []string) (status int, answer string, err error) {
	var body []byte
	header := http.Header{protocol.HeaderProtocol: {"1"}}
	if args[0] == http.MethodPost {
		header.Set("Content-Type", "application/json")
		body = []byte("{}")
	}
	for _, arg := range args[3:] {
		if text, ok := strings.CutPrefix(arg, "json="); ok {
			body = []byte(text)
		} else if text, ok := strings.CutPrefix(arg, "size="); ok {
			n, err := strconv.Atoi(text)
			if err != nil {
				return 0, "", err
			}
			body = bytes.Repeat([]byte(" "), n)
		} else if name, value, ok := strings.Cut(arg, ":"); ok {
			header.Del(name)
			if value != "" {
				header.Set(name, value)
			}
		} else {
			return 0, "", fmt.Errorf("what is %q", arg)
		}
	}
	ctx, cancel := context.WithTimeout(a.t.Context(), patience)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, args[0], "https://"+a.address, bytes.NewReader(body))
	if err != nil {
		return 0, "", err
	}
	// As it was written: nothing tidies dots or escapes away.
	req.URL.Opaque, req.Header = args[1], header
	transport := &http.Transport{TLSClientConfig: a.tlsOf(who)}
	defer transport.CloseIdleConnections()
	resp, err := transport.RoundTrip(req)
	if err != nil {
		return 0, "", err
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(io.LimitReader(resp.Body, 1<<20))
	return resp.StatusCode, string(text), err
}

// tlsOf is a connection as someone; a holder without a certificate is nobody.
func (a *actors) tlsOf(who string) *tls.Config {
	a.mu.Lock()
	defer a.mu.Unlock()
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM([]byte(a.read("keys/fleet-root.cert.pem")))
	c := &tls.Config{RootCAs: roots, MinVersion: tls.VersionTLS12}
	if cert := a.certs[who]; cert != nil {
		c.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return cert, nil }
	}
	return c
}

// race N NAME token=FILE: N enrolments at once, of which one may succeed.
func (a *actors) race(ts *testscript.TestScript, args []string) {
	n, err := strconv.Atoi(args[0])
	ts.Check(err)
	body, path := a.message(ts, args[1], args[1], append([]string{"enrol", ""}, args[2:]...))
	doc, err := pki.Marshal(body)
	ts.Check(err)
	issued := a.issued(ts)
	statuses, failures := make([]int, n), make([]error, n)
	var running sync.WaitGroup
	start := make(chan struct{})
	for i := range n {
		running.Go(func() {
			<-start
			statuses[i], _, failures[i] = a.send("nobody", []string{"POST", path, "", "json=" + string(doc)})
		})
	}
	close(start)
	running.Wait()
	ts.Check(errors.Join(failures...))
	slices.Sort(statuses)
	if statuses[0] != http.StatusOK ||
		slices.ContainsFunc(statuses[1:], func(s int) bool { return s != http.StatusConflict }) {
		ts.Fatalf("%d enrolments by one token: %v, want one 200 and 409 for the rest", n, statuses)
	}
	if now := a.issued(ts); now != issued+1 {
		ts.Fatalf("%d certificates were issued", now-issued)
	}
}

// issued counts the certificates that the control plane has issued.
func (a *actors) issued(ts *testscript.TestScript) int {
	log, err := os.ReadFile(a.path("cp/issuance.log"))
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		ts.Fatalf("%v", err)
	}
	return bytes.Count(log, []byte("\n"))
}

// slowloris N: clients that send a request one byte after another disturb nobody,
// and are shut out in the end.
func (a *actors) slowloris(ts *testscript.TestScript, args []string) {
	n, err := strconv.Atoi(args[0])
	ts.Check(err)
	before := a.digest(ts)
	closed := make(chan error, n)
	for i := range n {
		who := "nobody"
		if i%2 == 0 {
			who = "web-1"
		}
		conn, err := tls.Dial("tcp", a.address, a.tlsOf(who))
		ts.Check(err)
		defer conn.Close()
		go func() {
			// Slower than any header may be, never silent for long.
			for _, b := range []byte("POST /v1/agent/checkin HTTP/1.1\r\nHost: cp\r\nX: " + strings.Repeat("x", 1000)) {
				if _, err := conn.Write([]byte{b}); err != nil {
					closed <- nil
					return
				}
				conn.SetReadDeadline(time.Now().Add(200 * time.Millisecond))
				var timeout interface{ Timeout() bool }
				if _, err := conn.Read(make([]byte, 1)); err != nil && !(errors.As(err, &timeout) && timeout.Timeout()) {
					closed <- nil
					return
				}
			}
			closed <- errors.New("a client was let go on sending its header")
		}()
	}
	a.request(ts, "operator", []string{"GET", "/v1/hosts", "200"})
	for range n {
		select {
		case err := <-closed:
			ts.Check(err)
		case <-time.After(patience):
			ts.Fatalf("a client that never ends its header is still connected")
		}
	}
	a.request(ts, "operator", []string{"GET", "/v1/hosts", "200"})
	if after := a.digest(ts); after != before {
		ts.Fatalf("slow clients changed the control plane:\n%s", changed(before, after))
	}
}
