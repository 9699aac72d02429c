package e2e

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"net/http"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/go-json-experiment/json"

	"nixfleet/nixops/fleet"
	"nixfleet/pki"
	"nixfleet/roles/protocol"
	"nixfleet/roles/protocol/client"
)

// v1Plane is a small model of a v1 control plane. It models, from contracts/wire.md of protocol v1: check-ins with a
// target and without a head (section 5; a target once per dispatch), a check-in that names the declared closure as a
// confirm that uses up the pending dispatch (section 5, seen running), confirms with 204, or 410 where nothing is
// pending and the rollout is not the present one (section 6), manifests (section 8), reports and whoami. It has no
// gates, waves, budgets or enrolment, and loses what it knew when it stops.
type v1Plane struct {
	f      *simFleet
	server *http.Server

	mu       sync.Mutex
	release  *fleet.Release
	files    string            // directory of the release
	pending  map[string]string // host -> rollout that it was dispatched in
	asked    map[string]int    // check-ins by host
	runs     map[string]string // closure that a host named last
	settled  map[string]bool   // hosts that sent a confirm which was answered 204
	early    []string          // hosts that named a dispatched closure before they confirmed it
	reported []string          // events
}

// startV1 serves the release in the checkout at the fleet's address.
func (f *simFleet) startV1() *v1Plane {
	f.t.Helper()
	p := &v1Plane{f: f, files: f.path("ci/releases"), pending: map[string]string{}, asked: map[string]int{},
		runs: map[string]string{}, settled: map[string]bool{}}
	trust, _, err := pki.LoadTrust(f.path("keys/trust.json"))
	f.must(err)
	p.release, err = fleet.LoadRelease(os.DirFS(p.files), fleet.LoadOptions{Trust: trust, Now: time.Now(),
		Window: fleet.DefaultWindow})
	f.must(err)
	cert, err := tls.LoadX509KeyPair(f.path("keys/server.cert.pem"), f.path("keys/server.key.pem"))
	f.must(err)
	agents := x509.NewCertPool()
	agents.AppendCertsFromPEM([]byte(f.read("keys/client-ca.pem")))
	listener, err := tls.Listen("tcp", f.address, &tls.Config{Certificates: []tls.Certificate{cert}, ClientCAs: agents,
		ClientAuth: tls.RequireAndVerifyClientCert})
	f.must(err)
	p.server = &http.Server{Handler: p, ReadHeaderTimeout: time.Minute}
	go p.server.Serve(listener)
	f.t.Cleanup(p.stop)
	return p
}

func (p *v1Plane) stop() { p.server.Close() }

func (p *v1Plane) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	p.mu.Lock()
	defer p.mu.Unlock()
	id, isRollout := strings.CutPrefix(r.URL.Path, "/v1/rollouts/")
	switch {
	case r.URL.Path == "/v1/agent/checkin":
		p.checkin(w, r)
	case r.URL.Path == protocol.ConfirmPath:
		p.confirm(w, r)
	case r.URL.Path == "/v1/agent/report":
		var report protocol.ReportRequest
		if !p.read(w, r, &report) {
			return
		}
		p.reported = append(p.reported, report.Hostname+" "+report.Event)
		p.answer(w, map[string]string{"eventId": "evt-1"})
	case r.URL.Path == "/v1/whoami":
		p.answer(w, protocol.Whoami{CN: r.TLS.PeerCertificates[0].Subject.CommonName, IssuedAt: protocol.Offset(time.Now())})
	case isRollout && strings.HasSuffix(id, "/sig"):
		http.ServeFile(w, r, p.files+"/"+fleet.ManifestName(strings.TrimSuffix(id, "/sig"))+fleet.SignatureSuffix)
	case isRollout:
		http.ServeFile(w, r, p.files+"/"+fleet.ManifestName(id))
	default:
		w.WriteHeader(http.StatusNotFound)
	}
}

func (p *v1Plane) read(w http.ResponseWriter, r *http.Request, v any) bool {
	if err := json.UnmarshalRead(r.Body, v); err != nil {
		w.WriteHeader(http.StatusUnprocessableEntity)
		return false
	}
	return true
}

func (p *v1Plane) answer(w http.ResponseWriter, v any) {
	doc, err := pki.Marshal(v)
	if err != nil {
		w.WriteHeader(http.StatusInternalServerError)
		return
	}
	w.Header().Set("Content-Type", "application/json")
	w.Write(doc)
}

