package sim

import (
	"bytes"
	"crypto/ed25519"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"nixfleet/nixops/fleet"
	"nixfleet/nixops/sim"
	"nixfleet/pki"
)

const (
	suffix        = "fleet.test"
	confirmWindow = 6 * time.Minute
	lease         = 5 * time.Minute
	window        = 3 * time.Hour // in which a release is fresh
	// century is longer than any scenario.
	century = 100 * 365 * 24 * time.Hour
)

// forge holds the keys of a fleet, its declaration and its releases.
type forge struct {
	w        *world
	dir      string // of releases
	cache    string
	ci, org  *pki.PrivateKey
	root, ca *pki.CA
	caKey    *pki.PrivateKey

	fleet    *fleet.Fleet
	heads    map[string]*fleet.Head
	signed   time.Time
	system   map[string]int // host -> number of its system
	releases []signedRelease
	bad      map[string]bool // closures that fail
}

// signedRelease is what one release declares.
type signedRelease struct {
	at      time.Time
	wanted  map[string]string // host -> closure
	files   map[string][]byte
	ids     map[string]string // rollout id -> intent
	entries map[string]place  // host -> where it stands
	intents map[string]string // channel -> intent
}

// place is a host's entry in a manifest.
type place struct {
	manifest *fleet.Manifest
	at       int
	intent   string
}

func newForge(w *world) *forge {
	f := &forge{w: w, dir: w.path("releases"), cache: w.path("cache"), heads: map[string]*fleet.Head{},
		system: map[string]int{}, bad: map[string]bool{}}
	for _, dir := range []string{f.dir, f.cache} {
		w.must(os.MkdirAll(dir, 0o700))
	}
	var err error
	f.ci, f.org = w.seededKey("ci"), w.seededKey("organization")
	// Hosts whose clocks are behind have to believe them, too.
	f.root, _, err = pki.NewFleetRoot("root", time.Now().Add(-24*time.Hour), century)
	w.must(err)
	f.ca, f.caKey, err = f.root.NewIssuingCA(suffix, time.Now().Add(-24*time.Hour), century)
	w.must(err)
	f.declare()
	return f
}

func name(host int) string { return fmt.Sprintf("h%02d", host) }

func closureOf(host string, n int) string {
	return fmt.Sprintf("%032d-nixos-system-%s-%d", n, host, n)
}

func (f *forge) trust() []byte {
	ci, org := f.ci.Public(), f.org.Public()
	doc, err := (&pki.Trust{SchemaVersion: 1, CIReleaseKey: pki.KeySlot{Current: &ci},
		OrgRootKey: &pki.KeySlot{Current: &org}}).Marshal()
	f.w.must(err)
	return doc
}

// declare writes the fleet of the scenario down.
func (f *forge) declare() {
	s, commit := f.w.scenario, strings.Repeat("c", 40)
	f.fleet = &fleet.Fleet{
		SchemaVersion: 1, Hosts: map[string]*fleet.Host{}, Channels: map[string]fleet.Channel{},
		RolloutPolicies: map[string]fleet.Policy{},
		Waves:           map[string][]fleet.Wave{}, Edges: []fleet.Edge{}, ChannelEdges: []fleet.ChannelEdge{},
		DisruptionBudgets: []fleet.Budget{},
		Meta:              fleet.Meta{SchemaVersion: 1, CICommit: &commit},
	}
	for i, c := range s.channels {
		channel := fmt.Sprint("c", i)
		var failure fleet.FailurePolicy = fleet.OnFailureHalt
		if c.recall {
			failure = fleet.OnFailureRollback
		}
		f.fleet.Channels[channel] = fleet.Channel{
			RolloutPolicy: channel, ReconcileIntervalMinutes: 1, FreshnessWindow: uint32(window / time.Minute),
			SigningIntervalMinutes: 60,
			Compliance:             fleet.Compliance{Frameworks: []string{}, Mode: c.comply},
		}
		f.fleet.RolloutPolicies[channel] = fleet.Policy{Strategy: "staged", Waves: []fleet.PolicyWave{},
			OnHealthFailure: failure}
		if c.least > 0 {
			policy := f.fleet.RolloutPolicies[channel]
			policy.FailureThreshold = &fleet.FailureThreshold{MinHosts: &c.least}
			f.fleet.RolloutPolicies[channel] = policy
		}
	}
	for i, b := range s.budgets {
		budget := fleet.Budget{Selector: fleet.Selector{Tags: []string{fmt.Sprint("b", i)}, TagsAny: []string{},
			Hosts: []string{}}}
		if b.pct > 0 {
			budget.MaxInFlightPct = &b.pct
		} else {
			budget.MaxInFlight = &b.max
		}
		if b.confirmed {
			budget.SlotUntil = fleet.SlotConfirmed
		}
		f.fleet.DisruptionBudgets = append(f.fleet.DisruptionBudgets, budget)
	}
	if s.edged {
		for i := range s.channels {
			f.fleet.Edges = append(f.fleet.Edges, fleet.Edge{Gates: name(i), Gated: name(i + len(s.channels))})
		}
	}
	if s.chained {
		edge := fleet.ChannelEdge{Gates: "c0", Gated: "c1"}
		if s.opening {
			edge.Holds = fleet.HoldsOpening
		}
		f.fleet.ChannelEdges = append(f.fleet.ChannelEdges, edge)
	}
	for n := range s.hosts {
		host := &fleet.Host{System: "x86_64-linux", Tags: []string{}, Channel: fmt.Sprint("c", n%len(s.channels))}
		for i, b := range s.budgets {
			if n%b.every == 0 {
				host.Tags = append(host.Tags, fmt.Sprint("b", i))
			}
		}
		f.fleet.Hosts[name(n)] = host
	}
}

