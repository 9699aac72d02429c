package fleet

import (
	"bytes"
	"errors"
	"io/fs"
	"strings"
	"testing"
	"testing/fstest"
	"time"

	"nixfleet/pki"
)

func TestLoadRelease(t *testing.T) {
	r := newDraft(t).mustLoad()
	if len(r.Channels) != 2 || r.Revocations == nil || r.Nonces == nil {
		t.Fatalf("%d channels, revocations %v, nonces %v", len(r.Channels), r.Revocations, r.Nonces)
	}
	c := r.Channels["stable"]
	if c.Head == nil || c.Head.RolloutID != c.RolloutID || c.Head.HostSetRoot != c.Tree.Root() || c.Head.HostCount != 2 {
		t.Fatalf("head %+v of rollout %s", c.Head, c.RolloutID)
	}
	if c.Head.FreshnessWindow != 1440 || c.Head.ConfirmWindowSecs != 360 || c.Head.LeaseSecs != 300 ||
		c.Head.OnHealthFailure != OnFailureRollback || c.Head.ComplianceMode != ModeEnforce {
		t.Errorf("head %+v", c.Head)
	}
	for host, i := range c.Index {
		if c.Manifest.HostSet[i].Hostname != host {
			t.Errorf("index of %s points to %s", host, c.Manifest.HostSet[i].Hostname)
		}
	}
	if pki.HashHex(c.ManifestFile.Body) != c.RolloutID || len(c.ManifestFile.Sig) != 64 {
		t.Errorf("manifest file hashes to %s, id %s", pki.HashHex(c.ManifestFile.Body), c.RolloutID)
	}
}

// resign puts other bytes under a name, with a good signature over them.
func resign(t *testing.T, files fstest.MapFS, name string, change func(string) string) {
	t.Helper()
	doc := change(string(files[name].Data))
	if doc == string(files[name].Data) {
		t.Fatalf("%s was not changed", name)
	}
	sig, err := ciKey(t).Sign([]byte(doc))
	if err != nil {
		t.Fatal(err)
	}
	files[name] = &fstest.MapFile{Data: []byte(doc)}
	files[name+SignatureSuffix] = &fstest.MapFile{Data: sig}
}

func stableManifest(t *testing.T, files fstest.MapFS) string {
	t.Helper()
	for name, file := range files {
		if strings.HasPrefix(name, ManifestsDir+"/") &&
			strings.Contains(string(file.Data), `"channel":"stable","channelRef"`) {
			return name
		}
	}
	t.Fatal("no manifest of stable")
	return ""
}

