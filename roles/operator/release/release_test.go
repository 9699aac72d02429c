package release

import (
	"bytes"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"nixfleet/nixops/fleet"
	"nixfleet/pki"
	"nixfleet/roles/command"
)

// TestHalfWrittenRelease has a reader meet whole files only, and the artifact
// before its signature.
func TestHalfWrittenRelease(t *testing.T) {
	dir := t.TempDir()
	r := &releaser{cfg: Config{Dir: dir, FleetName: "fleet.resolved.json"}}
	s := &sealed{files: map[string][]byte{}}
	s.add("rollouts/a.json", []byte("body"), []byte("sig"))
	s.add("fleet.resolved.json", []byte("fleet"), []byte("sig"))
	if want := []string{"rollouts/a.json", "rollouts/a.json.sig", "fleet.resolved.json",
		"fleet.resolved.json.sig"}; !slices.Equal(s.names, want) {
		t.Fatalf("order %v", s.names)
	}
	// The disk refuses the second file: what stood there stays whole.
	if err := os.MkdirAll(filepath.Join(dir, "rollouts/a.json.sig/in-the-way"), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "fleet.resolved.json"), []byte("old"), 0o644); err != nil {
		t.Fatal(err)
	}
	if err := r.write(s); err == nil {
		t.Fatal("a failed write went unnoticed")
	}
	if got, _ := os.ReadFile(filepath.Join(dir, "fleet.resolved.json")); string(got) != "old" {
		t.Errorf("the fleet was replaced although its manifest was not written: %q", got)
	}
	left, err := filepath.Glob(filepath.Join(dir, "*", ".*"))
	if err != nil || len(left) > 0 {
		t.Errorf("left behind: %v (%v)", left, err)
	}
}

func TestTwoReleasesOfOneDirectory(t *testing.T) {
	dir := t.TempDir()
	unlock, err := lockDir(dir, false)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := lockDir(dir, false); err == nil || !strings.Contains(err.Error(), "another release") {
		t.Errorf("the second got %v", err)
	}
	unlock()
	unlock, err = lockDir(dir, false)
	if err != nil {
		t.Fatal(err)
	}
	unlock()
}

func TestSelectHosts(t *testing.T) {
	known := []string{"a", "b", "c"}
	for _, c := range []struct{ wanted, want string }{
		{"auto", "a,b,c"}, {"auto:exclude=b", "a,c"}, {"auto:exclude=a,c", "b"}, {"c, a", "c,a"},
		{"d", "error"}, {"auto:exclude=d", "error"}, {"", "error"}, {"auto:exclude=", "error"},
	} {
		got, err := selectHosts(c.wanted, known)
		text := strings.Join(got, ",")
		if err != nil {
			text = "error"
		}
		if text != c.want {
			t.Errorf("%q: %s (%v), want %s", c.wanted, text, err, c.want)
		}
	}
}

// declaration is a fleet of two channels, built already.
const declaration = `{"schemaVersion":1,"hosts":{
"web-01":{"system":"x86_64-linux","tags":[],"channel":"stable","closureHash":"0a1b2c3d4f5g6h7i8j9k0l1m2n3p4q5r-nixos-web","pubkey":null},
"db-01":{"system":"x86_64-linux","tags":[],"channel":"edge","closureHash":"2c3d4f5g6h7i8j9k0l1m2n3p4q5r6s7v-nixos-db","pubkey":null}},
"channels":{"stable":CHANNEL,"edge":CHANNEL},"rolloutPolicies":{"now":{"strategy":"all-at-once","waves":[],"healthGate":{},"onHealthFailure":"halt"}},
"waves":{"stable":[],"edge":[]},"edges":[],"channelEdges":[],"disruptionBudgets":[],
"meta":{"schemaVersion":1,"signedAt":null,"ciCommit":null}}`

const channel = `{"rolloutPolicy":"now","reconcileIntervalMinutes":30,"freshnessWindow":180,"signingIntervalMinutes":60,` +
	`"compliance":{"frameworks":[],"mode":"disabled"}}`

// keyring is Keys of one key.
type keyring struct{ key *pki.PrivateKey }

func (k keyring) SigningKey(string) (*pki.PrivateKey, error)       { return k.key, nil }
func (k keyring) Check(string) error                               { return nil }
func (k keyring) Clear(path string, work func(string) error) error { return work(path) }
func (k keyring) Trust(string) (*pki.Trust, []string, error)       { return nil, nil, os.ErrNotExist }

