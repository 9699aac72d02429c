// Package e2e runs the built executable as operators, hosts and attackers do.
package e2e

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/go-json-experiment/json"

	"nixfleet/nixops/fleet"
	"nixfleet/pki"
	"nixfleet/roles/protocol"
)

// TestNixChain takes real closures from a flake in git to confirmed hosts with
// private stores, and then attacks each link of the chain. The chapters build on
// one another.
func TestNixChain(t *testing.T) {
	t.Parallel()
	channels := map[string]string{"web-1": "stable", "web-2": "stable", "db-1": "stable", "old-1": "slow"}
	f := newNixFleet(t, channels)
	three := []string{"web-1", "web-2", "db-1"}
	db, old := f.hosts["db-1"], f.hosts["old-1"]
	impostor, withholder := f.newImpostor(db), f.newImpostor(old)

	f.edit("one", "web-1", "web-2", "db-1", "old-1")
	f.release(f.properly()...)
	f.startControlPlane()
	f.withhold(withholder, old)
	f.startAgent(old)
	for _, name := range three {
		f.startAgent(f.hosts[name])
	}
	f.converged(three...)
	first := nixHeadFiles{impostor.file(t, "/v1/heads/stable"), impostor.file(t, "/v1/heads/stable/sig")}
	firstClosure := f.declared("db-1")

	f.step("unsigned", func() { f.spoiltCache(three, "--copy-to", f.cacheDest()) })
	f.step("wrongly signed", func() {
		f.spoiltCache(three, "--copy-to", f.cacheDest(), "--cache-key", f.foreign.SecretFile)
	})
	f.step("repaired", func() {
		f.edit("repaired", three...)
		f.release(f.properly()...)
		f.converged(three...)
	})
	f.step("modified fleet.resolved", func() { f.modifiedFleet(three) })
	f.step("hostile control plane", func() { f.hostile(impostor, db, first, firstClosure) })
	f.step("withheld release", func() {
		f.until("status shows release-stale", func() string {
			s := f.status(old)
			if s.Agent == nil || !strings.HasPrefix(s.Agent.Stale, "release-stale") {
				return fmt.Sprintf("%+v", s.Agent)
			}
			return ""
		})
		f.until("the host reports release-stale", func() string {
			withholder.mu.Lock()
			defer withholder.mu.Unlock()
			for _, r := range withholder.reports {
				if r.Event == protocol.EventOther && strings.Contains(string(r.Details), protocol.KindReleaseStale) {
					return ""
				}
			}
			return fmt.Sprintf("%d reports", len(withholder.reports))
		})
		// The truth heals it.
		withholder.set(false, nil)
		f.converged("old-1")
		f.until("status is fresh again", func() string {
			s := f.status(old)
			if s.Agent.Stale != "" {
				return s.Agent.Stale
			}
			return ""
		})
	})
}

// step runs a chapter and says how long it took.
func (f *nixFleet) step(name string, work func()) {
	f.t.Helper()
	begun := time.Now()
	work()
	f.t.Logf("%s: %s", name, time.Since(begun).Round(time.Millisecond))
}

// spoiltCache releases closures that the cache does not hold as the hosts want
// them: each refuses, says so and stays where it is.
func (f *nixFleet) spoiltCache(names []string, push ...string) {
	f.t.Helper()
	before := map[string][2]string{}
	for _, name := range names {
		current, profile := f.hosts[name].runs(f.t)
		before[name] = [2]string{current, profile}
	}
	f.edit("spoilt "+strings.Join(push[2:], " "), names...)
	f.refused("hosts cannot fetch", push...)
	f.release(append(push, "--no-verify-cache")...)
	for _, name := range names {
		want := f.declared(name)
		f.until(name+" reports closure-signature-mismatch", func() string {
			answer, err := f.client.HostReports(f.t.Context(), "", 200)
			if err != nil {
				return err.Error()
			}
			for _, r := range answer.Reports {
				if r.Hostname == name && r.Event == protocol.EventClosureSignatureMismatch &&
					strings.Contains(string(r.Details), want) {
					if r.SignatureStatus == nil || *r.SignatureStatus != "verified" {
						return fmt.Sprintf("the report's signature is %v", r.SignatureStatus)
					}
					return ""
				}
			}
			return fmt.Sprintf("%d other reports", len(answer.Reports))
		})
		if current, profile := f.hosts[name].runs(f.t); [2]string{current, profile} != before[name] {
			f.t.Errorf("%s left %v for %s, %s", name, before[name], current, profile)
		}
		if _, err := f.hosts[name].host.Inspect(f.t.Context(), want); err == nil {
			f.t.Errorf("%s has %s as a valid path", name, want)
		}
	}
}