// TestReleaseIsRefused: every part of a release is verified by itself and
// against the others (T5: an old signature under changed bytes).
func TestReleaseIsRefused(t *testing.T) {
	sub := func(old, with string) func(string) string {
		return func(doc string) string { return strings.Replace(doc, old, with, 1) }
	}
	for _, c := range []struct {
		name   string
		change func(t *testing.T, files fstest.MapFS)
		reason pki.Reason // of the *pki.VerifyError; empty when there is none
		err    error
	}{
		{"changed fleet under its old signature T5", func(t *testing.T, f fstest.MapFS) {
			f[FleetName].Data = bytes.Replace(f[FleetName].Data, []byte("x86_64-linux"), []byte("riscv6-linux"), 1)
		}, pki.ReasonBadSignature, nil},
		{"changed manifest under its old signature T5", func(t *testing.T, f fstest.MapFS) {
			name := stableManifest(t, f)
			f[name].Data = bytes.Replace(f[name].Data, []byte("0"), []byte("1"), 1)
		}, pki.ReasonBadSignature, nil},
		{"truncated fleet", func(t *testing.T, f fstest.MapFS) {
			f[FleetName].Data = f[FleetName].Data[:len(f[FleetName].Data)/2]
		}, pki.ReasonParse, nil},
		{"empty fleet", func(t *testing.T, f fstest.MapFS) { f[FleetName].Data = nil }, pki.ReasonParse, nil},
		{"signature cut short", func(t *testing.T, f fstest.MapFS) {
			f[FleetName+SignatureSuffix].Data = f[FleetName+SignatureSuffix].Data[:63]
		}, pki.ReasonBadSignature, nil},
		{"signature with a newline", func(t *testing.T, f fstest.MapFS) {
			f[FleetName+SignatureSuffix].Data = append(bytes.Clone(f[FleetName+SignatureSuffix].Data), '\n')
		}, pki.ReasonBadSignature, nil},
		{"endless signature", func(t *testing.T, f fstest.MapFS) {
			f[FleetName+SignatureSuffix].Data = make([]byte, maxSignatureFile+1)
		}, "", pki.ErrSize},
		{"repeated key in the fleet", func(t *testing.T, f fstest.MapFS) {
			resign(t, f, FleetName, sub(`{"channelEdges"`, `{"hosts":{},"channelEdges"`))
		}, pki.ReasonCanonicalize, pki.ErrDuplicateKey},
		{"other schema", func(t *testing.T, f fstest.MapFS) {
			resign(t, f, FleetName, sub(`"schemaVersion":1,"waves"`, `"schemaVersion":2,"waves"`))
		}, pki.ReasonSchemaVersion, nil},
		{"closure that is a bare hash C3", func(t *testing.T, f fstest.MapFS) {
			resign(t, f, FleetName, sub("-nixos-system-web-02-25.11", ""))
		}, "", ErrMembers},
		{"closure that climbs out of the store", func(t *testing.T, f fstest.MapFS) {
			resign(t, f, FleetName, sub("0a1b2c3d4f5g6h7i8j9k0l1m2n3p4q5r-nixos", "../../tmp/evil"))
		}, "", ErrMembers},
		{"undeclared channel", func(t *testing.T, f fstest.MapFS) {
			resign(t, f, FleetName, sub(`"channel":"edge","closureHash"`, `"channel":"egde","closureHash"`))
		}, "", ErrMembers},
		{"undeclared policy", func(t *testing.T, f fstest.MapFS) {
			resign(t, f, FleetName, sub(`"rolloutPolicy":"staged"`, `"rolloutPolicy":"stagde"`))
		}, "", nil},
		{"other revocation list, well signed", func(t *testing.T, f fstest.MapFS) {
			resign(t, f, RevocationsName, sub("key exposed", "un-exposed"))
		}, "", ErrMembers},
		{"missing revocation list", func(t *testing.T, f fstest.MapFS) { delete(f, RevocationsName) }, "", fs.ErrNotExist},
		{"missing nonce signature", func(t *testing.T, f fstest.MapFS) { delete(f, NoncesName+SignatureSuffix) }, "",
			fs.ErrNotExist},
		{"manifest of other content, well signed", func(t *testing.T, f fstest.MapFS) {
			resign(t, f, stableManifest(t, f), sub(`"waveIndex":1`, `"waveIndex":0`))
		}, pki.ReasonMismatch, ErrMembers},
		{"missing manifest", func(t *testing.T, f fstest.MapFS) { delete(f, stableManifest(t, f)) }, "", fs.ErrNotExist},
		{"missing manifest signature", func(t *testing.T, f fstest.MapFS) { delete(f, stableManifest(t, f)+SignatureSuffix) },
			"", fs.ErrNotExist},
		{"one head of two", func(t *testing.T, f fstest.MapFS) { delete(f, HeadName("edge")) }, "", ErrMembers},
		{"head of another channel", func(t *testing.T, f fstest.MapFS) {
			f[HeadName("stable")], f[HeadName("stable")+SignatureSuffix] = f[HeadName("edge")],
				f[HeadName("edge")+SignatureSuffix]
		}, "", ErrMembers},
		{"head that is a manifest", func(t *testing.T, f fstest.MapFS) {
			name := stableManifest(t, f)
			f[HeadName("stable")], f[HeadName("stable")+SignatureSuffix] = f[name], f[name+SignatureSuffix]
		}, pki.ReasonParse, pki.ErrShape},
	} {
		t.Run(c.name, func(t *testing.T) {
			files := clone(newDraft(t).sign())
			c.change(t, files)
			r, err := load(t, files)
			if err == nil {
				t.Fatalf("accepted: %+v", r)
			}
			if c.err != nil && !errors.Is(err, c.err) {
				t.Errorf("%v is not %v", err, c.err)
			}
			var refused *pki.VerifyError
			if errors.As(err, &refused); c.reason != "" && (refused == nil || refused.Reason != c.reason) {
				t.Errorf("%v: reason is not %s", err, c.reason)
			}
		})
	}
}

