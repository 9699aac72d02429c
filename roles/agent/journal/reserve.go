package journal

import (
	"crypto/rand"
	"fmt"
	"os"
	"path/filepath"

	"nixfleet/nixops/disk"
)

// The reserve is room for the steps of an activation, in bytes and in files: a release that
// fills the disk must not keep its host from writing down that it goes back.
const (
	reserveDir   = "reserve"
	reserveFiles = 4
	reserveSize  = 64 << 10 // bytes of each file; a journal has up to a few dozen KiB
)

// Reserve sets the room aside, or says why it cannot. What is there already is kept.
func (d Directory) Reserve() error {
	if err := os.MkdirAll(d.Path(reserveDir), 0o700); err != nil {
		return fmt.Errorf("reserve: %w", err)
	}
	for i := range reserveFiles {
		path := filepath.Join(d.Path(reserveDir), fmt.Sprint(i))
		if info, err := os.Lstat(path); err == nil && info.Size() == reserveSize {
			continue
		}
		// What is random takes its room on a file system that compresses as well.
		room := make([]byte, reserveSize)
		if _, err := rand.Read(room); err != nil {
			return fmt.Errorf("reserve: %w", err)
		}
		if err := disk.Replace(path, room, 0o600); err != nil {
			d.spend() // half of it would only take the room from the rest
			return fmt.Errorf("reserve: %w", err)
		}
	}
	return nil
}

// spend gives the room back, and reports whether there was any.
func (d Directory) spend() bool {
	spent := false
	for i := range reserveFiles {
		if os.Remove(filepath.Join(d.Path(reserveDir), fmt.Sprint(i))) == nil {
			spent = true
		}
	}
	return spent
}
