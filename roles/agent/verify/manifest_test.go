package verify

import (
	"context"
	"errors"
	"fmt"
	"runtime"
	"strings"
	"testing"
	"time"

	"nixfleet/pki"
	"nixfleet/roles/agent/journal"
	"nixfleet/roles/protocol"
)

// oneManifest is a control plane that has one manifest for every id.
type oneManifest struct {
	Source
	body, sig []byte
}

func (o oneManifest) Manifest(context.Context, string) (body, sig []byte, err error) {
	return o.body, o.sig, nil
}

// A large manifest that is not what was advertised is refused before its text is looked at: what a control plane says
// costs an agent little more than the bytes that came.
func TestLargeManifestsAreHashedFirst(t *testing.T) {
	key, err := pki.GenerateKey(pki.AlgorithmEd25519)
	if err != nil {
		t.Fatal(err)
	}
	public := key.Public()
	v := New(Config{
		Hostname: "web-01", Now: time.Now, MaxManifestAge: time.Hour,
		Trust: func() (*pki.Trust, error) {
			return &pki.Trust{SchemaVersion: 1, CIReleaseKey: pki.KeySlot{Current: &public}}, nil
		},
		Manifests: journal.Directory(t.TempDir()),
	})
	var text strings.Builder
	text.WriteString(`{"schemaVersion":1`)
	for n := 0; text.Len() < 8<<20; n++ {
		fmt.Fprintf(&text, `,"m%d":%d`, n, n)
	}
	text.WriteString("}")
	source := oneManifest{body: []byte(text.String()), sig: make([]byte, pki.SignatureSize)}
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	_, _, err = v.manifest(t.Context(), source, strings.Repeat("0", 64))
	runtime.ReadMemStats(&after)
	refused := (*Refusal)(nil)
	if !errors.As(err, &refused) || refused.Event != protocol.EventManifestMismatch {
		t.Errorf("the verdict is %v", err)
	}
	if took := after.TotalAlloc - before.TotalAlloc; took > 1<<20 {
		t.Errorf("%d bytes cost %d of memory", len(source.body), took)
	}
}