// wanted is what the release declares for a host.
func (p *v1Plane) wanted(host string) (*fleet.ChannelRelease, string) {
	declared := p.release.Fleet.Hosts[host]
	return p.release.Channels[declared.Channel], *declared.ClosureHash
}

func (p *v1Plane) checkin(w http.ResponseWriter, r *http.Request) {
	var q protocol.CheckinRequest
	if !p.read(w, r, &q) {
		return
	}
	p.asked[q.Hostname]++
	p.runs[q.Hostname] = q.CurrentGeneration.ClosureHash
	channel, closure := p.wanted(q.Hostname)
	out := protocol.CheckinResponse{NextCheckinSecs: 60}
	switch {
	case q.CurrentGeneration.ClosureHash == closure:
		if p.pending[q.Hostname] != "" {
			p.early = append(p.early, q.Hostname)
			delete(p.pending, q.Hostname)
		}
	case p.pending[q.Hostname] == "":
		p.pending[q.Hostname] = channel.RolloutID
		out.Target = &protocol.Target{
			ClosureHash: closure, ChannelRef: channel.RolloutID, RolloutID: channel.RolloutID,
			EvaluatedAt: pki.At(time.Now().Truncate(time.Second)), SignedAt: pki.At(p.release.SignedAt),
			Activate:            &protocol.Activate{ConfirmWindowSecs: 360, ConfirmEndpoint: protocol.ConfirmPath},
			FreshnessWindowSecs: 7200,
		}
	}
	p.answer(w, out)
}

func (p *v1Plane) confirm(w http.ResponseWriter, r *http.Request) {
	var q protocol.ConfirmRequest
	if !p.read(w, r, &q) {
		return
	}
	channel, closure := p.wanted(q.Hostname)
	pending := p.pending[q.Hostname] == q.Rollout
	if !pending && (q.Rollout != channel.RolloutID || q.Generation.ClosureHash != closure) {
		w.WriteHeader(http.StatusGone)
		return
	}
	delete(p.pending, q.Hostname)
	p.settled[q.Hostname] = true
	p.runs[q.Hostname] = q.Generation.ClosureHash
	w.WriteHeader(http.StatusNoContent)
}