// forge is a place where releases are made without Nix and without git.
type forge struct {
	t    *testing.T
	cfg  Config
	said bytes.Buffer
}

func newForge(t *testing.T) *forge {
	t.Helper()
	key, err := pki.GenerateKey(pki.AlgorithmEd25519)
	if err != nil {
		t.Fatal(err)
	}
	f := &forge{t: t}
	dir := t.TempDir()
	f.cfg = Config{
		Dir: filepath.Join(dir, "releases"), FleetName: fleet.FleetName, Keys: keyring{key}, Progress: &f.said,
		Source:  Source{Flake: dir, FleetFile: filepath.Join(dir, "fleet.json"), Hosts: allHosts},
		Signing: Signing{KeyFile: "release.key"}, Push: Push{Jobs: 1}, Nix: Nix{Jobs: 1},
		Windows: Windows{Confirm: 6 * time.Minute, Lease: 5 * time.Minute},
	}
	f.declare(strings.ReplaceAll(declaration, "CHANNEL", channel))
	return f
}

func (f *forge) declare(text string) {
	f.t.Helper()
	if err := os.WriteFile(f.cfg.Source.FleetFile, []byte(text), 0o644); err != nil {
		f.t.Fatal(err)
	}
}

func (f *forge) run(change ...func(*Config)) *Summary {
	f.t.Helper()
	s, err := f.try(change...)
	if err != nil {
		f.t.Fatalf("%v\n%s", err, &f.said)
	}
	return s
}

func (f *forge) try(change ...func(*Config)) (*Summary, error) {
	f.t.Helper()
	cfg := f.cfg
	for _, c := range change {
		c(&cfg)
	}
	return Run(f.t.Context(), cfg)
}

// releaser is one that is ready to read the present release.
func (f *forge) releaser() *releaser {
	f.t.Helper()
	r := &releaser{cfg: f.cfg, narrator: newNarrator(&f.said, false), warned: map[string]bool{}}
	var err error
	if r.signer, err = r.newSigner(); err != nil {
		f.t.Fatal(err)
	}
	return r
}

func (f *forge) edit(name, old, new string) {
	f.t.Helper()
	path := filepath.Join(f.cfg.Dir, name)
	text, err := os.ReadFile(path)
	if err != nil || !strings.Contains(string(text), old) {
		f.t.Fatalf("%s has no %q: %v", name, old, err)
	}
	if err := os.WriteFile(path, bytes.Replace(text, []byte(old), []byte(new), 1), 0o644); err != nil {
		f.t.Fatal(err)
	}
}

func resign(c *Config) {
	c.Resign = true
	c.Source.FleetFile = ""
}

func reuse(c *Config) { c.ReuseUnchanged = true }

func TestStages(t *testing.T) {
	f := newForge(t)
	first := f.run()
	if !first.Released || first.Resigned || first.CICommit != nil || len(first.Changed) != 2 || len(first.Channels) != 2 ||
		!first.Channels["stable"].NewRollout {
		t.Errorf("%+v", first)
	}
	// Later than the one before, also within one second; the rollouts stay open.
	second := f.run()
	if !second.SignedAt.After(first.SignedAt.Time) || len(second.Changed) != 0 || second.Channels["stable"].NewRollout ||
		second.Channels["stable"].OpenedAt != first.Channels["stable"].OpenedAt {
		t.Errorf("%+v after %+v", second, first)
	}
	renewed := f.run(resign)
	if !renewed.Resigned || renewed.Channels["edge"].Intent != second.Channels["edge"].Intent ||
		!renewed.SignedAt.After(second.SignedAt.Time) {
		t.Errorf("%+v", renewed)
	}
	dry := f.run(func(c *Config) { c.DryRun = true })
	if !dry.DryRun || dry.Released || len(dry.Channels) != 2 {
		t.Errorf("%+v", dry)
	}
	if now := f.run(reuse); !now.Unchanged || !now.SignedAt.Equal(renewed.SignedAt.Time) {
		t.Errorf("the dry run wrote something: %+v", now)
	}
}

