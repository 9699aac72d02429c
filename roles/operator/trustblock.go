package operator

import (
	"errors"
	"fmt"
	"io/fs"
	"slices"
	"strings"

	"github.com/urfave/cli/v2"

	"nixfleet/nixops/disk"
	"nixfleet/pki"
)

// mergeTrust puts the public halves in made into what the trust.json at path says.
// A key that was current becomes previous, so that what it signed stays good
// until the operator ends the rotation.
//
// What is not read of the file is named, since it is not written again either.
func mergeTrust(c *cli.Context, path string, made *pki.Trust) (*pki.Trust, error) {
	trust, err := loadTrust(c, path)
	if errors.Is(err, fs.ErrNotExist) {
		trust, err = &pki.Trust{SchemaVersion: 1}, nil
	}
	if err != nil {
		return nil, err
	}
	succeed(&trust.CIReleaseKey, made.CIReleaseKey.Current)
	if made.OrgRootKey != nil {
		if trust.OrgRootKey == nil {
			trust.OrgRootKey = &pki.KeySlot{}
		}
		succeed(trust.OrgRootKey, made.OrgRootKey.Current)
	}
	for _, key := range made.CacheKeys {
		if !slices.Contains(trust.CacheKeys, key) {
			trust.CacheKeys = append(trust.CacheKeys, key)
		}
	}
	if made.RootCAPEM != nil {
		trust.RootCAPEM = made.RootCAPEM
	}
	for _, ca := range made.IssuanceCAPEMs {
		if !slices.Contains(trust.IssuanceCAPEMs, ca) {
			trust.IssuanceCAPEMs = append(trust.IssuanceCAPEMs, ca)
		}
	}
	return trust, nil
}

func writeTrust(path string, trust *pki.Trust) error {
	out, err := trust.Marshal()
	if err != nil {
		return fmt.Errorf("encode trust file: %w", err)
	}
	return disk.Replace(path, out, 0o644)
}

// touched are the members of trust that what was made has changed: with the keys
// that stay beside the new ones, or the block to paste would end their time.
func touched(trust, made *pki.Trust) *pki.Trust {
	t := &pki.Trust{}
	if made.CIReleaseKey.Current != nil {
		t.CIReleaseKey = trust.CIReleaseKey
	}
	if made.OrgRootKey != nil {
		t.OrgRootKey = trust.OrgRootKey
	}
	if made.CacheKeys != nil {
		t.CacheKeys = trust.CacheKeys
	}
	if made.RootCAPEM != nil {
		t.RootCAPEM = trust.RootCAPEM
	}
	if made.IssuanceCAPEMs != nil {
		t.IssuanceCAPEMs = trust.IssuanceCAPEMs
	}
	return t
}

func succeed(slot *pki.KeySlot, key *pki.PublicKey) {
	if key == nil {
		return
	}
	if slot.Current != nil && *slot.Current != *key {
		slot.Previous = slot.Current
	}
	slot.Current = key
}

// nixBlock is what an operator pastes into the fleet's trust.nix.
func nixBlock(t *pki.Trust) string {
	var b strings.Builder
	for _, k := range []struct {
		name string
		key  *pki.PublicKey
	}{{"current", t.CIReleaseKey.Current}, {"previous", t.CIReleaseKey.Previous}} {
		if k.key != nil {
			fmt.Fprintf(&b, "  ciReleaseKey.%s = {\n    algorithm = %s;\n    public = %s;\n  };\n", k.name,
				nixString(k.key.Algorithm), nixString(k.key.Public))
		}
	}
	if t.OrgRootKey != nil && t.OrgRootKey.Current != nil {
		fmt.Fprintf(&b, "  orgRootKey.current = %s;\n", nixString(t.OrgRootKey.Current.Public))
		if previous := t.OrgRootKey.Previous; previous != nil {
			fmt.Fprintf(&b, "  orgRootKey.previous = %s;\n", nixString(previous.Public))
		}
	}
	if len(t.CacheKeys) > 0 {
		b.WriteString("  cacheKeys = [\n")
		for _, key := range t.CacheKeys {
			fmt.Fprintf(&b, "    %s\n", nixString(key))
		}
		b.WriteString("  ];\n")
	}
	if t.RootCAPEM != nil {
		fmt.Fprintf(&b, "  rootCAPem = ''\n%s  '';\n", indent(*t.RootCAPEM, "    "))
	}
	if len(t.IssuanceCAPEMs) > 0 {
		b.WriteString("  issuanceCAPems = [\n")
		for _, pem := range t.IssuanceCAPEMs {
			fmt.Fprintf(&b, "    ''\n%s    ''\n", indent(pem, "      "))
		}
		b.WriteString("  ];\n")
	}
	if b.Len() == 0 {
		return ""
	}
	return "nixfleet.trust = {\n" + b.String() + "};\n"
}

func indent(text, by string) string {
	var b strings.Builder
	for line := range strings.Lines(text) {
		b.WriteString(by + line)
	}
	if !strings.HasSuffix(text, "\n") {
		b.WriteByte('\n')
	}
	return b.String()
}

// nixString quotes text for Nix.
func nixString(s string) string {
	return `"` + strings.NewReplacer(`\`, `\\`, `"`, `\"`, "${", `\${`, "\n", `\n`).Replace(s) + `"`
}
