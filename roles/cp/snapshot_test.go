package cp

import (
	"context"
	"fmt"
	"maps"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/go-json-experiment/json"

	"nixfleet/nixops/fleet"
	"nixfleet/pki"
	"nixfleet/roles/protocol"
)

func (p *plane) poke() {
	p.t.Helper()
	if err := p.operator().Poke(context.Background()); err != nil {
		p.t.Fatal(err)
	}
}

// inForce is when the release was signed that the channel is served from.
func (p *plane) inForce() time.Time {
	p.t.Helper()
	c, err := p.operator().Channel(context.Background(), "stable")
	if err != nil {
		p.t.Fatal(err)
	}
	return c.SignedAt.Time
}

func (e *estate) restore(files map[string][]byte) {
	e.t.Helper()
	for name, data := range files {
		e.write("releases/"+name, data)
	}
}

func TestAnOlderReleaseIsNeverTakenC2C9(t *testing.T) {
	e := newEstate(t, "a")
	before := e.sign()
	e.advance(2)
	newest := e.signed
	p := e.serve()
	e.restore(before)
	p.poke()
	p.eventually("the older release is refused", func() bool { return strings.Contains(p.log.String(), fleet.ErrOlder.Error()) })
	if got := p.inForce(); !got.Equal(newest) {
		t.Errorf("in force is the release of %s, want %s", got, newest)
	}
	p.stop()
	// The source still has the older one when the control plane starts again.
	p = e.serve()
	if got := p.inForce(); !got.Equal(newest) {
		t.Errorf("after a restart the release of %s is in force, want %s", got, newest)
	}
	p.stop()
	// Nor does the loss of the database open the way back.
	for _, suffix := range []string{"", "-wal", "-shm"} {
		os.Remove(e.path("state/state.db" + suffix))
	}
	p = e.serve()
	if got := p.inForce(); !got.Equal(newest) {
		t.Errorf("without the database the release of %s is in force, want %s", got, newest)
	}
}

func TestAReleaseThatDoesNotVerifyIsNotTaken(t *testing.T) {
	e := newEstate(t, "a")
	p := e.serve()
	good := e.signed
	e.advance(2)
	doc, err := os.ReadFile(filepath.Join(e.release, fleet.FleetName))
	if err != nil {
		t.Fatal(err)
	}
	e.write("releases/"+fleet.FleetName, []byte(strings.Replace(string(doc), closureOf("a", 2), closureOf("a", 3), 1)))
	p.poke()
	p.eventually("it is refused", func() bool { return strings.Contains(p.log.String(), "bad-signature") })
	if got := p.inForce(); !got.Equal(good) {
		t.Errorf("in force is the release of %s, want %s", got, good)
	}
	for name, spoil := range map[string]func(map[string][]byte){
		"another head":     func(f map[string][]byte) { f[fleet.HeadName("stable")] = []byte("{}") },
		"no revocations":   func(f map[string][]byte) { delete(f, fleet.RevocationsName) },
		"another manifest": func(f map[string][]byte) { f[fleet.ManifestName(e.rolloutID())] = []byte("{}") },
	} {
		e.signed = e.signed.Add(time.Second)
		files := e.sign()
		spoil(files)
		if err := os.RemoveAll(e.release); err != nil {
			t.Fatal(err)
		}
		e.restore(files)
		seen := strings.Count(p.log.String(), "release not accepted")
		p.poke()
		p.eventually(name+" is refused", func() bool { return strings.Count(p.log.String(), "release not accepted") > seen })
	}
	if got := p.inForce(); !got.Equal(good) {
		t.Errorf("in force is the release of %s, want %s", got, good)
	}
}