// converged waits until hosts have confirmed closure n.
func (p *v1Plane) converged(n int, names ...string) {
	p.f.t.Helper()
	for _, name := range names {
		p.f.until(fmt.Sprintf("%s has confirmed closure %d to the v1 control plane", name, n), func() bool {
			p.mu.Lock()
			defer p.mu.Unlock()
			return p.settled[name] && p.runs[name] == simClosureName(name, n)
		})
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if len(p.early) > 0 {
		p.f.t.Errorf("named what was not proven: %q", p.early)
	}
}

// v1Agent is a small model of a v1 agent. It models: check-ins every interval with the members of section 5 and none of
// ours, a manifest that is fetched and verified before a target is taken, a switch that always works, a confirm
// (section 6) before the next check-in, and the return on 410 with rollback-triggered. It does not defer, fail, renew
// or read heads.
type v1Agent struct {
	f       *simFleet
	name    string
	running string
	trust   *pki.Trust
}

func (f *simFleet) startV1Agent(name string) {
	f.t.Helper()
	trust, _, err := pki.LoadTrust(f.path("keys/trust.json"))
	f.must(err)
	a := &v1Agent{f: f, name: name, running: simClosureName(name, 0), trust: trust}
	plane := f.asHost(name)
	ctx, cancel := context.WithCancel(context.Background())
	var done sync.WaitGroup
	done.Go(func() {
		for ctx.Err() == nil {
			// What goes wrong is asked again at the next interval: control planes come and go.
			_ = a.poll(ctx, plane)
			select {
			case <-ctx.Done():
			case <-time.After(300 * time.Millisecond):
			}
		}
	})
	f.t.Cleanup(func() {
		cancel()
		done.Wait()
	})
}

func (a *v1Agent) generation() protocol.Generation {
	return protocol.Generation{ClosureHash: a.running, BootID: "8d0c5f3e-5c1d-4f0e-9a39-0f6f1c2b7a10"}
}

func (a *v1Agent) poll(ctx context.Context, plane *client.Client) error {
	up := uint64(1)
	out, err := plane.Checkin(ctx, &protocol.CheckinRequest{Hostname: a.name, AgentVersion: "0.2.0",
		CurrentGeneration: a.generation(), UptimeSecs: &up, HealthProbes: []protocol.ProbeResult{}}, 0)
	if err != nil || out.Target == nil {
		return err
	}
	t := out.Target
	body, sig, err := plane.Manifest(ctx, t.RolloutID)
	if err != nil {
		return err
	}
	if _, _, err := fleet.Verify(&a.trust.CIReleaseKey, body, sig, time.Now(),
		time.Duration(t.FreshnessWindowSecs)*time.Second, fleet.ParseManifest); err != nil {
		return err
	}
	before := a.running
	a.running = t.ClosureHash
	wave := uint32(0)
	if t.WaveIndex != nil {
		wave = *t.WaveIndex
	}
	_, err = plane.Confirm(ctx, &protocol.ConfirmRequest{Hostname: a.name, Rollout: t.ChannelRef, Wave: wave,
		Generation: a.generation()})
	if refused := (*client.Error)(nil); errors.As(err, &refused) && refused.Status == http.StatusGone {
		a.running = before
	}
	return err
}

// certify gives a machine the certificate that it got when it enrolled with the control plane of then.
func (f *simFleet) certify(name string) {
	f.t.Helper()
	ca, err := pki.LoadCA([]byte(f.read("keys/issuing-ca.cert.pem")), []byte(f.read("keys/issuing-ca.key.pem")))
	f.must(err)
	key, err := pki.ReadPrivateKey(f.path("hosts/" + name + "/key"))
	f.must(err)
	text, err := pki.NewCSR(key.Crypto(), name)
	f.must(err)
	csr, err := pki.ParseCSR(text)
	f.must(err)
	cert, _, err := ca.IssueAgent(csr, name, "e2e.test", time.Now(), 24*time.Hour)
	f.must(err)
	if block, _ := pem.Decode(cert); block == nil {
		f.t.Fatal("the certificate is not PEM")
	}
	f.write("hosts/"+name+"/cert.pem", string(cert))
}

// settled waits until hosts run closure n and have confirmed it. A host that only runs it has a confirm under way, and
// a v1 control plane that comes in between answers that 410.
func (f *simFleet) settled(n int, names ...string) {
	f.t.Helper()
	f.converged(n, names...)
	for _, name := range names {
		f.until(name+" has confirmed", func() bool {
			state := f.host(name).RolloutState
			return state != nil && *state == string(protocol.HostConverged)
		})
	}
}

// TestAV1FleetMovesAndComesBack has a v1 agent and one of ours go from a v1 control plane to ours, back, and forth
// again, with a release at each place. Nobody enrols anew. An agent of ours that has seen a head goes back only with
// allowV1ControlPlane.
func TestAV1FleetMovesAndComesBack(t *testing.T) {
	t.Parallel()
	f := newSimFleet(t, "ours", "theirs")
	for _, name := range f.names {
		f.machine(name)
		f.certify(name)
	}
	f.release(1)
	v1 := f.startV1()
	f.startV1Agent("theirs")
	stopAgent := f.startAgent("ours")
	v1.converged(1, "ours", "theirs")
	v1.stop()

	f.startControlPlane()
	f.settled(1, "ours", "theirs")
	f.release(2)
	f.settled(2, "ours", "theirs")
	f.stopCP()

	f.release(3)
	v1 = f.startV1()
	v1.converged(3, "theirs")
	f.until("the agent that has seen a head asks the v1 control plane", func() bool {
		v1.mu.Lock()
		defer v1.mu.Unlock()
		return v1.asked["ours"] > 3
	})
	v1.mu.Lock()
	if runs := v1.runs["ours"]; runs != simClosureName("ours", 2) {
		t.Errorf("without a head it went to %s", runs)
	}
	delete(v1.pending, "ours") // its deadline is over, and the target is offered again
	v1.mu.Unlock()
	stopAgent()
	f.startAgent("ours", "--allow-v1-control-plane")
	v1.converged(3, "ours")
	v1.stop()

	f.startControlPlane()
	f.settled(3, "ours", "theirs")
	f.release(4)
	f.settled(4, "ours", "theirs")
}
