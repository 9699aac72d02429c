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
	"nixfleet/roles/command"
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
	if err := succeed("release", &trust.CIReleaseKey, made.CIReleaseKey); err != nil {
		return nil, err
	}
	if made.OrgRootKey != nil {
		if trust.OrgRootKey == nil {
			trust.OrgRootKey = &pki.KeySlot{}
		}
		if err := succeed("org-root", trust.OrgRootKey, *made.OrgRootKey); err != nil {
			return nil, err
		}
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

// succeed makes the key that was made the current one, and keeps the one before it as previous.
func succeed(kind string, slot *pki.KeySlot, made pki.KeySlot) error {
	if made.Current == nil {
		return nil
	}
	if slot.Current != nil && *slot.Current != *made.Current {
		if err := steady(kind, slot); err != nil {
			return err
		}
		slot.Previous = slot.Current
	}
	slot.Current = made.Current
	if made.RejectBefore != nil {
		slot.RejectBefore = made.RejectBefore
	}
	return nil
}

// steady refuses to begin a rotation while another one is under way: the key that still signs would be gone from the
// slot, and hosts would refuse what it signed.
func steady(kind string, slot *pki.KeySlot) error {
	if slot == nil || slot.Current == nil || slot.Previous == nil {
		return nil
	}
	err := fmt.Errorf("a rotation of the %s key is under way: the trust file still names the key before it", kind)
	if kind == "org-root" {
		return command.Hinted(err, "when no token of the old key is used any more: nixfleet trust rotate org-root --finish")
	}
	return command.Hinted(err, "when nothing is signed with the old key any more: nixfleet trust rotate release --finish")
}

// nixBlock is what an operator pastes into the fleet's trust.nix.
func nixBlock(t *pki.Trust) string {
	var b strings.Builder
	writeSlot(&b, "ciReleaseKey", &t.CIReleaseKey, func(k *pki.PublicKey) string {
		return fmt.Sprintf("{\n    algorithm = %s;\n    public = %s;\n  }", nixString(k.Algorithm), nixString(k.Public))
	})
	writeSlot(&b, "orgRootKey", t.OrgRootKey, func(k *pki.PublicKey) string { return nixString(k.Public) })
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

// writeSlot writes all that a slot says: a rejectBefore or a successor that the block left out would be undone by
// whoever pastes it.
func writeSlot(b *strings.Builder, name string, slot *pki.KeySlot, text func(*pki.PublicKey) string) {
	if slot == nil {
		return
	}
	for _, k := range []struct {
		member string
		key    *pki.PublicKey
	}{{"current", slot.Current}, {"previous", slot.Previous}, {"successor", slot.Successor}} {
		if k.key != nil {
			fmt.Fprintf(b, "  %s.%s = %s;\n", name, k.member, text(k.key))
		}
	}
	for _, m := range []struct {
		member string
		at     *pki.Timestamp
	}{{"retireAt", slot.RetireAt}, {"rejectBefore", slot.RejectBefore}} {
		if m.at != nil {
			fmt.Fprintf(b, "  %s.%s = %s;\n", name, m.member, nixString(m.at.String()))
		}
	}
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