// TestHeadMustAgree: a head is signed by the same key, so every member of it
// that the fleet document decides must be the fleet document's.
func TestHeadMustAgree(t *testing.T) {
	for member, change := range map[string]func(*Head){
		"rolloutId":         func(h *Head) { h.RolloutID = strings.Repeat("0", 64) },
		"channelRef":        func(h *Head) { h.ChannelRef = "main" },
		"displayName":       func(h *Head) { h.DisplayName = "stable@00000000" },
		"fleetResolvedHash": func(h *Head) { h.FleetResolvedHash = strings.Repeat("0", 64) },
		"intent":            func(h *Head) { h.Intent = strings.Repeat("0", 64) },
		"hostSetRoot":       func(h *Head) { h.HostSetRoot = strings.Repeat("0", 64) },
		"hostCount":         func(h *Head) { h.HostCount++ },
		"freshnessWindow":   func(h *Head) { h.FreshnessWindow *= 100 },
		"confirmWindowSecs": func(h *Head) { h.ConfirmWindowSecs = 0 },
		"leaseSecs":         func(h *Head) { h.LeaseSecs = 0 },
		"onHealthFailure":   func(h *Head) { h.OnHealthFailure = OnFailureHalt },
		"complianceMode":    func(h *Head) { h.ComplianceMode = ModeDisabled },
		"openedAt":          func(h *Head) { h.OpenedAt = pki.At(h.Meta.SignedAt.Add(time.Second)) },
		"meta.signedAt":     func(h *Head) { at := pki.At(h.Meta.SignedAt.Add(time.Second)); h.Meta.SignedAt = &at },
	} {
		t.Run(member, func(t *testing.T) {
			d := newDraft(t)
			files := d.sign()
			h, err := ParseHead(files[HeadName("stable")].Data)
			if err != nil {
				t.Fatal(err)
			}
			change(h)
			d.put(files, HeadName("stable"), h)
			if _, err := load(t, files); !errors.Is(err, ErrMembers) || !strings.Contains(err.Error(), member) {
				t.Errorf("%v: not refused for %s", err, member)
			}
		})
	}
}

// TestAgeOfReleases: boundaries of the window, and T8 (future-dated artifacts).
func TestAgeOfReleases_T8(t *testing.T) {
	files := newDraft(t).sign()
	window := time.Hour
	for _, c := range []struct {
		after  time.Duration
		reason pki.Reason
	}{
		{window + pki.ClockSlack, ""},
		{window + pki.ClockSlack + 1, pki.ReasonStale},
		{-pki.ClockSlack, ""},
		{-pki.ClockSlack - 1, pki.ReasonFutureDated},
	} {
		_, err := LoadRelease(files, LoadOptions{Trust: trustOf(ciKey(t)), Now: signingTime.Add(c.after), Window: window})
		var refused *pki.VerifyError
		if errors.As(err, &refused); c.reason == "" && err != nil ||
			c.reason != "" && (refused == nil || refused.Reason != c.reason) {
			t.Errorf("%s after signing: %v, want %q", c.after, err, c.reason)
		}
	}
}

func TestRejectBefore(t *testing.T) {
	files := newDraft(t).sign()
	trust := trustOf(ciKey(t))
	at := pki.At(signingTime)
	trust.CIReleaseKey.RejectBefore = &at
	o := LoadOptions{Trust: trust, Now: signingTime, Window: month}
	if _, err := LoadRelease(files, o); err != nil {
		t.Errorf("signed at rejectBefore: %v", err)
	}
	at = pki.At(signingTime.Add(1))
	var refused *pki.VerifyError
	if _, err := LoadRelease(files, o); !errors.As(err, &refused) || refused.Reason != pki.ReasonRejectBefore {
		t.Errorf("signed before rejectBefore: %v", err)
	}
}