// member says which hosts a budget counts, and how many it allows at once.
func (f *forge) member(b budgetPlan, index int) (hosts []string, allowed int) {
	for host, h := range f.fleet.Hosts {
		if slices.Contains(h.Tags, fmt.Sprint("b", index)) {
			hosts = append(hosts, host)
		}
	}
	if allowed = int(b.max); b.pct > 0 {
		allowed = max(1, len(hosts)*int(b.pct)/100)
	}
	return hosts, allowed
}

// compliant and its opposite are what collectors find.
const (
	compliant    = `{"timestamp":"NOW","controls":[{"control":"disks","status":"compliant"}]}`
	notCompliant = `{"timestamp":"NOW","controls":[{"control":"disks","status":"non-compliant"}]}`
)

// advance declares the next system of every host; those for which fails says so
// get one that does not work, those for which boots does one that only a boot
// brings.
func (f *forge) advance(fails, boots func(host string) bool) {
	web := []string{"web.service"}
	broken := []sim.Closure{
		{After: sim.After{FailedUnits: web}}, {After: sim.After{LateUnits: web, LateAfter: 5 * time.Second}},
		{After: sim.After{CrashLoop: web, CrashEvery: 3 * time.Second}},
		{Script: sim.Script{ExitCode: 2}}, {Script: sim.Script{BootExit: 1}}, {After: sim.After{CutsNetwork: true}},
		{After: sim.After{Evidence: notCompliant}}, {After: sim.After{LateUnits: web, LateAfter: 3 * time.Minute}},
	}
	if f.w.scenario.ill {
		broken = broken[len(broken)-1:]
	}
	for _, host := range slices.Sorted(maps.Keys(f.fleet.Hosts)) {
		f.system[host]++
		closure := closureOf(host, f.system[host])
		r := stream(f.w.scenario.seed, "closure", closure)
		c := sim.Closure{}
		if fails != nil && fails(host) {
			c = broken[r.IntN(len(broken))]
			f.bad[closure] = true
		}
		if c.After.LateAfter == 3*time.Minute { // about as long as the shortest soak
			c.After.LateAfter = time.Duration(100+r.IntN(90)) * time.Second
		}
		if boots != nil && boots(host) {
			c.Script.ExitCode = 100
		}
		if c.After.Evidence == "" {
			c.After.Evidence = compliant
		}
		c.Agent, c.TrustJSON, c.Cache.Size = "self", string(f.trust()), 1
		c.Script.SwitchTime, c.Cache.FetchTime = time.Duration(1+r.IntN(int(f.w.scenario.turn/time.Second)))*time.Second,
			time.Duration(r.Int64N(int64(f.w.scenario.fetch)))
		f.w.must(sim.WriteClosure(f.cache, closure, c))
		f.fleet.Hosts[host].ClosureHash = &closure
	}
	f.publish()
}

// waves are drawn over the channel's hosts of the moment.
func (f *forge) waves() {
	for i, c := range f.w.scenario.channels {
		channel := fmt.Sprint("c", i)
		waves := make([]fleet.Wave, c.waves)
		for w := range waves {
			soak := uint32(c.soak[w] / time.Second)
			waves[w] = fleet.Wave{
				Hosts: []string{}, SoakMinutes: (soak + 59) / 60, SoakSeconds: &soak, MayBeEmpty: f.w.scenario.maybe,
			}
		}
		for n, host := range slices.Sorted(maps.Keys(f.fleet.Hosts)) {
			if f.fleet.Hosts[host].Channel == channel {
				w := &waves[(n/len(f.w.scenario.channels))%c.waves]
				w.Hosts = append(w.Hosts, host)
			}
		}
		f.fleet.Waves[channel] = slices.DeleteFunc(waves, func(w fleet.Wave) bool { return len(w.Hosts) == 0 })
	}
}

