package cp

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"nixfleet/nixops/fleet"
	"nixfleet/pki"
	"nixfleet/roles/command"
)

// withoutHeadsFile is in the state directory from when --accept-release-without-heads
// was used: a flag that stays in a configuration lets one release through and no more.
const withoutHeadsFile = "accepted-without-heads"

// goWithoutHeads lets one release without heads follow one with heads, where that was
// asked for, and records it. Otherwise it returns refused, with what to do.
func (f *inForce) goWithoutHeads(rel *fleet.Release, refused error) error {
	if !f.cfg.WithoutHeads {
		return command.Hinted(refused, "publish releases/heads again; to go back to a release tool of v1 for good, start "+
			"the control plane once with --accept-release-without-heads")
	}
	used := filepath.Join(f.cfg.StateDir, withoutHeadsFile)
	// It is made before the release is taken: what was let through is never let through again unseen.
	file, err := os.OpenFile(used, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	if errors.Is(err, fs.ErrExist) {
		return command.Hinted(fmt.Errorf("%w; --accept-release-without-heads was used already", refused),
			"to use it once more, remove %s", used)
	}
	if err != nil {
		return fmt.Errorf("record --accept-release-without-heads: %w", err)
	}
	_, err = fmt.Fprintf(file, "%s %s\n", pki.At(rel.SignedAt), rel.FleetHash)
	if err := errors.Join(err, file.Sync(), file.Close()); err != nil {
		return fmt.Errorf("record --accept-release-without-heads: %w", err)
	}
	f.log.Warn().Str("fleet", rel.FleetHash).Time("signed_at", rel.SignedAt).
		Str("hint", "hosts that have seen a head wait until allowV1ControlPlane is set on them").
		Msg("release without heads accepted, as --accept-release-without-heads says")
	return nil
}