func TestListsOfReleases(t *testing.T) {
	o := LoadOptions{Trust: trustOf(ciKey(t)), Now: signingTime, Window: month}
	without := newDraft(t)
	without.revocations, without.nonces = nil, nil
	files := without.sign()
	if r, err := LoadRelease(files, o); err != nil || r.Revocations != nil {
		t.Errorf("a release that says it has no lists: %v", err)
	}
	o.RequireRevocations = true
	if _, err := LoadRelease(files, o); !errors.Is(err, ErrMembers) {
		t.Errorf("required and declared absent: %v", err)
	}
	without.members = false
	if _, err := LoadRelease(without.sign(), o); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("required and missing: %v", err)
	}

	// A list that lies about without being the release's is not its list.
	strange := newDraft(t).sign()
	files[RevocationsName], files[RevocationsName+SignatureSuffix] = strange[RevocationsName],
		strange[RevocationsName+SignatureSuffix]
	o.RequireRevocations = false
	if r, err := LoadRelease(files, o); err != nil || r.Revocations != nil || r.RevocationsFile.Body != nil {
		t.Errorf("a list that the release does not name: %v, taken %v", err, r)
	}
}

// TestOldManifestsStayServable: manifests of past releases lie beside the
// current ones and disturb nothing.
func TestOldManifestsStayServable(t *testing.T) {
	old := newDraft(t).sign()
	name := stableManifest(t, old)
	id := strings.TrimSuffix(strings.TrimPrefix(name, ManifestsDir+"/"), ".json")
	files := newDraft(t).at(signingTime.Add(time.Minute)).sign()
	if files[name] != nil {
		t.Fatal("signing anew did not change the id")
	}
	files[name], files[name+SignatureSuffix] = old[name], old[name+SignatureSuffix]
	files[ManifestsDir+"/notes.txt"] = &fstest.MapFile{Data: []byte("hello")}
	if _, err := load(t, files); err != nil {
		t.Fatal(err)
	}
	file, err := ReadManifest(files, id)
	if err != nil || !bytes.Equal(file.Body, old[name].Data) {
		t.Fatalf("old manifest: %v", err)
	}
	for _, bad := range []string{"", "../fleet.resolved", strings.ToUpper(id), id + "\n", id[:63],
		strings.Repeat("0", 64)} {
		if _, err := ReadManifest(files, bad); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("id %q: %v", bad, err)
		}
	}
	files[name] = &fstest.MapFile{Data: append(bytes.Clone(old[name].Data[:len(old[name].Data)-1]), ' ', '}', '\n')}
	if _, err := ReadManifest(files, id); err != nil {
		t.Errorf("the id is of the canonical form: %v", err)
	}
	files[name] = &fstest.MapFile{Data: []byte(`{}`)}
	if _, err := ReadManifest(files, id); !errors.Is(err, ErrMembers) {
		t.Errorf("other bytes: %v", err)
	}
	files[name] = old[name]
	delete(files, name+SignatureSuffix)
	if _, err := ReadManifest(files, id); !errors.Is(err, ErrMembers) {
		t.Errorf("without signature: %v", err)
	}
}

func TestManifestsElsewhere(t *testing.T) {
	d := newDraft(t)
	d.heads = false
	files := d.sign()
	body, sig := files[stableManifest(t, files)].Data, files[stableManifest(t, files)+SignatureSuffix].Data
	for name := range files {
		if strings.HasPrefix(name, ManifestsDir) {
			delete(files, name)
		}
	}
	slot := &trustOf(d.key).CIReleaseKey
	r, err := LoadRelease(files, LoadOptions{Trust: trustOf(d.key), Now: signingTime, Window: month,
		ManifestsElsewhere: true})
	if err != nil {
		t.Fatal(err)
	}
	c := r.Channels["stable"]
	if c.ManifestFile.Body != nil || c.Manifest == nil {
		t.Fatalf("channel %+v", c)
	}
	m, file, err := VerifyManifest(slot, c.RolloutID, body, sig, signingTime, time.Hour)
	if err != nil || m.Channel != "stable" || file.Hash != c.RolloutID {
		t.Fatalf("fetched on demand: %v", err)
	}
	var refused *pki.VerifyError
	if _, _, err := VerifyManifest(slot, r.Channels["edge"].RolloutID, body, sig, signingTime, time.Hour); !errors.As(err,
		&refused) || refused.Reason != pki.ReasonMismatch {
		t.Errorf("under another id: %v", err)
	}
}

