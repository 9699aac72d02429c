package release

import (
	"fmt"
	"os"
	"path/filepath"
	"time"

	"nixfleet/nixops/fleet"
	"nixfleet/pki"
	"nixfleet/roles/command"
)

// learn takes the keys that hosts will believe from the first system that brings them, when nobody said which they are.
func (r *releaser) learn(b *built) {
	if r.signer.slot != nil || r.cfg.DryRun {
		return
	}
	for _, name := range sortedKeys(b.closures) {
		if trust, err := r.trustOf(b, name); trust != nil && err == nil {
			r.say("verifying signatures with the trust.json that %s brings", name)
			r.signer.slot = &trust.CIReleaseKey
			return
		}
	}
	r.say("warning: no key is given to verify what --sign-cmd signs; only the length of its signatures is checked: give " +
		"--trust-file")
}

// trustOfHosts refuses a release that brings a host a trust.json which cannot verify this very release: after the
// switch the host would believe nobody.
func (r *releaser) trustOfHosts(b *built, body, sig []byte) error {
	for _, name := range sortedKeys(b.closures) {
		trust, err := r.trustOf(b, name)
		if trust == nil && err == nil {
			continue
		}
		if err == nil {
			_, _, err = fleet.Verify(&trust.CIReleaseKey, body, sig, time.Now(), fleet.DefaultWindow, fleet.ParseFleet)
		}
		if err != nil {
			return command.Coded(3, command.Hinted(
				fmt.Errorf("host %s would get a trust.json that does not verify this release: %w", name, err),
				"keep the current release key in nixfleet.trust.ciReleaseKey, as current or previous, "+
					"until every host has switched"))
		}
	}
	return nil
}

// trustOf is the trust.json that a host's new system brings, nil when it is not built here or brings none.
func (r *releaser) trustOf(b *built, name string) (*pki.Trust, error) {
	closure := b.closures[name]
	if !filepath.IsAbs(closure) {
		return nil, nil
	}
	if store := r.cfg.Nix.Store; filepath.IsAbs(store) {
		closure = filepath.Join(store, closure) // a store in a directory
	}
	data, err := os.ReadFile(filepath.Join(closure, "etc/nixfleet/agent/trust.json"))
	if err != nil {
		return nil, nil
	}
	trust, warnings, err := pki.ParseTrust(data)
	for _, w := range warnings {
		if !r.warned[w] { // the same file is in every system
			r.warned[w] = true
			r.say("warning: the trust.json that %s brings: %s", name, w)
		}
	}
	return trust, err
}
