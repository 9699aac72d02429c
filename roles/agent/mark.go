package agent

import (
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"time"

	"nixfleet/pki"
	"nixfleet/roles/agent/journal"
)

const markFile = "mark.json"

// mark is the newest release this host has verified: it never goes back behind
// it. There is one per host, whatever the channel.
type mark struct {
	SignedAt pki.Timestamp `json:"signedAt" shape:"R"`
	Intent   string        `json:"intent" shape:"R"`
	Closure  string        `json:"closure" shape:"D"`  // what it meant for this host, when that is known
	SeenHead bool          `json:"seenHead" shape:"D"` // the control plane has shown a head before
	Channel  string        `json:"channel" shape:"D"`  // of that head; this host is in it
	Window   uint32        `json:"window" shape:"D"`   // its freshness window, in minutes
}

// follows: a head of the channel that this host is known to be in.
func (m *mark) follows(channel string) bool { return m != nil && m.SeenHead && m.Channel == channel }

// sameTime: another release than the mark's that was signed at the same time, so that
// only what it means for this host can tell whether it may follow.
func (m *mark) sameTime(signedAt time.Time, intent string) bool {
	return m != nil && signedAt.Equal(m.SignedAt.Time) && intent != m.Intent
}

// errOlder: the release is older than one that was verified before.
var errOlder = errors.New("older than the newest release this host has verified")

// admits says whether a release may follow the mark: it is newer, or it is the
// same, by intent or by what it means for this host.
func (m *mark) admits(signedAt time.Time, intent, closure string) error {
	if m == nil || signedAt.After(m.SignedAt.Time) {
		return nil
	}
	if signedAt.Before(m.SignedAt.Time) {
		return fmt.Errorf("%w: signed at %s, verified was %s", errOlder, pki.At(signedAt), m.SignedAt)
	}
	if intent == m.Intent || closure != "" && closure == m.Closure {
		return nil
	}
	return fmt.Errorf("%w: another release with the same signing time %s", errOlder, m.SignedAt)
}

// marks keeps the mark in the state directory and once more outside of it, so
// that deleting the directory does not open the way back.
type marks struct {
	state, outside journal.Directory
}

// load takes the newer of the two. A copy that cannot be believed counts as
// none; both unbelievable is an error.
func (m marks) load() (*mark, error) {
	var newest *mark
	var unfit error
	for _, dir := range []journal.Directory{m.state, m.outside} {
		var found mark
		switch err := dir.Read(markFile, &found); {
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

func (m marks) store(v *mark) error {
	return errors.Join(m.state.Write(markFile, v), m.outside.Write(markFile, v))
}

// means notes what the release of the mark means for this host.
func (m marks) means(signedAt time.Time, intent, closure string) error {
	last, err := m.load()
	if err != nil || last == nil || !signedAt.Equal(last.SignedAt.Time) || last.Intent != intent || last.Closure == closure {
		return err
	}
	next := *last
	next.Closure = closure
	return m.store(&next)
}

func (m marks) reset() error {
	return errors.Join(m.state.Remove(markFile), m.outside.Remove(markFile))
}

// outsideDirectory is where the second copy of the mark lies: with the
// certificate, unless that is inside the state directory.
func outsideDirectory(stateDir, clientCert string) string {
	dir := filepath.Dir(clientCert)
	if clientCert == "" || filepath.Clean(dir) == filepath.Clean(stateDir) {
		return filepath.Clean(stateDir) + ".mark"
	}
	return dir
}