func TestUnchanged(t *testing.T) {
	f := newForge(t)
	f.run()
	if s := f.run(reuse); !s.Unchanged || s.Released {
		t.Fatalf("nothing was changed: %+v", s)
	}
	head := fleet.HeadName("stable")
	for name, change := range map[string]func(){
		"another confirm window": func() { f.cfg.Windows.Confirm = 7 * time.Minute },
		"another lease":          func() { f.cfg.Windows.Lease = 4 * time.Minute },
		"another policy": func() {
			f.declare(strings.Replace(strings.ReplaceAll(declaration, "CHANNEL", channel), `"halt"`, `"rollback-and-halt"`, 1))
		},
		"a signature is gone":   func() { os.Remove(filepath.Join(f.cfg.Dir, head+fleet.SignatureSuffix)) },
		"a head was touched":    func() { f.edit(head, `"leaseSecs":`, `"leaseSecs": `) },
		"a list was added":      func() { f.cfg.Source.Revocations.File = f.list("[]") },
		"a signature is broken": func() { f.edit(fleet.FleetName+fleet.SignatureSuffix, f.firstByte(), "") },
	} {
		change()
		if s := f.run(reuse); s.Unchanged || !s.Released {
			t.Errorf("%s: %+v", name, s)
		}
		if s := f.run(reuse); !s.Unchanged {
			t.Errorf("once more after %s: %+v", name, s)
		}
	}
}

func (f *forge) list(text string) string {
	path := filepath.Join(f.t.TempDir(), "list.json")
	if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
		f.t.Fatal(err)
	}
	return path
}

func (f *forge) firstByte() string {
	sig, err := os.ReadFile(filepath.Join(f.cfg.Dir, fleet.FleetName+fleet.SignatureSuffix))
	if err != nil {
		f.t.Fatal(err)
	}
	return string(sig[:1])
}

func TestWindows(t *testing.T) {
	before := &fleet.Head{ConfirmWindowSecs: 120, LeaseSecs: 60}
	asked := Windows{Confirm: 6 * time.Minute, Lease: 5 * time.Minute}
	both := asked
	both.SetConfirm, both.SetLease = true, true
	for _, c := range []struct {
		w              Windows
		before         *fleet.Head
		resign         bool
		confirm, lease time.Duration
	}{
		{asked, nil, true, 6 * time.Minute, 5 * time.Minute},
		{asked, before, false, 6 * time.Minute, 5 * time.Minute},
		{asked, before, true, 2 * time.Minute, time.Minute},
		{both, before, true, 6 * time.Minute, 5 * time.Minute},
	} {
		if confirm, lease := c.w.after(c.before, c.resign); confirm != c.confirm || lease != c.lease {
			t.Errorf("%+v: %s, %s", c, confirm, lease)
		}
	}
	if (Windows{Confirm: 120*time.Second + time.Millisecond, Lease: time.Minute}).are(before) != true ||
		asked.are(before) {
		t.Error("windows are compared in whole seconds")
	}
}

func TestTimeNeverGoesBack(t *testing.T) {
	now := time.Date(2026, 3, 1, 12, 0, 0, 5e8, time.UTC)
	for name, c := range map[string]struct {
		before string
		want   string
	}{
		"an old one":           {"2026-03-01T11:00:00Z", "2026-03-01T12:00:00Z"},
		"within one second":    {"2026-03-01T12:00:00Z", "2026-03-01T12:00:01Z"},
		"a little ahead":       {"2026-03-01T12:00:30.2Z", "2026-03-01T12:00:31Z"},
		"in the far future":    {"2026-03-01T12:00:31Z", ""},
		"one without any time": {"", "2026-03-01T12:00:00Z"},
	} {
		previous := &fleet.Fleet{}
		if c.before != "" {
			at, err := pki.ParseTimestamp(c.before)
			if err != nil {
				t.Fatal(err)
			}
			previous.Meta.SignedAt = &at
		}
		got, err := timeOf(previous, now)
		if c.want == "" {
			if err == nil || command.HintOf(err) == "" {
				t.Errorf("%s: %s, %v", name, got, err)
			}
			continue
		}
		if err != nil || got.String() != c.want {
			t.Errorf("%s: %s, %v", name, got, err)
		}
	}
}