// TestUnknownMembersKeepTheirBytes_T6: what is hashed is what came, so that a
// member of a later version changes nothing for this one.
func TestUnknownMembersKeepTheirBytes_T6(t *testing.T) {
	doc := []byte(strings.Replace(string(vector(t, "manifest-stable.json")), `{"channel"`,
		`{"aNewMember":[1,2],"channel"`, 1))
	sig, err := ciKey(t).Sign(doc)
	if err != nil {
		t.Fatal(err)
	}
	m, file, err := VerifyManifest(&trustOf(ciKey(t)).CIReleaseKey, pki.HashHex(doc), doc, sig, signingTime, time.Hour)
	if err != nil || m.Channel != "stable" || file.Hash == stableVectorID {
		t.Errorf("%v, hash %s", err, file.Hash)
	}
}

func TestEntryOfManifestAndHead_T2(t *testing.T) {
	r := newDraft(t).mustLoad()
	c := r.Channels["stable"]
	e, err := c.Manifest.Entry("db-01")
	if err != nil || e.WaveIndex != 1 || !strings.HasPrefix(e.TargetClosure, "2c3d4f5g6h7i8j9k0l1m2n3p4q5r6s7v-") {
		t.Fatalf("%+v, %v", e, err)
	}
	if _, err := c.Manifest.Entry("web-01"); !errors.Is(err, ErrNotNamed) {
		t.Errorf("a host of another channel: %v", err)
	}
	twice := *c.Manifest
	twice.HostSet = append(twice.HostSet[:len(twice.HostSet):len(twice.HostSet)],
		HostEntry{Hostname: "db-01", TargetClosure: e.TargetClosure})
	if _, err := twice.Entry("db-01"); !errors.Is(err, ErrNotNamed) {
		t.Errorf("a host that is named twice: %v", err)
	}
	loose := *c.Manifest
	loose.HostSet = []HostEntry{{Hostname: "db-01", TargetClosure: "../../etc"}}
	if _, err := loose.Entry("db-01"); !errors.Is(err, ErrNotNamed) {
		t.Errorf("a closure that is not a base name: %v", err)
	}

	i := c.Index["db-01"]
	path, err := c.Tree.Proof(i)
	if err != nil {
		t.Fatal(err)
	}
	if got, err := c.Head.Entry("db-01", Leaf(e), i, path); err != nil || got != e {
		t.Errorf("%+v, %v", got, err)
	}
	other := c.Manifest.HostSet[c.Index["web-02"]]
	swapped := e
	swapped.TargetClosure = other.TargetClosure
	for name, try := range map[string]func() (HostEntry, error){
		"another closure": func() (HostEntry, error) { return c.Head.Entry("db-01", Leaf(swapped), i, path) },
		"another host's leaf": func() (HostEntry, error) {
			return c.Head.Entry("db-01", Leaf(other), c.Index["web-02"], path)
		},
		"for another host": func() (HostEntry, error) { return c.Head.Entry("web-02", Leaf(e), i, path) },
		"another index":    func() (HostEntry, error) { return c.Head.Entry("db-01", Leaf(e), 1-i, path) },
		"index below zero": func() (HostEntry, error) { return c.Head.Entry("db-01", Leaf(e), -1, path) },
		"no path":          func() (HostEntry, error) { return c.Head.Entry("db-01", Leaf(e), i, nil) },
		"another head":     func() (HostEntry, error) { return r.Channels["edge"].Head.Entry("db-01", Leaf(e), i, path) },
		"garbage":          func() (HostEntry, error) { return c.Head.Entry("db-01", []byte(`{`), i, path) },
	} {
		if got, err := try(); err == nil {
			t.Errorf("%s: accepted as %+v", name, got)
		}
	}
}
