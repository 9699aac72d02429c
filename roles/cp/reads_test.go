package cp

import (
	"context"
	"math/rand/v2"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/go-json-experiment/json"

	"nixfleet/nixops/fleet"
	"nixfleet/pki"
	"nixfleet/roles/protocol"
	"nixfleet/roles/protocol/client"
)

func TestManifestsAreAnsweredInTheOrderOfTheContract(t *testing.T) {
	e := newEstate(t, "a", "b")
	dir := e.path("manifests")
	p := e.serve(func(c *Config) { c.RolloutsDir = dir })
	get := func(path string) answer {
		return p.send(p.web(e.agentCert("a", time.Now().Add(-time.Hour))),
			sent{method: "GET", path: path, header: map[string]string{protocol.HeaderProtocol: ""}})
	}
	id := e.rolloutID()
	for _, bad := range []string{"x", strings.ToUpper(id), id + "0", "..%2f..%2ftrust.json"} {
		if got := get("/v1/rollouts/" + bad); got.status != 404 {
			t.Errorf("%s: %d, want 404", bad, got.status)
		}
	}
	if got := get("/v1/rollouts/" + strings.Repeat("0", 64)); got.status != 404 {
		t.Errorf("unknown id: %d, want 404", got.status)
	}
	got := get("/v1/rollouts/" + id)
	if got.status != 200 || got.header.Get("Content-Type") != "application/json" || pki.HashHex([]byte(got.body)) != id {
		t.Errorf("manifest: %d %v", got.status, got.header)
	}
	sig := get("/v1/rollouts/" + id + "/sig")
	if sig.status != 200 || sig.header.Get("Content-Type") != "application/octet-stream" || len(sig.body) != 64 {
		t.Errorf("signature: %d %v", sig.status, sig.header)
	}
	// One that only the local directory has, without signature and with other bytes.
	other := `{"channel":"x"}`
	hash, err := pki.CanonicalHash([]byte(other))
	if err != nil {
		t.Fatal(err)
	}
	e.write("manifests/"+hash+".json", []byte(other))
	if got := get("/v1/rollouts/" + hash); got.status != 500 {
		t.Errorf("without signature: %d, want 500", got.status)
	}
	e.write("manifests/"+hash+".json.sig", make([]byte, 64))
	e.write("manifests/"+hash+".json", []byte(`{"channel":"y"}`))
	if got := get("/v1/rollouts/" + hash); got.status != 500 {
		t.Errorf("with other bytes: %d, want 500", got.status)
	}
	e.write("manifests/"+hash+".json", []byte(other))
	if got := get("/v1/rollouts/" + hash); got.status != 403 {
		t.Errorf("of another channel: %d, want 403", got.status)
	}
	if got := p.send(p.web(e.operatorCert("jo")), sent{method: "GET", path: "/v1/rollouts/" + hash}); got.status != 200 ||
		got.body != other {
		t.Errorf("for an operator: %d %s", got.status, got.body)
	}
}

func TestWithoutAPlaceForManifestsTheAnswerIs503(t *testing.T) {
	e := newEstate(t, "a")
	for _, name := range []string{fleet.ManifestsDir, fleet.HeadsDir} {
		if err := os.RemoveAll(filepath.Join(e.release, name)); err != nil {
			t.Fatal(err)
		}
	}
	p := e.serve(func(c *Config) {
		c.Source = ""
		c.Artifact, c.Signature = filepath.Join(e.release, fleet.FleetName), filepath.Join(e.release, fleet.FleetName+".sig")
	})
	if _, _, err := p.agent("a").Manifest(context.Background(), e.rolloutID()); status(t, err) != 503 {
		t.Errorf("%v, want 503", err)
	}
}