func TestPreviousHead(t *testing.T) {
	f := newForge(t)
	r := f.releaser()
	if h := r.previousHead(t.Context(), "stable", time.Now()); h != nil {
		t.Errorf("before any release: %+v", h)
	}
	f.run()
	if h := r.previousHead(t.Context(), "stable", time.Now()); h == nil || h.Channel != "stable" {
		t.Errorf("%+v", h)
	}
	f.edit(fleet.HeadName("stable"), `"openedAt":"2`, `"openedAt":"1`)
	if h := r.previousHead(t.Context(), "stable", time.Now()); h != nil ||
		!strings.Contains(f.said.String(), "its rollout begins again") {
		t.Errorf("a head that the fleet did not sign: %+v\n%s", h, &f.said)
	}
	// Where nobody said with which keys to verify, what is there is taken.
	r.signer.slot = nil
	if h := r.previousHead(t.Context(), "stable", time.Now()); h == nil {
		t.Error("without keys the head was refused")
	}
}

func TestResignSignsOnlyWhatVerifies(t *testing.T) {
	f := newForge(t)
	if _, err := f.try(resign); err == nil || command.HintOf(err) == "" {
		t.Errorf("without a release: %v", err)
	}
	f.cfg.Source.Revocations.File = f.list(`[{"hostname":"web-01","notBefore":"2026-03-01T12:00:00Z"}]`)
	f.run()
	keep := f.list("")
	for _, name := range []string{fleet.RevocationsName, fleet.FleetName} {
		path := filepath.Join(f.cfg.Dir, name)
		was, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		f.edit(name, "2026", "2025")
		if _, err := f.try(resign); command.ExitCode(err) != 3 {
			t.Errorf("%s was touched: %v", name, err)
		}
		if err := os.Rename(path, keep); err != nil {
			t.Fatal(err)
		}
		if _, err := f.try(resign); err == nil {
			t.Errorf("%s is gone", name)
		}
		if err := os.WriteFile(path, was, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	f.run(resign)
}

func TestChannelsThatAreGone(t *testing.T) {
	f := newForge(t)
	f.run()
	text := strings.ReplaceAll(declaration, "CHANNEL", channel)
	text = strings.Replace(text, `"channel":"edge"`, `"channel":"stable"`, 1)
	text = strings.Replace(text, `,"edge":`+channel, "", 1)
	f.declare(strings.Replace(text, `,"edge":[]`, "", 1))
	if s := f.run(); len(s.Channels) != 1 {
		t.Errorf("%+v", s.Channels)
	}
	left, err := os.ReadDir(filepath.Join(f.cfg.Dir, fleet.HeadsDir))
	if err != nil || len(left) != 2 || left[0].Name() != "stable.json" {
		t.Errorf("%v, %v", left, err)
	}
}

func TestAListDoesNotVanish(t *testing.T) {
	f := newForge(t)
	f.cfg.Source.Revocations.File = f.list("[]")
	f.run()
	f.cfg.Source.Revocations.File = ""
	if _, err := f.try(); err == nil || !strings.Contains(command.HintOf(err), "--revocations-file") {
		t.Errorf("%v", err)
	}
}

func TestChanges(t *testing.T) {
	a, b := "a", "b"
	old := &fleet.Fleet{Hosts: map[string]*fleet.Host{"same": {ClosureHash: &a}, "gone": {ClosureHash: &a},
		"moved": {ClosureHash: &a}, "none": {}}}
	young := &fleet.Fleet{Hosts: map[string]*fleet.Host{"same": {ClosureHash: &a}, "moved": {ClosureHash: &b},
		"new": {ClosureHash: &b}, "none": {}}}
	want := []HostChange{{"moved", &a, &b}, {"new", nil, &b}, {"gone", &a, nil}}
	if got := changes(old, young); !slices.EqualFunc(got, want, func(x, y HostChange) bool {
		return x.Host == y.Host && command.OrDash(x.From) == command.OrDash(y.From) &&
			command.OrDash(x.To) == command.OrDash(y.To)
	}) {
		t.Errorf("%+v", got)
	}
	if got := changes(nil, young); len(got) != 3 {
		t.Errorf("the first release: %+v", got)
	}
}

func TestLinesAreWholeAndPrefixed(t *testing.T) {
	var out bytes.Buffer
	w := newLineWriter(&out, false, "push web-01: ")
	w.Write([]byte("one\ntw"))
	w.Write([]byte("o\nlast"))
	w.end()
	if want := "push web-01: one\npush web-01: two\npush web-01: last\n"; out.String() != want {
		t.Errorf("%q", &out)
	}
	out.Reset()
	newLineWriter(&out, true, "").Write([]byte("warning: odd\n"))
	if !strings.Contains(out.String(), `"level":"warn"`) || !strings.Contains(out.String(), `"message":"odd"`) {
		t.Errorf("%s", &out)
	}
}