func TestARestartWithoutTheSourceServesWhatWasAccepted(t *testing.T) {
	e := newEstate(t, "a")
	p := e.serve()
	first := e.rolloutID()
	e.advance(2)
	p.poke()
	p.eventually("the second release is in force", func() bool { return p.inForce().Equal(e.signed) })
	p.stop()
	if err := os.RemoveAll(e.release); err != nil {
		t.Fatal(err)
	}
	p = e.serve()
	a := p.agent("a")
	if got := p.checkin(a, e.state("a", closureOf("a", 1)), 0); got.Target == nil || got.Target.ClosureHash != closureOf("a", 2) {
		t.Errorf("told %+v", got.Target)
	}
	for _, id := range []string{first, e.rolloutID()} {
		if body, _, err := a.Manifest(context.Background(), id); err != nil || pki.HashHex(body) != id {
			t.Errorf("manifest %s: %v", id, err)
		}
	}
	// What lies on disk is verified anew: a stranger's changes are not served.
	p.stop()
	kept := e.path("state/accepted/" + fleet.FleetName)
	doc, err := os.ReadFile(kept)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(kept, []byte(strings.Replace(string(doc), closureOf("a", 2), closureOf("a", 9), 1)), 0o600); err != nil {
		t.Fatal(err)
	}
	os.RemoveAll(e.path("state/accepted.last"))
	p = e.serve()
	if got := p.send(p.web(nil), call{method: "GET", path: "/v1/whoami"}); got.status != 503 {
		t.Errorf("with a changed release on disk: %d, want 503", got.status)
	}
}

func TestADeployGoesOnAfterARestart(t *testing.T) {
	for _, lost := range []bool{false, true} {
		t.Run(fmt.Sprintf("database lost %v", lost), func(t *testing.T) {
			e := newEstate(t, "a", "b")
			p := e.serve()
			a := p.agent("a")
			target := p.checkin(a, e.state("a", closureOf("a", 0)), 0).Target
			p.stop()
			if lost {
				for _, suffix := range []string{"", "-wal", "-shm"} {
					os.Remove(e.path("state/state.db" + suffix))
				}
			}
			p = e.serve()
			a = p.agent("a")
			if err := p.confirm(a, "a", target); err != nil {
				t.Fatalf("the confirm of a target from before: %v", err)
			}
			p.checkin(a, e.state("a", closureOf("a", 1)), 0)
			hosts, err := p.operator().Hosts(context.Background())
			if err != nil {
				t.Fatal(err)
			}
			if h := hosts.Hosts[0]; h.Hostname != "a" || !h.Converged || h.CurrentClosureHash == nil {
				t.Errorf("one check-in later host a is shown %+v", h)
			}
		})
	}
}

func TestUsedTokensAreRememberedOverARestart(t *testing.T) {
	e := newEstate(t, "a")
	p := e.serve()
	req := e.enrolment("a", nil)
	if _, err := p.client(nil).Enroll(context.Background(), req); err != nil {
		t.Fatal(err)
	}
	p.stop()
	p = e.serve()
	if _, err := p.client(nil).Enroll(context.Background(), req); status(t, err) != 409 {
		t.Errorf("%v, want 409", err)
	}
}

func TestAGitRepositoryIsFollowedByPoke(t *testing.T) {
	if _, err := exec.LookPath("git"); err != nil {
		t.Skip("no git")
	}
	e := newEstate(t, "a")
	git := func(args ...string) {
		t.Helper()
		cmd := exec.Command("git", append([]string{"-C", e.dir, "-c", "user.name=ci", "-c", "user.email=ci@example.com", "-c", "commit.gpgsign=false"}, args...)...)
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("git %v: %v\n%s", args, err, out)
		}
	}
	git("init", "-q", "-b", "main")
	commit := func() {
		git("add", "releases")
		git("commit", "-q", "-m", "chore(ci): release")
	}
	commit()
	p := e.serve(func(c *Config) { c.Source = "git+file://" + e.dir + "#main" })
	if got := p.inForce(); !got.Equal(e.signed) {
		t.Fatalf("in force is the release of %s", got)
	}
	old := e.rolloutID()
	e.advance(2)
	commit()
	p.poke()
	p.eventually("the pushed release is in force", func() bool { return p.inForce().Equal(e.signed) })
	a := p.agent("a")
	if got := p.checkin(a, e.state("a", closureOf("a", 1)), 0); got.Target == nil || got.Target.ClosureHash != closureOf("a", 2) {
		t.Errorf("told %+v", got.Target)
	}
	if _, _, err := a.Manifest(context.Background(), old); err != nil {
		t.Errorf("the manifest before: %v", err)
	}
}

