package verify

import (
	"bytes"
	"fmt"
	"path/filepath"
	"sync"

	"github.com/rs/zerolog"

	"nixfleet/nixops/disk"
	"nixfleet/pki"
	"nixfleet/roles/agent/journal"
)

// TrustFile is the trust roots of this host, read anew at every use.
type TrustFile struct {
	path string
	log  zerolog.Logger

	mu    sync.Mutex
	bytes []byte // last read and parsed
	trust *pki.Trust
}

// NewTrustFile reads nothing yet. Warnings about the file go to log.
func NewTrustFile(path string, log zerolog.Logger) *TrustFile {
	return &TrustFile{path: path, log: log}
}

// Read refuses a file that others could write. Members without effect are logged once per
// content of the file, not at every use.
func (f *TrustFile) Read() (*pki.Trust, error) {
	path, err := filepath.EvalSymlinks(f.path)
	if err != nil {
		return nil, fmt.Errorf("trust file: %w", err)
	}
	if err := journal.OwnOnly(path); err != nil {
		return nil, fmt.Errorf("trust file: %w", err)
	}
	data, err := disk.ReadLinked(path, pki.MaxDocument)
	if err != nil {
		return nil, fmt.Errorf("trust file: %w", err)
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.trust != nil && bytes.Equal(data, f.bytes) {
		return f.trust, nil
	}
	t, warnings, err := pki.ParseTrust(data)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	for _, w := range warnings {
		f.log.Warn().Str("file", path).Msg("trust file: " + w)
	}
	f.bytes, f.trust = data, t
	return t, nil
}