// modifiedFleet pushes a declaration that nobody signed: the control plane
// refuses it aloud and goes on with the release it has.
func (f *nixFleet) modifiedFleet(names []string) {
	f.t.Helper()
	dir := filepath.Join(f.dir, "attacker")
	f.git("clone", "--quiet", filepath.Join(f.dir, "forge.git"), dir)
	file := filepath.Join(dir, "releases", fleet.FleetName)
	text, err := os.ReadFile(file)
	if err != nil {
		f.t.Fatal(err)
	}
	evil := f.declared("web-2")
	refreshed := f.snapshots()
	forged := strings.Replace(string(text), f.declared("web-1"), evil, 1)
	if forged == string(text) {
		f.t.Fatal("nothing to forge")
	}
	f.write(file, forged, 0o644)
	f.git("-C", dir, "add", "-A")
	f.commit(dir, "chore(ci): release [skip ci]")
	if err := f.client.Poke(f.t.Context()); err != nil {
		f.t.Fatal(err)
	}
	f.until("the control plane refuses the forged release", func() string {
		for line := range strings.Lines(nixTail(f.cpLog())) {
			if strings.Contains(line, "release not accepted") && strings.Contains(line, string(pki.ReasonBadSignature)) {
				return ""
			}
		}
		return "its log does not say so"
	})
	if now := f.snapshots(); now != refreshed {
		f.t.Errorf("the control plane took %d snapshots, %d before the forgery", now, refreshed)
	}
	f.converged(names...)
	f.git("-C", dir, "-c", "user.name=jo", "-c", "user.email=jo@fleet.test", "revert", "--no-edit", "HEAD")
	f.git("-C", dir, "push", "--quiet", "origin", "HEAD:main")
	f.git("-C", f.checkout(""), "pull", "--quiet", "--ff-only", "origin", "main")
}

// snapshots counts the releases that the control plane has taken.
func (f *nixFleet) snapshots() int {
	f.t.Helper()
	log, err := os.ReadFile(f.cpLog())
	if err != nil {
		f.t.Fatal(err)
	}
	return strings.Count(string(log), "snapshot refreshed")
}

// nixHeadFiles is a head with its signature as the wire carries them.
type nixHeadFiles struct{ body, sig []byte }

func (h nixHeadFiles) hash(t *testing.T) string {
	t.Helper()
	hash, err := pki.CanonicalHash(h.body)
	if err != nil {
		t.Fatal(err)
	}
	return hash
}

// as lies about the head alone.
func (h nixHeadFiles) as(t *testing.T) *nixLie {
	return &nixLie{
		answer: func(truth protocol.CheckinResponse) protocol.CheckinResponse {
			truth.Head = &protocol.HeadRef{Channel: "stable", Hash: h.hash(t)}
			return truth
		},
		files: map[string][]byte{"/v1/heads/stable": h.body, "/v1/heads/stable/sig": h.sig},
	}
}

// released reads the head of a channel from the checkout.
func (f *nixFleet) released(channel string) nixHeadFiles {
	f.t.Helper()
	body, err := os.ReadFile(f.checkout("releases/" + fleet.HeadName(channel)))
	if err != nil {
		f.t.Fatal(err)
	}
	sig, err := os.ReadFile(f.checkout("releases/" + fleet.HeadName(channel) + fleet.SignatureSuffix))
	if err != nil {
		f.t.Fatal(err)
	}
	return nixHeadFiles{body, sig}
}