// upstream serves a v1 release over http.
type upstream struct {
	mu    sync.Mutex
	files map[string][]byte
	token string
}

func (u *upstream) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	u.mu.Lock()
	defer u.mu.Unlock()
	if u.token != "" && r.Header.Get("Authorization") != "Bearer "+u.token {
		w.WriteHeader(http.StatusUnauthorized)
		return
	}
	doc, ok := u.files[strings.TrimPrefix(r.URL.Path, "/")]
	if !ok {
		http.NotFound(w, r)
		return
	}
	w.Write(doc)
}

func (u *upstream) set(files map[string][]byte) {
	u.mu.Lock()
	defer u.mu.Unlock()
	u.files = maps.Clone(files)
}

func TestV1URLSources(t *testing.T) {
	e := newEstate(t, "a", "b")
	e.v1 = true
	e.nonces = &fleet.BootstrapNonces{SchemaVersion: 1, BootstrapNonces: []fleet.BootstrapNonce{}, Meta: fleet.Meta{SchemaVersion: 1}}
	e.signed = e.signed.Add(time.Second)
	files := e.sign()
	up := &upstream{token: "sesame"}
	up.set(files)
	server := httptest.NewServer(up)
	t.Cleanup(server.Close)
	e.write("token", []byte("sesame\n"))
	v1 := func(c *Config) {
		token := e.path("token")
		at := func(name string) pair {
			return pair{server.URL + "/" + name, server.URL + "/" + name + ".sig", token}
		}
		c.Source = ""
		c.ChannelRefs, c.RevocationsSource, c.NoncesSource = at(fleet.FleetName), at(fleet.RevocationsName), at(fleet.NoncesName)
		c.Rollouts = pair{server.URL + "/rollouts/{rolloutId}.json", server.URL + "/rollouts/{rolloutId}.json.sig", token}
		c.PollInterval, c.Strict = 50*time.Millisecond, true
	}
	p := e.serve(v1)
	a := p.agent("a")
	got := p.checkin(a, e.state("a", closureOf("a", 0)), 0)
	if got.Target == nil || got.Head != nil {
		t.Fatalf("told %+v, head %+v", got.Target, got.Head)
	}
	id := got.Target.RolloutID
	body, sig, err := a.Manifest(context.Background(), id)
	if err != nil || pki.HashHex(body) != id || len(sig) != pki.SignatureSize {
		t.Fatalf("manifest %s: %v", id, err)
	}
	if _, _, err := a.Head(context.Background(), "stable"); status(t, err) != 404 {
		t.Errorf("the head of a v1 release: %v, want 404", err)
	}
	// A manifest that upstream does not have, or has wrongly.
	if _, _, err := a.Manifest(context.Background(), strings.Repeat("0", 64)); status(t, err) != 502 {
		t.Errorf("an unknown manifest: %v, want 502", err)
	}
	spoilt := maps.Clone(files)
	spoilt[fleet.ManifestName(id)] = append(append([]byte{}, spoilt[fleet.ManifestName(id)]...), '\n')
	up.set(spoilt)
	if _, _, err := a.Manifest(context.Background(), id); status(t, err) != 502 {
		t.Errorf("a manifest with other bytes: %v, want 502", err)
	}
	// A pair that is torn by an upload is read again until it verifies.
	e.advance(2)
	next := e.sign()
	torn := maps.Clone(next)
	torn[fleet.FleetName+".sig"] = files[fleet.FleetName+".sig"]
	up.set(torn)
	time.Sleep(200 * time.Millisecond)
	up.set(next)
	p.eventually("the new release is in force", func() bool { return p.inForce().Equal(e.signed) })
}

