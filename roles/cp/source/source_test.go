package source

import (
	"bytes"
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"nixfleet/nixops/fleet"
	"nixfleet/pki"
)

// releasedAt is when the release of the contract's vectors was signed.
var releasedAt = time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)

// signedRelease is the v1 release of the contract's vectors with a head per
// channel, and the trust that verifies it.
func signedRelease(t testing.TB) (map[string][]byte, *pki.Trust) {
	t.Helper()
	key, err := pki.ParsePrivateKey(bytes.Repeat([]byte{0x11}, 32))
	if err != nil {
		t.Fatal(err)
	}
	files := map[string][]byte{}
	add := func(name string, doc []byte) {
		t.Helper()
		sig, err := key.Sign(doc)
		if err != nil {
			t.Fatal(err)
		}
		files[name], files[name+fleet.SignatureSuffix] = doc, sig
	}
	for name, from := range map[string]string{fleet.FleetName: "fleet.json", fleet.RevocationsName: "revocations.json",
		fleet.NoncesName: "nonces.json"} {
		doc, err := os.ReadFile(filepath.Join("../../../nixops/fleet/testdata", from))
		if err != nil {
			t.Fatal(err)
		}
		if doc, err = pki.Canonicalize(doc); err != nil {
			t.Fatal(err)
		}
		add(name, doc)
	}
	f, err := fleet.ParseFleet(files[fleet.FleetName])
	if err != nil {
		t.Fatal(err)
	}
	for channel := range f.Channels {
		m, _, err := fleet.Project(f, pki.HashHex(files[fleet.FleetName]), channel)
		if err != nil {
			t.Fatal(err)
		}
		doc, err := pki.Marshal(m)
		if err != nil {
			t.Fatal(err)
		}
		id := pki.HashHex(doc)
		add(fleet.ManifestName(id), doc)
		h, err := fleet.ProjectHead(f, m, id, nil, 6*time.Minute, 5*time.Minute)
		if err != nil {
			t.Fatal(err)
		}
		if doc, err = pki.Marshal(h); err != nil {
			t.Fatal(err)
		}
		add(fleet.HeadName(channel), doc)
	}
	public := key.Public()
	return files, &pki.Trust{SchemaVersion: 1, CIReleaseKey: pki.KeySlot{Current: &public}}
}

// verifies loads the release that a source gave.
func verifies(t testing.TB, files fs.FS, trust *pki.Trust) *fleet.Release {
	t.Helper()
	rel, err := fleet.LoadRelease(files, fleet.LoadOptions{
		Trust: trust, Now: releasedAt.Add(time.Hour), Window: 30 * 24 * time.Hour, RequireRevocations: true,
		RequireNonces: true,
	})
	if err != nil {
		t.Fatal(err)
	}
	return rel
}

func writeFiles(t testing.TB, dir string, files map[string][]byte) {
	t.Helper()
	for name, data := range files {
		path := filepath.Join(dir, name)
		if err := errors.Join(os.MkdirAll(filepath.Dir(path), 0o755), os.WriteFile(path, data, 0o644)); err != nil {
			t.Fatal(err)
		}
	}
}

// fetched is a Fetch that must work.
func fetched(t testing.TB, s Source, known string) Fetched {
	t.Helper()
	got, err := s.Fetch(t.Context(), known)
	if err != nil {
		t.Fatal(err)
	}
	if got.Unchanged != (got.Revision == known) || got.Unchanged != (got.FS == nil) || got.Revision == "" {
		t.Fatalf("snapshot %+v of known %q", got, known)
	}
	return got
}

func content(t testing.TB, files fs.FS, name string) string {
	t.Helper()
	data, err := fs.ReadFile(files, name)
	if err != nil {
		t.Fatal(err)
	}
	return string(data)
}

func TestDocumentsInMemoryAreFiles(t *testing.T) {
	files := Memory{"heads/edge.json": []byte("abc")}
	f, err := files.Open("heads/edge.json")
	if err != nil {
		t.Fatal(err)
	}
	info, err := f.Stat()
	if err != nil || info.Size() != 3 || info.Name() != "edge.json" || !info.Mode().IsRegular() {
		t.Errorf("%v %v", info, err)
	}
	if data, err := io.ReadAll(f); string(data) != "abc" || err != nil {
		t.Errorf("%q %v", data, err)
	}
	if err := f.Close(); err != nil {
		t.Error(err)
	}
	if _, err := files.Open("none"); !errors.Is(err, fs.ErrNotExist) {
		t.Error(err)
	}
}

func TestLayersGiveTheFirst(t *testing.T) {
	l := Layers{Memory{"a": []byte("1")}, Memory{"a": []byte("2"), "b": []byte("3")}}
	if content(t, l, "a") != "1" || content(t, l, "b") != "3" {
		t.Error("not the first")
	}
	if _, err := l.Open("c"); !errors.Is(err, fs.ErrNotExist) {
		t.Error(err)
	}
	// A layer that fails is not passed over: what it hides could be older.
	if _, err := (Layers{Dir(t.TempDir()), Memory{"..": nil}}).ReadFile(".."); err == nil ||
		errors.Is(err, fs.ErrNotExist) {
		t.Error(err)
	}
}

func TestAReleaseHasABound(t *testing.T) {
	big := Memory{}
	for _, name := range []string{"a", "b", "c", "d", "e", "f", "g", "h"} {
		big[name] = make([]byte, pki.MaxDocument)
	}
	if err := big.add(Memory{"i": {1}}, "i", true); !errors.Is(err, pki.ErrSize) {
		t.Error(err)
	}
}

func TestSecretFiles(t *testing.T) {
	for content, want := range map[string]string{
		"token\n": "token", "  token with space \r\n": "token with space",
		"": "", "\n": "", "two\nlines": "", "a\x00b": "", strings.Repeat("x", maxSecret+1): "",
	} {
		path := filepath.Join(t.TempDir(), "token")
		if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
		got, err := Secret(path)
		if got != want || (err == nil) != (want != "") {
			t.Errorf("%.20q: %q %v", content, got, err)
		}
		if err != nil && len(content) > 2 && strings.Contains(err.Error(), content[:3]) {
			t.Errorf("the error tells the secret: %v", err)
		}
	}
	if _, err := Secret(filepath.Join(t.TempDir(), "none")); !errors.Is(err, fs.ErrNotExist) {
		t.Error(err)
	}
}
