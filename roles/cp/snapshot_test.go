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

	"nixfleet/nixops/fleet"
	"nixfleet/pki"
	"nixfleet/roles/cp/source"
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
	c, err := p.operator().Channel("stable").Read(context.Background())
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
	p.eventually("the older release is refused",
		func() bool { return strings.Contains(p.log.String(), fleet.ErrOlder.Error()) })
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
	if got := p.checkin(a, e.state("a", closureOf("a", 1)), 0); got.Target == nil ||
		got.Target.ClosureHash != closureOf("a", 2) {
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
	if err := os.WriteFile(kept, []byte(strings.Replace(string(doc), closureOf("a", 2), closureOf("a", 9), 1)),
		0o600); err != nil {
		t.Fatal(err)
	}
	os.RemoveAll(e.path("state/accepted.last"))
	p = e.serve()
	if got := p.send(p.web(nil), sent{method: "GET", path: "/v1/whoami"}); got.status != 503 {
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
		cmd := exec.Command("git", append(
			[]string{"-C", e.dir, "-c", "user.name=ci", "-c", "user.email=ci@example.com", "-c", "commit.gpgsign=false"},
			args...)...)
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
	if got := p.checkin(a, e.state("a", closureOf("a", 1)), 0); got.Target == nil ||
		got.Target.ClosureHash != closureOf("a", 2) {
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
	e.nonces = &fleet.BootstrapNonces{SchemaVersion: 1, BootstrapNonces: []fleet.BootstrapNonce{},
		Meta: fleet.Meta{SchemaVersion: 1}}
	e.signed = e.signed.Add(time.Second)
	files := e.sign()
	up := &upstream{token: "sesame"}
	up.set(files)
	server := httptest.NewServer(up)
	t.Cleanup(server.Close)
	e.write("token", []byte("sesame\n"))
	v1 := func(c *Config) {
		token := e.path("token")
		at := func(name string) source.Pair {
			return source.Pair{Artifact: server.URL + "/" + name, Signature: server.URL + "/" + name + ".sig", TokenFile: token}
		}
		c.Source = ""
		c.ChannelRefs, c.RevocationsSource, c.NoncesSource = at(fleet.FleetName), at(fleet.RevocationsName),
			at(fleet.NoncesName)
		c.Rollouts = source.Pair{Artifact: server.URL + "/rollouts/{rolloutId}.json",
			Signature: server.URL + "/rollouts/{rolloutId}.json.sig", TokenFile: token}
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
		c.ChannelRefs = source.Pair{Artifact: server.URL + "/" + fleet.FleetName,
			Signature: server.URL + "/" + fleet.FleetName + ".sig"}
		c.RevocationsSource = source.Pair{Artifact: server.URL + "/" + fleet.RevocationsName,
			Signature: server.URL + "/" + fleet.RevocationsName + ".sig"}
		c.PollInterval = 50 * time.Millisecond
	})
	if got := p.inForce(); !got.Equal(local) {
		t.Fatalf("in force is the release of %s, want the local one of %s", got, local)
	}
	e.signed = e.signed.Add(time.Second)
	up.set(e.sign())
	p.eventually("the source's release is in force", func() bool { return p.inForce().Equal(e.signed) })
}

func TestAReleaseThatCouldNotBeKeptIsKeptLater(t *testing.T) {
	e := newEstate(t, "a")
	s := e.primed(t)
	kept := func() *fleet.Release {
		t.Helper()
		o, err := s.release.loadOptions(fleet.AnyAge)
		if err != nil {
			t.Fatal(err)
		}
		rel, err := fleet.LoadRelease(source.Kept(e.path("state/accepted"))[0], o)
		if err != nil {
			t.Fatal(err)
		}
		return rel
	}
	good := s.cfg.StateDir
	s.cfg.StateDir = e.path("server.pem/none") // as good as a full disk
	e.advance(2)
	revision, ok := s.release.poll(t.Context(), "")
	if !ok || !s.release.snapshot.Load().rel.SignedAt.Equal(e.signed) || kept().SignedAt.Equal(e.signed) {
		t.Fatalf("polled %v, in force %s, kept %s", ok, s.release.snapshot.Load().rel.SignedAt, kept().SignedAt)
	}
	s.cfg.StateDir = good
	if _, ok := s.release.poll(t.Context(), revision); !ok || !kept().SignedAt.Equal(e.signed) {
		t.Errorf("polled %v, kept %s, accepted %s", ok, kept().SignedAt, e.signed)
	}
}

func TestADatabaseThatWasTakenAwayIsComplainedOfOnce(t *testing.T) {
	e := newEstate(t, "a")
	p := e.serve()
	a := p.agent("a")
	if err := os.Remove(e.path("state/state.db")); err != nil {
		t.Fatal(err)
	}
	// A dispatch is a reason for a tick.
	if p.checkin(a, e.state("a", closureOf("a", 0)), 0).Target == nil {
		t.Error("nothing is dispatched any more")
	}
	complaints := func() int { return strings.Count(p.log.String(), "database file was replaced or removed") }
	p.eventually("it is complained of", func() bool { return complaints() == 1 })
	if err := p.confirm(a, "a", p.checkin(a, e.state("a", closureOf("a", 0)), 0).Target); err != nil {
		t.Fatal(err)
	}
	if n := complaints(); n != 1 {
		t.Errorf("complained of %d times", n)
	}
}

func TestAReleaseThatTheTrustFileNoLongerKnowsIsComplainedOf(t *testing.T) {
	e := newEstate(t, "a")
	p := e.serve(func(c *Config) { c.PollInterval = 20 * time.Millisecond })
	complaints := func() int { return strings.Count(p.log.String(), "release in force no longer verifies") }
	before := e.ci
	e.ci = generate(t, pki.AlgorithmEd25519)
	e.write("trust.json", e.trust())
	p.eventually("it is complained of", func() bool { return complaints() == 1 })
	p.checkin(p.agent("a"), e.state("a", closureOf("a", 0)), 0)
	e.ci = before
	e.write("trust.json", e.trust())
	e.advance(2)
	p.eventually("the next release is in force", func() bool { return p.inForce().Equal(e.signed) })
	if n := complaints(); n != 1 {
		t.Errorf("complained of %d times", n)
	}
}

// A forge that shows a release without its heads must not keep them from the
// hosts for as long as the control plane runs, nor take away what it showed.
func TestHeadsThatComeLaterAreTakenIn(t *testing.T) {
	e := newEstate(t, "a")
	e.unnamedHeads = true
	files := e.sign()
	head := fleet.HeadName("stable")
	without := maps.Clone(files)
	delete(without, head)
	delete(without, head+fleet.SignatureSuffix)
	e.empty()
	e.restore(without)
	s := e.primed(t)
	stable := func() *fleet.ChannelRelease { return s.release.snapshot.Load().rel.Channels["stable"] }
	if stable() == nil || stable().Head != nil {
		t.Fatal("the release without heads is not served, or has one")
	}
	intent := stable().Intent
	e.restore(files)
	if s.release.poll(t.Context(), ""); stable().Head == nil || stable().Intent != intent ||
		len(stable().ManifestFile.Body) == 0 {
		t.Error("the head that came later is not served")
	}
	e.empty()
	e.restore(without)
	if s.release.poll(t.Context(), ""); stable().Head == nil {
		t.Error("the head was taken away again")
	}
	s.store.Close()
	if s = e.primed(t); stable().Head == nil {
		t.Error("a restart forgets the head")
	}
}

// A release that names its heads is not taken without one of them, nor with that of
// another release; with all of them it is taken at the next look.
func TestAReleaseWithoutAHeadThatItNamesIsRefused(t *testing.T) {
	e := newEstate(t, "a")
	s := e.primed(t)
	first := e.signed
	head := fleet.HeadName("stable")
	before := e.sign()
	e.signed = e.signed.Add(time.Second)
	files := e.sign()
	for name, spoil := range map[string]func(map[string][]byte){
		"no head": func(f map[string][]byte) { delete(f, head); delete(f, head+fleet.SignatureSuffix) },
		"the head of another release": func(f map[string][]byte) {
			f[head], f[head+fleet.SignatureSuffix] = before[head], before[head+fleet.SignatureSuffix]
		},
	} {
		spoilt := maps.Clone(files)
		spoil(spoilt)
		e.empty()
		e.restore(spoilt)
		if _, ok := s.release.poll(t.Context(), ""); ok || !s.release.snapshot.Load().rel.SignedAt.Equal(first) {
			t.Errorf("%s: the release is in force", name)
		}
	}
	e.restore(files)
	if _, ok := s.release.poll(t.Context(), ""); !ok || !s.release.snapshot.Load().rel.SignedAt.Equal(e.signed) {
		t.Error("with all of its heads the release is not in force")
	}
}

// A release without any head follows one with heads only where an operator says so,
// and once.
func TestGoingBackToAReleaseToolOfV1IsAskedForOnce(t *testing.T) {
	e := newEstate(t, "a")
	s := e.primed(t)
	e.v1 = true
	takes := func(s *server) bool {
		e.signed = e.signed.Add(time.Second)
		files := e.sign()
		e.empty()
		e.restore(files)
		_, ok := s.release.poll(t.Context(), "")
		return ok
	}
	if takes(s) {
		t.Error("a release without heads was taken unasked")
	}
	s.cfg.WithoutHeads = true
	for range 2 {
		if !takes(s) {
			t.Error("releases of v1 are not taken although that was asked for")
		}
	}
	e.v1 = false
	if !takes(s) {
		t.Error("a release with heads is not taken after one without")
	}
	e.v1 = true
	if takes(s) {
		t.Error("the flag worked twice")
	}
}