func TestV1LocalPairStandsInUntilTheSourceAnswers(t *testing.T) {
	e := newEstate(t, "a")
	local := e.signed
	up := &upstream{}
	server := httptest.NewServer(up)
	t.Cleanup(server.Close)
	p := e.serve(func(c *Config) {
		c.Source = ""
		c.Artifact, c.Signature = filepath.Join(e.release, fleet.FleetName), filepath.Join(e.release, fleet.FleetName+".sig")
		c.ChannelRefs = pair{server.URL + "/" + fleet.FleetName, server.URL + "/" + fleet.FleetName + ".sig", ""}
		c.RevocationsSource = pair{server.URL + "/" + fleet.RevocationsName, server.URL + "/" + fleet.RevocationsName + ".sig", ""}
		c.PollInterval = 50 * time.Millisecond
	})
	if got := p.inForce(); !got.Equal(local) {
		t.Fatalf("in force is the release of %s, want the local one of %s", got, local)
	}
	e.signed = e.signed.Add(time.Second)
	up.set(e.sign())
	p.eventually("the source's release is in force", func() bool { return p.inForce().Equal(e.signed) })
}

func TestManifestsAreAnsweredInTheOrderOfTheContract(t *testing.T) {
	e := newEstate(t, "a", "b")
	dir := e.path("manifests")
	p := e.serve(func(c *Config) { c.RolloutsDir = dir })
	get := func(path string) answer {
		return p.send(p.web(e.agentCert("a", time.Now().Add(-time.Hour))), call{method: "GET", path: path, header: map[string]string{protocol.HeaderProtocol: ""}})
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
	if got := p.send(p.web(e.operatorCert("jo")), call{method: "GET", path: "/v1/rollouts/" + hash}); got.status != 200 || got.body != other {
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
	e.fleet.Waves = map[string][]fleet.Wave{"stable": {{Hosts: []string{"a"}}, {Hosts: []string{"b"}}}, "edge": {{Hosts: []string{"c"}}}}
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
	if got := p.checkin(a, e.state("a", closureOf("a", 1)), 0); got.Target != nil || got.Head == nil || got.Head.Hash != file.Hash {
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
		"the head of another channel": {func() error { _, _, err := a.Head(context.Background(), "edge"); return err }(), 404},
		"no such channel":             {func() error { _, _, err := a.Head(context.Background(), "none"); return err }(), 404},
		"the proof of another host":   {func() error { _, err := a.HeadProof(context.Background(), "stable", "b"); return err }(), 403},
		"a proof on another channel":  {func() error { _, err := a.HeadProof(context.Background(), "edge", "a"); return err }(), 404},
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
	first := p.send(web, call{method: "GET", path: "/v1/heads/stable"})
	again := p.send(web, call{method: "GET", path: "/v1/heads/stable", header: map[string]string{"If-None-Match": first.header.Get("ETag")}})
	if again.status != 304 || again.body != "" {
		t.Errorf("the same head again: %d %q", again.status, again.body)
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
		got := p.send(web, call{method: "GET", path: path})
		if got.status != 200 {
			t.Fatalf("%s: %d %s", path, got.status, got.body)
		}
		var doc map[string]any
		if err := json.Unmarshal([]byte(got.body), &doc); err != nil {
			t.Fatal(err)
		}
		return doc
	}
	if got := read("/v1/channels/stable"); got["signed_at"] != pki.At(e.signed).String()[:19]+"+00:00" || got["declared_ci_commit"] != strings.Repeat("ab", 20) || got["freshness_window_minutes"] != 1440. {
		t.Errorf("channel: %v", got)
	}
	if got := p.send(web, call{method: "GET", path: "/v1/channels/none"}); got.status != 404 {
		t.Errorf("unknown channel: %d", got.status)
	}
	if got := read("/v1/whoami"); got["cn"] != "operator-jo" || !strings.HasSuffix(got["issuedAt"].(string), "+00:00") {
		t.Errorf("whoami: %v", got)
	}
	hosts := read("/v1/hosts")["hosts"].([]any)
	first := hosts[0].(map[string]any)
	for _, key := range []string{"hostname", "channel", "declaredClosureHash", "currentClosureHash", "pendingClosureHash", "lastCheckinAt", "lastRolloutId", "converged",
		"outstandingComplianceFailures", "outstandingRuntimeGateErrors", "verifiedEventCount", "lastUptimeSecs", "rolloutState", "pendingReboot", "quarantinedClosure", "pin", "outstandingHealthFailures"} {
		if _, ok := first[key]; !ok {
			t.Errorf("a host has no %s: %v", key, first)
		}
	}
	if len(hosts) != 2 || first["hostname"] != "a" || first["lastUptimeSecs"] != 60. || !strings.HasSuffix(first["lastCheckinAt"].(string), "Z") {
		t.Errorf("hosts: %v", hosts)
	}
	rollouts := read("/v1/rollouts")["rollouts"].([]any)
	if r := rollouts[0].(map[string]any); len(rollouts) != 1 || r["rolloutId"] != e.rolloutID() || r["channel"] != "stable" || !strings.HasSuffix(r["createdAt"].(string), "+00:00") {
		t.Errorf("rollouts: %v", rollouts)
	}
	if got := read("/v1/rollouts/" + e.rolloutID() + "/lifecycle"); got["rolloutId"] != e.rolloutID() || got["terminalAt"] != nil || got["supersededBy"] != nil {
		t.Errorf("lifecycle: %v", got)
	}
	trace := read("/v1/rollouts/" + e.rolloutID() + "/trace")
	if ev := trace["events"].([]any)[0].(map[string]any); ev["host"] != "a" || ev["terminalState"] != "converged" || ev["wave"] != 0. || trace["rollout_id"] != e.rolloutID() {
		t.Errorf("trace: %v", trace)
	}
	for path, want := range map[string]int{
		"/v1/rollouts/x/lifecycle": 400, "/v1/rollouts/x/trace": 400,
		"/v1/rollouts/" + strings.Repeat("0", 64) + "/lifecycle": 404, "/v1/rollouts/" + strings.Repeat("0", 64) + "/trace": 404,
		"/v1/host-reports?limit=x": 400, "/v1/host-reports?limit=-1": 400, "/v1/host-reports?limit=0": 200, "/v1/host-reports?limit=999": 200,
		"/v1/hosts/none/explain": 404,
	} {
		if got := p.send(web, call{method: "GET", path: path}); got.status != want {
			t.Errorf("%s: %d, want %d", path, got.status, want)
		}
	}
	if got := read("/v1/hosts/b/explain"); got["reason"].(map[string]any)["text"] == "" {
		t.Errorf("explain: %v", got)
	}
}

func TestWithoutADatabase(t *testing.T) {
	e := newEstate(t, "a")
	p := e.serve(func(c *Config) { c.DBPath = "" })
	web := p.web(e.operatorCert("operator-jo"))
	for _, path := range []string{"/v1/host-reports", "/v1/rollouts", "/v1/rollouts/" + e.rolloutID() + "/lifecycle", "/v1/rollouts/" + e.rolloutID() + "/trace"} {
		if got := p.send(web, call{method: "GET", path: path}); got.status != 503 {
			t.Errorf("%s: %d, want 503", path, got.status)
		}
	}
	a := p.agent("a")
	if got := p.checkin(a, e.state("a", closureOf("a", 0)), 0); got.Target != nil {
		t.Errorf("dispatched without a database: %+v", got.Target)
	}
	if got := status(t, p.confirm(a, "a", &protocol.Target{ChannelRef: e.rolloutID(), ClosureHash: closureOf("a", 1)})); got != 503 {
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
	for path, want := range map[string]int{hash: 200, strings.Repeat("b", 32): 404, "x": 404, strings.Repeat("e", 32): 404, "..%2f..%2fsecret": 404} {
		got := p.send(web, call{method: "GET", path: "/v1/agent/closure/" + path})
		if got.status != want {
			t.Errorf("%s: %d, want %d", path, got.status, want)
		}
		if path == hash && (got.header.Get("Content-Type") != "text/x-nix-narinfo" || got.body != "StorePath: /nix/store/x\n") {
			t.Errorf("%v %q", got.header, got.body)
		}
	}
	server.Close()
	if got := p.send(web, call{method: "GET", path: "/v1/agent/closure/" + hash}); got.status != 502 {
		t.Errorf("without a cache: %d, want 502", got.status)
	}
	p.stop()
	p = e.serve()
	if got := p.send(p.web(e.agentCert("a", time.Now().Add(-time.Hour))), call{method: "GET", path: "/v1/agent/closure/" + hash}); got.status != 501 || !strings.Contains(got.body, `"tracking"`) {
		t.Errorf("unset: %d %s", got.status, got.body)
	}
}