func TestHeadsAndProofs(t *testing.T) {
	e := newEstate(t, "a", "b", "c")
	edge := e.fleet.Channels["stable"]
	e.fleet.Channels["edge"] = edge
	e.fleet.Hosts["c"].Channel = "edge"
	e.fleet.Waves = map[string][]fleet.Wave{"stable": {{Hosts: []string{"a"}}, {Hosts: []string{"b"}}},
		"edge": {{Hosts: []string{"c"}}}}
	e.publish()
	p := e.serve()
	a := p.agent("a")
	body, sig, err := a.Head(context.Background(), "stable")
	if err != nil {
		t.Fatal(err)
	}
	ci := e.ci.Public()
	head, file, err := fleet.VerifyHead(&pki.KeySlot{Current: &ci}, body, sig, time.Now(), 24*time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	if got := p.checkin(a, e.state("a", closureOf("a", 1)), 0); got.Target != nil || got.Head == nil ||
		got.Head.Hash != file.Hash {
		t.Errorf("a converged host is told target %+v and head %+v, want head %s", got.Target, got.Head, file.Hash)
	}
	proof, err := a.HeadProof(context.Background(), "stable", "a")
	if err != nil {
		t.Fatal(err)
	}
	if entry, err := proof.Entry(head, "a"); err != nil || entry.TargetClosure != closureOf("a", 1) {
		t.Errorf("proven entry %+v: %v", entry, err)
	}
	for name, want := range map[string]struct {
		err  error
		want int
	}{
		"the head of another channel": {func() error { _, _, err := a.Head(context.Background(), "edge"); return err }(),
			404},
		"no such channel": {func() error { _, _, err := a.Head(context.Background(), "none"); return err }(),
			404},
		"the proof of another host": {
			func() error { _, err := a.HeadProof(context.Background(), "stable", "b"); return err }(), 403},
		"a proof on another channel": {
			func() error { _, err := a.HeadProof(context.Background(), "edge", "a"); return err }(), 404},
	} {
		if got := status(t, want.err); got != want.want {
			t.Errorf("%s: %d, want %d", name, got, want.want)
		}
	}
	operator := p.operator()
	if _, err := operator.HeadProof(context.Background(), "edge", "c"); err != nil {
		t.Error(err)
	}
	web := p.web(e.agentCert("a", time.Now().Add(-time.Hour)))
	first := p.send(web, sent{method: "GET", path: "/v1/heads/stable"})
	tag := first.header.Get("ETag")
	for given, want := range map[string]int{tag: 304, `"x", W/` + tag: 304, "*": 304, `"x"`: 200,
		strings.Trim(tag, `"`): 200} {
		again := p.send(web, sent{method: "GET", path: "/v1/heads/stable", header: map[string]string{"If-None-Match": given}})
		if again.status != want || (again.body == "") != (want == 304) {
			t.Errorf("the same head again, having %s: %d %q", given, again.status, again.body)
		}
	}
}

func TestReadsOfAFleet(t *testing.T) {
	e := newEstate(t, "a", "b")
	p := e.serve()
	a := p.agent("a")
	target := p.checkin(a, e.state("a", closureOf("a", 0)), 0).Target
	if err := p.confirm(a, "a", target); err != nil {
		t.Fatal(err)
	}
	web := p.web(e.operatorCert("operator-jo"))
	read := func(path string) map[string]any {
		t.Helper()
		got := p.send(web, sent{method: "GET", path: path})
		if got.status != 200 {
			t.Fatalf("%s: %d %s", path, got.status, got.body)
		}
		var doc map[string]any
		if err := json.Unmarshal([]byte(got.body), &doc); err != nil {
			t.Fatal(err)
		}
		return doc
	}
	if got := read("/v1/channels/stable"); got["signed_at"] != pki.At(e.signed).String()[:19]+"+00:00" ||
		got["declared_ci_commit"] != strings.Repeat("ab", 20) || got["freshness_window_minutes"] != 1440. {
		t.Errorf("channel: %v", got)
	}
	if got := p.send(web, sent{method: "GET", path: "/v1/channels/none"}); got.status != 404 {
		t.Errorf("unknown channel: %d", got.status)
	}
	if got := read("/v1/whoami"); got["cn"] != "operator-jo" || !strings.HasSuffix(got["issuedAt"].(string), "+00:00") {
		t.Errorf("whoami: %v", got)
	}
	hosts := read("/v1/hosts")["hosts"].([]any)
	first := hosts[0].(map[string]any)
	for _, key := range []string{"hostname", "channel", "declaredClosureHash", "currentClosureHash", "pendingClosureHash",
		"lastCheckinAt", "lastRolloutId", "converged",
		"outstandingComplianceFailures", "outstandingRuntimeGateErrors", "verifiedEventCount", "lastUptimeSecs",
		"rolloutState", "pendingReboot", "quarantinedClosure", "pin", "outstandingHealthFailures"} {
		if _, ok := first[key]; !ok {
			t.Errorf("a host has no %s: %v", key, first)
		}
	}
	if len(hosts) != 2 || first["hostname"] != "a" || first["lastUptimeSecs"] != 60. ||
		!strings.HasSuffix(first["lastCheckinAt"].(string), "Z") {
		t.Errorf("hosts: %v", hosts)
	}
	rollouts := read("/v1/rollouts")["rollouts"].([]any)
	if r := rollouts[0].(map[string]any); len(rollouts) != 1 || r["rolloutId"] != e.rolloutID() ||
		r["channel"] != "stable" || !strings.HasSuffix(r["createdAt"].(string), "+00:00") {
		t.Errorf("rollouts: %v", rollouts)
	}
	if got := read("/v1/rollouts/" + e.rolloutID() + "/lifecycle"); got["rolloutId"] != e.rolloutID() ||
		got["terminalAt"] != nil || got["supersededBy"] != nil {
		t.Errorf("lifecycle: %v", got)
	}
	trace := read("/v1/rollouts/" + e.rolloutID() + "/trace")
	if ev := trace["events"].([]any)[0].(map[string]any); ev["host"] != "a" || ev["terminalState"] != "converged" ||
		ev["wave"] != 0. || trace["rollout_id"] != e.rolloutID() {
		t.Errorf("trace: %v", trace)
	}
	before := e.rolloutID()
	e.advance(2)
	if err := p.operator().Poke(context.Background()); err != nil {
		t.Fatal(err)
	}
	p.eventually("the next release is in force", func() bool { return p.inForce().Equal(e.signed) })
	if got := read("/v1/rollouts/" + before + "/lifecycle"); got["supersededBy"] != e.rolloutID() ||
		!strings.HasSuffix(got["supersededAt"].(string), "+00:00") || got["terminalAt"] == nil {
		t.Errorf("lifecycle of the one before: %v, superseded by %s", got, e.rolloutID())
	}
	for path, want := range map[string]int{
		"/v1/rollouts/x/lifecycle": 400, "/v1/rollouts/x/trace": 400,
		"/v1/rollouts/" + strings.Repeat("0", 64) + "/lifecycle": 404, "/v1/rollouts/" + strings.Repeat("0", 64) +
			"/trace": 404,
		"/v1/host-reports?limit=x": 400, "/v1/host-reports?limit=": 400, "/v1/host-reports?limit=-1": 400,
		"/v1/host-reports?limit=0": 200, "/v1/host-reports?limit=999": 200,
		"/v1/hosts/none/explain": 404,
	} {
		if got := p.send(web, sent{method: "GET", path: path}); got.status != want {
			t.Errorf("%s: %d, want %d", path, got.status, want)
		}
	}
	if got := read("/v1/hosts/b/explain"); got["reason"].(map[string]any)["text"] == "" {
		t.Errorf("explain: %v", got)
	}
}

// TestViewsSpeakTheWordsOfV1: a v1 operator's list of states is closed.
func TestViewsSpeakTheWordsOfV1(t *testing.T) {
	e := newEstate(t, "a", "b")
	p := e.serve()
	a := p.agent("a")
	target := p.checkin(a, e.state("a", closureOf("a", 0)), 0).Target
	if _, err := a.Report(context.Background(), &protocol.ReportRequest{
		Hostname: "a", AgentVersion: "1", OccurredAt: pki.At(time.Now()), Rollout: &target.RolloutID,
		Event: protocol.EventActivationDeferred,
		Details: []byte(`{"closure_hash":"` + target.ClosureHash + `","channel_ref":"` + target.ChannelRef +
			`","component":"kernel"}`),
	}); err != nil {
		t.Fatal(err)
	}
	operator := p.operator()
	hosts, err := operator.Hosts(context.Background())
	if err != nil {
		t.Fatal(err)
	}
	if h := hosts.Hosts[0]; h.RolloutState == nil || *h.RolloutState != "Dispatched" || !h.PendingReboot ||
		h.Word() != "Deferred" {
		t.Errorf("a is %v, in our words %s", h.RolloutState, h.Word())
	}
	if h := hosts.Hosts[1]; h.RolloutState == nil || *h.RolloutState != "Queued" || h.Word() != "Queued" {
		t.Errorf("b is %v, in our words %s", h.RolloutState, h.Word())
	}
	rollouts, err := operator.Rollouts(context.Background(), client.RolloutsQuery{})
	if err != nil || len(rollouts.Rollouts) != 1 {
		t.Fatalf("%+v %v", rollouts, err)
	}
	if r := rollouts.Rollouts[0]; r.HostStates["a"] != "Dispatched" || r.Words()["a"] != "Deferred" ||
		r.Words()["b"] != "Queued" {
		t.Errorf("states %v, in our words %v", r.HostStates, r.Words())
	}
}

func TestWithoutADatabase(t *testing.T) {
	e := newEstate(t, "a")
	p := e.serve(func(c *Config) { c.DBPath = "" })
	web := p.web(e.operatorCert("operator-jo"))
	for _, path := range []string{"/v1/host-reports", "/v1/rollouts", "/v1/rollouts/" + e.rolloutID() + "/lifecycle",
		"/v1/rollouts/" + e.rolloutID() + "/trace"} {
		if got := p.send(web, sent{method: "GET", path: path}); got.status != 503 {
			t.Errorf("%s: %d, want 503", path, got.status)
		}
	}
	a := p.agent("a")
	if got := p.checkin(a, e.state("a", closureOf("a", 0)), 0); got.Target != nil {
		t.Errorf("dispatched without a database: %+v", got.Target)
	}
	if got := status(t, p.confirm(a, "a",
		&protocol.Target{ChannelRef: e.rolloutID(), ClosureHash: closureOf("a", 1)})); got != 503 {
		t.Errorf("confirm: %d, want 503", got)
	}
}

func TestTheClosureProxy(t *testing.T) {
	e := newEstate(t, "a")
	hash := strings.Repeat("a", 32)
	up := &upstream{files: map[string][]byte{hash + ".narinfo": []byte("StorePath: /nix/store/x\n")}}
	server := httptest.NewServer(up)
	t.Cleanup(server.Close)
	p := e.serve(func(c *Config) { c.ClosureUpstream = server.URL + "/" })
	web := p.web(e.agentCert("a", time.Now().Add(-time.Hour)))
	for path, want := range map[string]int{hash: 200, strings.Repeat("b", 32): 404, "x": 404, strings.Repeat("e", 32): 404,
		"..%2f..%2fsecret": 404} {
		got := p.send(web, sent{method: "GET", path: "/v1/agent/closure/" + path})
		if got.status != want {
			t.Errorf("%s: %d, want %d", path, got.status, want)
		}
		if path == hash && (got.header.Get("Content-Type") != "text/x-nix-narinfo" ||
			got.body != "StorePath: /nix/store/x\n") {
			t.Errorf("%v %q", got.header, got.body)
		}
	}
	server.Close()
	if got := p.send(web, sent{method: "GET", path: "/v1/agent/closure/" + hash}); got.status != 502 {
		t.Errorf("without a cache: %d, want 502", got.status)
	}
	p.stop()
	p = e.serve()
	if got := p.send(p.web(e.agentCert("a", time.Now().Add(-time.Hour))),
		sent{method: "GET", path: "/v1/agent/closure/" + hash}); got.status != 501 ||
		!strings.Contains(got.body, `"tracking"`) {
		t.Errorf("unset: %d %s", got.status, got.body)
	}
}

func TestCheckinsSpreadAfterAStart(t *testing.T) {
	s := &checkins{cfg: &Config{Jitter: rand.N[time.Duration], CheckinInterval: time.Minute}, started: time.Now()}
	seen := map[uint32]bool{}
	for range 200 {
		next := s.nextCheckin()
		if next < 60 || next > 90 {
			t.Fatalf("next check-in after %d s", next)
		}
		seen[next] = true
	}
	if len(seen) < 10 {
		t.Errorf("only %d different times", len(seen))
	}
	s.started = time.Now().Add(-time.Hour)
	if next := s.nextCheckin(); next != 60 {
		t.Errorf("an hour after the start: %d s", next)
	}
}