// forge changes members of a head and signs it with a key.
func (h nixHeadFiles) forge(t *testing.T, key *pki.PrivateKey, change func(map[string]any)) nixHeadFiles {
	t.Helper()
	var doc map[string]any
	if err := json.Unmarshal(h.body, &doc); err != nil {
		t.Fatal(err)
	}
	change(doc)
	body, err := pki.Marshal(doc)
	if err != nil {
		t.Fatal(err)
	}
	if key == nil {
		return nixHeadFiles{body, h.sig}
	}
	sig, err := key.Sign(body)
	if err != nil {
		t.Fatal(err)
	}
	return nixHeadFiles{body, sig}
}

// withhold makes the impostor serve a head that was signed long ago and ends to
// be fresh a few seconds from now.
func (f *nixFleet) withhold(p *nixImpostor, h *nixHost) {
	f.t.Helper()
	key, err := pki.ReadPrivateKey(f.key("release.key"))
	if err != nil {
		f.t.Fatal(err)
	}
	head := f.released("slow").forge(f.t, key, func(doc map[string]any) {
		window := time.Duration(doc["freshnessWindow"].(float64)) * time.Minute
		then := pki.At(time.Now().Add(5*time.Second - window - pki.ClockSlack).Truncate(time.Second)).String()
		doc["openedAt"] = then
		doc["meta"].(map[string]any)["signedAt"] = then
	})
	lie := &nixLie{
		answer: func(protocol.CheckinResponse) protocol.CheckinResponse {
			return protocol.CheckinResponse{NextCheckinSecs: 1, Head: &protocol.HeadRef{Channel: "slow", Hash: head.hash(f.t)}}
		},
		files: map[string][]byte{"/v1/heads/slow": head.body, "/v1/heads/slow/sig": head.sig},
	}
	p.set(false, lie)
}