// publish signs what is declared and writes it, signatures last.
func (f *forge) publish() {
	f.waves()
	f.signed = latest(f.signed.Add(time.Second), time.Now().Truncate(time.Second))
	r := signedRelease{at: time.Now(), wanted: map[string]string{}, files: map[string][]byte{}, ids: map[string]string{},
		entries: map[string]place{}, intents: map[string]string{}}
	put := func(file string, v any) string {
		doc, err := pki.Marshal(v)
		f.w.must(err)
		sig, err := f.ci.Sign(doc)
		f.w.must(err)
		r.files[file], r.files[file+fleet.SignatureSuffix] = doc, sig
		return pki.HashHex(doc)
	}
	at := pki.At(f.signed)
	revocations := put(fleet.RevocationsName,
		&fleet.Revocations{SchemaVersion: 1, Revocations: []fleet.Revocation{},
			Meta: fleet.Meta{SchemaVersion: 1, SignedAt: &at}})
	f.fleet.Meta.SignedAt, f.fleet.Members = &at, &fleet.Members{Revocations: &revocations}
	hash := put(fleet.FleetName, f.fleet)
	for channel := range f.fleet.Channels {
		m, any, err := fleet.Project(f.fleet, hash, channel)
		f.w.must(err)
		if !any {
			continue
		}
		id, _, err := fleet.RolloutID(m)
		f.w.must(err)
		put(fleet.ManifestName(id), m)
		head, err := fleet.ProjectHead(f.fleet, m, id, f.heads[channel], confirmWindow, lease)
		f.w.must(err)
		put(fleet.HeadName(channel), head)
		f.heads[channel] = head
		r.ids[id], r.intents[channel] = head.Intent, head.Intent
		for i, e := range m.HostSet {
			r.entries[e.Hostname] = place{m, i, head.Intent}
		}
	}
	for host, h := range f.fleet.Hosts {
		r.wanted[host] = *h.ClosureHash
	}
	for _, sig := range []bool{false, true} {
		for _, file := range slices.Sorted(maps.Keys(r.files)) {
			if strings.HasSuffix(file, fleet.SignatureSuffix) != sig {
				continue
			}
			path := filepath.Join(f.dir, file)
			f.w.must(os.MkdirAll(filepath.Dir(path), 0o700))
			f.w.must(os.WriteFile(path+".tmp", r.files[file], 0o600))
			f.w.must(os.Rename(path+".tmp", path))
		}
	}
	f.w.locked(func() { f.releases = append(f.releases, r) })
}

func latest(a, b time.Time) time.Time {
	if a.After(b) {
		return a
	}
	return b
}

// newest is the last release that wants this closure on this host; -1: none.
// It needs the world's lock.
func (f *forge) newest(host, closure string) int {
	for i := len(f.releases) - 1; i >= 0; i-- {
		if f.releases[i].wanted[host] == closure {
			return i
		}
	}
	return -1
}

// intentOf is that of a rollout id. It needs the world's lock.
func (f *forge) intentOf(id string) string {
	for i := len(f.releases) - 1; i >= 0; i-- {
		if intent, ok := f.releases[i].ids[id]; ok {
			return intent
		}
	}
	return ""
}

// rolloutOf is the id of a channel's newest rollout. It needs the world's lock.
func (f *forge) rolloutOf(channel string) string {
	for _, p := range f.releases[len(f.releases)-1].entries {
		if p.manifest.Channel == channel {
			if id, _, err := fleet.RolloutID(p.manifest); err == nil {
				return id
			}
		}
	}
	return ""
}

// token admits a host once.
func (f *forge) token(host string, key *pki.PrivateKey) []byte {
	now := time.Now().Truncate(time.Second)
	token, err := pki.MintToken(f.org, pki.Claims{
		Hostname: host, ExpectedPubkeyFingerprint: pki.Fingerprint(key.Crypto().Public().(ed25519.PublicKey)),
		IssuedAt: pki.At(now.Add(-time.Minute)), ExpiresAt: pki.At(now.Add(24 * time.Hour)), Nonce: pki.NewNonce(),
	})
	f.w.must(err)
	doc, err := pki.Marshal(token)
	f.w.must(err)
	return doc
}

func certPEM(c *x509.Certificate) []byte {
	var b bytes.Buffer
	// A buffer takes all that is written.
	_ = pem.Encode(&b, &pem.Block{Type: "CERTIFICATE", Bytes: c.Raw})
	return b.Bytes()
}

func (f *forge) keyPEM(k *pki.PrivateKey) []byte {
	text, err := k.MarshalPEM()
	f.w.must(err)
	return text
}
