package agent

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

// trustFile is the trust roots of this host, looked at anew at every use.
type trustFile struct {
	path string
	log  zerolog.Logger

	mu    sync.Mutex
	bytes []byte // last read and parsed
	trust *pki.Trust
}

// read refuses a file that others could write. What the file says to no purpose is
// logged once per content of it, not at every use.
func (f *trustFile) read() (*pki.Trust, error) {
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
