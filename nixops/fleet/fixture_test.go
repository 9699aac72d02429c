package fleet

import (
	"bytes"
	"fmt"
	"maps"
	"os"
	"strings"
	"testing"
	"testing/fstest"
	"time"

	"nixfleet/pki"
)

// The keys and documents of the contract's vectors.
var (
	signingTime = time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)
	month       = 30 * 24 * time.Hour
)

func seed(t testing.TB, b byte) *pki.PrivateKey {
	t.Helper()
	k, err := pki.ParsePrivateKey(bytes.Repeat([]byte{b}, 32))
	if err != nil {
		t.Fatal(err)
	}
	return k
}

func ciKey(t testing.TB) *pki.PrivateKey { return seed(t, 0x11) }

func trustOf(k *pki.PrivateKey) *pki.Trust {
	public := k.Public()
	return &pki.Trust{SchemaVersion: 1, CIReleaseKey: pki.KeySlot{Current: &public}}
}

func vector(t testing.TB, name string) []byte {
	t.Helper()
	doc, err := os.ReadFile("testdata/" + name)
	if err != nil {
		t.Fatal(err)
	}
	canonical, err := pki.Canonicalize(doc)
	if err != nil {
		t.Fatal(err)
	}
	return canonical
}

func vectorFleet(t testing.TB) (*Fleet, string) {
	t.Helper()
	doc := vector(t, "fleet.json")
	f, err := ParseFleet(doc)
	if err != nil {
		t.Fatal(err)
	}
	return f, pki.HashHex(doc)
}

// draft is a release before it is signed. Tests bend it and sign.
type draft struct {
	t           testing.TB
	key         *pki.PrivateKey
	fleet       *Fleet
	revocations *Revocations
	nonces      *BootstrapNonces
	members     bool
	heads       bool
	previous    *Release // whose heads hand on their openedAt
	alter       map[string]func([]byte) []byte
}

func newDraft(t testing.TB) *draft {
	f, _ := vectorFleet(t)
	revocations, err := ParseRevocations(vector(t, "revocations.json"))
	if err != nil {
		t.Fatal(err)
	}
	nonces, err := ParseNonces(vector(t, "nonces.json"))
	if err != nil {
		t.Fatal(err)
	}
	return &draft{t: t, key: ciKey(t), fleet: f, revocations: revocations, nonces: nonces, members: true, heads: true,
		alter: map[string]func([]byte) []byte{}}
}

// at signs the release at another time.
func (d *draft) at(signed time.Time) *draft {
	at := pki.At(signed)
	d.fleet.Meta.SignedAt = &at
	if d.revocations != nil {
		d.revocations.Meta.SignedAt = &at
	}
	if d.nonces != nil {
		d.nonces.Meta.SignedAt = &at
	}
	return d
}

func (d *draft) put(files fstest.MapFS, name string, v any) (hash string) {
	d.t.Helper()
	doc, err := pki.Marshal(v)
	if err != nil {
		d.t.Fatal(err)
	}
	if alter := d.alter[name]; alter != nil {
		doc = alter(doc)
	}
	sig, err := d.key.Sign(doc)
	if err != nil {
		d.t.Fatal(err)
	}
	files[name] = &fstest.MapFile{Data: doc}
	files[name+SignatureSuffix] = &fstest.MapFile{Data: sig}
	return pki.HashHex(doc)
}

func (d *draft) sign() fstest.MapFS {
	d.t.Helper()
	files := fstest.MapFS{}
	members := &Members{}
	if d.revocations != nil {
		hash := d.put(files, RevocationsName, d.revocations)
		members.Revocations = &hash
	}
	if d.nonces != nil {
		hash := d.put(files, NoncesName, d.nonces)
		members.BootstrapNonces = &hash
	}
	d.fleet.Members = nil
	if d.members {
		d.fleet.Members = members
	}
	fleetHash := d.put(files, FleetName, d.fleet)
	for channel := range d.fleet.Channels {
		m, any, err := Project(d.fleet, fleetHash, channel)
		if err != nil {
			d.t.Fatal(err)
		}
		if !any {
			continue
		}
		id, _, err := RolloutID(m)
		if err != nil {
			d.t.Fatal(err)
		}
		d.put(files, ManifestName(id), m)
		if !d.heads {
			continue
		}
		var previous *Head
		if d.previous != nil && d.previous.Channels[channel] != nil {
			previous = d.previous.Channels[channel].Head
		}
		h, err := ProjectHead(d.fleet, m, id, previous, 6*time.Minute, 5*time.Minute)
		if err != nil {
			d.t.Fatal(err)
		}
		d.put(files, HeadName(channel), h)
	}
	return files
}

func (d *draft) load() (*Release, error) { return load(d.t, d.sign()) }

func (d *draft) mustLoad() *Release {
	d.t.Helper()
	r, err := d.load()
	if err != nil {
		d.t.Fatal(err)
	}
	return r
}

func load(t testing.TB, files fstest.MapFS) (*Release, error) {
	return LoadRelease(files, LoadOptions{Trust: trustOf(ciKey(t)), Now: signingTime.Add(time.Hour), Window: month})
}

// largeFleet has n hosts on one channel in three waves, each with a key.
func largeFleet(t testing.TB, n int) *Fleet {
	t.Helper()
	f, _ := vectorFleet(t)
	line := f.Hosts["web-01"].Pubkey
	f.Hosts = map[string]*Host{}
	waves := make([]Wave, 3)
	for i := range n {
		name := hostName(i)
		closure := strings.Repeat("0", 26) + fmt.Sprintf("%06d", i) + "-nixos-system-" + name + "-25.11"
		f.Hosts[name] = &Host{System: "x86_64-linux", Tags: []string{"web"}, Channel: "stable", ClosureHash: &closure,
			Pubkey: line}
		waves[i%3].Hosts = append(waves[i%3].Hosts, name)
	}
	f.Waves["stable"] = waves
	f.Edges = nil
	return f
}

func clone(files fstest.MapFS) fstest.MapFS { return maps.Clone(files) }

func hostName(i int) string { return fmt.Sprintf("node-%06d", i) }