// hostile lets the impostor twist one thing after another about a new release.
func (f *nixFleet) hostile(p *nixImpostor, h *nixHost, first nixHeadFiles, firstClosure string) {
	t := f.t
	t.Helper()
	p.set(true, nil)
	switches := h.switches(t)
	f.edit("hostile", "web-1", "web-2", "db-1")
	f.release(f.properly()...)
	closure := f.declared("db-1")
	p.await(f, closure)
	head := f.released("stable")
	foreign, err := pki.GenerateKey(pki.AlgorithmEd25519)
	if err != nil {
		t.Fatal(err)
	}
	truth := func(answer protocol.CheckinResponse) protocol.CheckinResponse { return answer }
	proofPath := "/v1/heads/stable/proof/db-1"
	proof := func(host string) *protocol.Proof {
		body, err := f.client.Raw(t.Context(), "/v1/heads/stable/proof/"+host)
		if err != nil {
			t.Fatal(err)
		}
		var out protocol.Proof
		if err := json.Unmarshal(body, &out); err != nil {
			t.Fatal(err)
		}
		return &out
	}
	encode := func(v any) []byte {
		data, err := json.Marshal(v)
		if err != nil {
			t.Fatal(err)
		}
		return data
	}

	// The head itself, while the host knows only its predecessor.
	p.refused(f, h, head.forge(t, nil, func(doc map[string]any) { doc["confirmWindowSecs"] = 3600 }).as(t),
		protocol.EventManifestVerifyFailed, string(pki.ReasonBadSignature))
	p.refused(f, h, head.forge(t, foreign, func(map[string]any) {}).as(t), protocol.EventManifestVerifyFailed,
		string(pki.ReasonBadSignature))
	older := first.as(t)
	older.answer = func(answer protocol.CheckinResponse) protocol.CheckinResponse {
		answer.Head = &protocol.HeadRef{Channel: "stable", Hash: first.hash(t)}
		answer.Target.ClosureHash = firstClosure
		return answer
	}
	p.refused(f, h, older, protocol.EventManifestVerifyFailed, "older than the newest release")
	other := f.released("slow")
	p.refused(f, h, &nixLie{
		answer: func(answer protocol.CheckinResponse) protocol.CheckinResponse {
			answer.Head = &protocol.HeadRef{Channel: "stable", Hash: other.hash(t)}
			return answer
		},
		files: map[string][]byte{"/v1/heads/stable": other.body, "/v1/heads/stable/sig": other.sig},
	}, protocol.EventManifestMismatch, "was sent for channel stable")

	// What hangs below a true head.
	p.refused(f, h, &nixLie{answer: func(answer protocol.CheckinResponse) protocol.CheckinResponse {
		answer.Target.ClosureHash = f.declared("web-1")
		return answer
	}}, protocol.EventVerifyMismatch, "the closure signed for this host is "+closure)
	p.refused(f, h, &nixLie{answer: truth, files: map[string][]byte{proofPath: encode(proof("web-1"))}},
		protocol.EventVerifyMismatch, "is of host")
	swapped := proof("db-1")
	swapped.Leaf = []byte(strings.ReplaceAll(string(swapped.Leaf), closure, f.declared("web-1")))
	p.refused(f, h, &nixLie{
		answer: func(answer protocol.CheckinResponse) protocol.CheckinResponse {
			answer.Target.ClosureHash = f.declared("web-1")
			return answer
		},
		files: map[string][]byte{proofPath: encode(swapped)},
	}, protocol.EventManifestVerifyFailed, "inclusion proof")
	p.refused(f, h, &nixLie{answer: func(answer protocol.CheckinResponse) protocol.CheckinResponse {
		answer.Target.RolloutID = strings.Repeat("ab", 32)
		return answer
	}}, protocol.EventManifestMismatch, "which is not that of the head")

	// No head at all, as if the control plane were of version 1.
	headless := func(answer protocol.CheckinResponse) protocol.CheckinResponse {
		answer.Head = nil
		return answer
	}
	p.refused(f, h, &nixLie{answer: headless}, protocol.EventManifestMissing, "sent heads before")

	// A host that accepts version 1 goes by the manifest.
	h.stop()
	f.startAgent(h, "--allow-v1-control-plane")
	rollout := p.truth.Target.RolloutID
	manifest, err := os.ReadFile(f.checkout("releases/" + fleet.ManifestName(rollout)))
	if err != nil {
		t.Fatal(err)
	}
	path := "/v1/rollouts/" + rollout
	forged := nixHeadFiles{body: manifest}.forge(t, foreign, func(doc map[string]any) {})
	p.refused(f, h, &nixLie{answer: headless, files: map[string][]byte{path: forged.body, path + "/sig": forged.sig}},
		protocol.EventManifestVerifyFailed, string(pki.ReasonBadSignature))
	elsewhere, elsewhereSig := f.manifestOf("slow")
	p.refused(f, h, &nixLie{answer: headless, files: map[string][]byte{path: elsewhere, path + "/sig": elsewhereSig}},
		protocol.EventManifestMismatch, "it was advertised as")
	h.stop()
	f.startAgent(h)

	if now := h.switches(t); now != switches {
		t.Errorf("%s began %d switches for lies", h.name, now-switches)
	}

	// With the truth the host goes where the release wants it.
	p.set(false, nil)
	f.converged("web-1", "web-2", "db-1")
}

// manifestOf reads the manifest that a channel's head names.
func (f *nixFleet) manifestOf(channel string) (body, sig []byte) {
	f.t.Helper()
	head, err := fleet.ParseHead(f.released(channel).body)
	if err != nil {
		f.t.Fatal(err)
	}
	file := f.checkout("releases/" + fleet.ManifestName(head.RolloutID))
	if body, err = os.ReadFile(file); err == nil {
		sig, err = os.ReadFile(file + fleet.SignatureSuffix)
	}
	if err != nil {
		f.t.Fatal(err)
	}
	return body, sig
}
