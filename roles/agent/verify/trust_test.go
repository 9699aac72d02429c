package verify

import (
	"bytes"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"

	"github.com/rs/zerolog"

	"nixfleet/pki"
)

// What nobody reads of a trust file is said once per content, and a changed file counts
// at once [T10].
func TestTrustWarningsAreSaidOnce(t *testing.T) {
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	key := func() pki.PublicKey {
		k, err := pki.GenerateKey(pki.AlgorithmEd25519)
		must(err)
		return k.Public()
	}
	path := filepath.Join(t.TempDir(), "trust.json")
	write := func(member string, current pki.PublicKey) {
		doc, err := (&pki.Trust{SchemaVersion: 1, CIReleaseKey: pki.KeySlot{Current: &current}}).Marshal()
		must(err)
		must(os.WriteFile(path, []byte(strings.Replace(string(doc), "{", `{"`+member+`":[],`, 1)), 0o600))
	}
	var log bytes.Buffer
	f := NewTrustFile(path, zerolog.New(&log))
	read := func(want pki.PublicKey) {
		t.Helper()
		for range 5 {
			got, err := f.Read()
			must(err)
			if !reflect.DeepEqual(*got.CIReleaseKey.Current, want) {
				t.Errorf("it trusts %v, want %v", got.CIReleaseKey.Current, want)
			}
		}
	}
	first, second := key(), key()
	write("issuerPems", first)
	read(first)
	if said := strings.Count(log.String(), "issuerPems"); said != 1 {
		t.Errorf("said %d times:\n%s", said, log.String())
	}
	write("cacheKey", second)
	read(second)
	write("issuerPems", second)
	read(second)
	if lines := strings.Count(log.String(), "\n"); lines != 3 {
		t.Errorf("said %d times:\n%s", lines, log.String())
	}
	must(os.Chmod(path, 0o622))
	if _, err := f.Read(); err == nil {
		t.Error("a file that others can write is read on")
	}
	must(os.Chmod(path, 0o600))
	must(os.WriteFile(path, []byte("{"), 0o600))
	if _, err := f.Read(); err == nil {
		t.Error("a damaged file is read on")
	}
}
