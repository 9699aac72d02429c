package verify

import (
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"time"

	"nixfleet/pki"
	"nixfleet/roles/agent/journal"
)

// MarkFile is the name of both copies of the mark.
const MarkFile = "mark.json"

// Mark is the newest release this host has verified: it never goes back behind
// it. There is one per host, whatever the channel.
type Mark struct {
	SignedAt pki.Timestamp `json:"signedAt" shape:"R"`
	Intent   string        `json:"intent" shape:"R"`
	Closure  string        `json:"closure" shape:"D"`  // what it meant for this host, when that is known
	SeenHead bool          `json:"seenHead" shape:"D"` // the control plane has shown a head before
	Channel  string        `json:"channel" shape:"D"`  // of that head; this host is in it
	Window   uint32        `json:"window" shape:"D"`   // its freshness window, in minutes
}

// follows reports whether a channel is the one that this host is known to be in.
func (m *Mark) follows(channel string) bool { return m != nil && m.SeenHead && m.Channel == channel }

// sameTime reports whether a release is another one than the mark's and was signed at the same
// time, so that only what it means for this host can tell whether it may follow.
func (m *Mark) sameTime(signedAt time.Time, intent string) bool {
	return m != nil && signedAt.Equal(m.SignedAt.Time) && intent != m.Intent
}

// errOlder means that the release is older than one that was verified before.
var errOlder = errors.New("older than the newest release this host has verified")

// admits says whether a release may follow the mark: it is newer, or it is the
// same, by intent or by what it means for this host.
func (m *Mark) admits(signedAt time.Time, intent, closure string) error {
	if m == nil || signedAt.After(m.SignedAt.Time) {
		return nil
	}
	if signedAt.Before(m.SignedAt.Time) {
		return fmt.Errorf("%w: it was signed at %s, the newest one at %s", errOlder, pki.At(signedAt), m.SignedAt)
	}
	if intent == m.Intent || closure != "" && closure == m.Closure {
		return nil
	}
	return fmt.Errorf("%w: another release with the same signing time %s", errOlder, m.SignedAt)
}

// Marks keeps the mark in the state directory and once more outside of it, so
// that deleting the directory does not open the way back.
type Marks struct {
	State, Outside journal.Directory
}

// Load takes the newer of the two. A copy that cannot be believed counts as
// none; both unbelievable is an error.
func (m Marks) Load() (*Mark, error) {
	var newest *Mark
	var unfit error
	for _, dir := range []journal.Directory{m.State, m.Outside} {
		var found Mark
		switch err := dir.Read(MarkFile, &found); {
		case errors.Is(err, fs.ErrNotExist):
		case err != nil:
			unfit = errors.Join(unfit, err)
		case newest == nil || found.SignedAt.After(newest.SignedAt.Time):
			newest = &found
		}
	}
	if newest == nil && unfit != nil {
		return nil, fmt.Errorf("mark: %w", unfit)
	}
	return newest, nil
}

func (m Marks) store(v *Mark) error {
	return errors.Join(m.State.Write(MarkFile, v), m.Outside.Write(MarkFile, v))
}

// means records the closure that the release of the mark means for this host.
func (m Marks) means(signedAt time.Time, intent, closure string) error {
	last, err := m.Load()
	if err != nil || last == nil || !signedAt.Equal(last.SignedAt.Time) || last.Intent != intent ||
		last.Closure == closure {
		return err
	}
	next := *last
	next.Closure = closure
	return m.store(&next)
}

// Reset forgets both copies of the mark.
func (m Marks) Reset() error {
	return errors.Join(m.State.Remove(MarkFile), m.Outside.Remove(MarkFile))
}

// OutsideDirectory is where the second copy of the mark lies: with the
// certificate, unless that is inside the state directory.
func OutsideDirectory(stateDir, clientCert string) string {
	dir := filepath.Dir(clientCert)
	if clientCert == "" || filepath.Clean(dir) == filepath.Clean(stateDir) {
		return filepath.Clean(stateDir) + ".mark"
	}
	return dir
}
