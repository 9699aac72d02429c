package operator

import (
	"crypto/ed25519"
	"crypto/sha256"
	"encoding/base64"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/urfave/cli/v2"

	"nixfleet/nixops/fleet"
	"nixfleet/pki"
	"nixfleet/roles/command"
)

// Tokens are dated back by a minute: neither v1 nor ours allows for a clock
// that runs behind (contracts/artifacts.md §10).
const tokenBackdate = time.Minute

func mintTokenCommand() *cli.Command {
	return &cli.Command{
		Name: "mint-token", Usage: "mint a bootstrap token for a new host",
		Description: "The token (JSON) goes to standard output, alone; its nonce, its expiry and the line to commit go to\n" +
			"standard error. Name the host's key in one of three ways: --csr-pubkey-fingerprint, --host-pubkey, or\n" +
			"--fleet-resolved, which takes it from the verified declaration.\n\n" +
			"Example:\n   ssh-keyscan -t ed25519 10.0.0.7 | cut -d' ' -f2- | nixfleet mint-token --hostname newhost \\\n" +
			"     --host-pubkey - --org-root-key /run/agenix/org-root-key > newhost-token.json",
		Flags: append([]cli.Flag{
			&cli.StringFlag{Name: "hostname", Usage: "`NAME` of the host"},
			&cli.StringFlag{Name: "csr-pubkey-fingerprint",
				Usage: "base64 SHA-256 of the 32 raw bytes of the host's ed25519 key (`HASH`; not what ssh-keygen -lf prints)"},
			&cli.StringFlag{Name: "host-pubkey", Usage: "`FILE` with the host's ssh_host_ed25519_key.pub line, - for " +
				"standard input, or the line itself"},
			&cli.StringFlag{Name: "fleet-resolved",
				Usage: "`FILE` of a signed fleet.resolved.json that declares the host's key"},
			&cli.StringFlag{Name: "fleet-signature",
				Usage: "signature `FILE` of --fleet-resolved (default: the same name with .sig)"},
			&cli.StringFlag{Name: "trust-file", EnvVars: []string{"NIXFLEET_TRUST_FILE"},
				Usage: "trust.json `FILE` that the fleet and the org root key are checked against"},
			&cli.IntFlag{Name: "validity-hours", Value: 24, Usage: "`HOURS` until the token expires"},
			&cli.IntFlag{Name: "version", Value: 1, Usage: "token format; only 1 exists"},
		}, append(orgRootFlags(), recipientFlags("encrypt the token")...)...),
		Action: mintToken,
	}
}

func orgRootFlags() []cli.Flag {
	return []cli.Flag{
		&cli.StringFlag{Name: "org-root-key", EnvVars: []string{"NIXFLEET_ORG_ROOT_KEY", "NIXFLEET_OPERATOR_ORG_ROOT_KEY"},
			Usage: "the organisation's root key `FILE`: PEM, OpenSSH, hex, raw, or age-encrypted"},
		&cli.StringFlag{Name: "identity", Usage: "age identity or ssh private key `FILE` that opens an encrypted root key"},
	}
}

func mintToken(c *cli.Context) error {
	hostname := c.String("hostname")
	if !fleet.ValidHostName(hostname) {
		return command.Usage("nixfleet mint-token --help", "--hostname is missing or not a host name: %q", hostname)
	}
	if v := c.Int("version"); v != 1 {
		return command.Usage("", "token version %d does not exist, only 1 does", v)
	}
	hours := c.Int("validity-hours")
	if hours < 1 || hours > 24*366 {
		return command.Usage("", "--validity-hours must be between 1 and %d", 24*366)
	}
	fingerprint, err := hostFingerprint(c, hostname)
	if err != nil {
		return err
	}
	org, err := orgRoot(c)
	if err != nil {
		return err
	}
	to, err := recipients(c)
	if err != nil {
		return err
	}
	token, err := newToken(org, hostname, fingerprint, time.Duration(hours)*time.Hour, time.Now())
	if err != nil {
		return err
	}
	out, err := pki.Marshal(token)
	if err != nil {
		return fmt.Errorf("encode token: %w", err)
	}
	out = append(out, '\n')
	if len(to) > 0 {
		if out, err = pki.Seal(out, to...); err != nil {
			return fmt.Errorf("encrypt token: %w", err)
		}
	}
	if _, err := c.App.Writer.Write(out); err != nil {
		return fmt.Errorf("write token: %w", err)
	}
	describeToken(c.App.ErrWriter, token)
	return nil
}

// newToken signs a token for one host and one key, in whole seconds.
func newToken(
	org *pki.PrivateKey, hostname, fingerprint string, validity time.Duration, now time.Time,
) (*pki.Token, error) {
	now = now.UTC().Truncate(time.Second)
	token, err := pki.MintToken(org, pki.Claims{
		Hostname:                  hostname,
		ExpectedPubkeyFingerprint: fingerprint,
		IssuedAt:                  pki.At(now.Add(-tokenBackdate)),
		ExpiresAt:                 pki.At(now.Add(validity)),
		Nonce:                     pki.NewNonce(),
	})
	if err != nil {
		return nil, fmt.Errorf("mint token for %s: %w", hostname, err)
	}
	return token, nil
}

// describeToken says what to commit. The nonce is not a secret: without the
// token's signature and the host's key it opens nothing.
func describeToken(w io.Writer, t *pki.Token) {
	fmt.Fprintf(w, "nonce:   %s\nexpires: %s\n", t.Claims.Nonce, t.Claims.ExpiresAt)
	fmt.Fprintf(w, "add to bootstrapNonces of mkFleet:\n  %s\n", nonceEntry(t))
}

func nonceEntry(t *pki.Token) string {
	return fmt.Sprintf("{ nonce = %s; hostname = %s; expiresAt = %s; mintedAt = %s; }",
		nixString(t.Claims.Nonce), nixString(t.Claims.Hostname), nixString(t.Claims.ExpiresAt.String()),
		nixString(t.Claims.IssuedAt.String()))
}

// orgRoot reads the key that signs tokens and, when there is a trust file,
// refuses one that no control plane would believe.
func orgRoot(c *cli.Context) (*pki.PrivateKey, error) {
	path := c.String("org-root-key")
	if path == "" {
		return nil, command.Usage("nixfleet keygen org-root makes one", "--org-root-key is missing")
	}
	key, err := newKeyring(c.String("identity")).signingKey(path)
	if err != nil {
		return nil, err
	}
	if key.Algorithm() != pki.AlgorithmEd25519 {
		return nil, command.Hinted(fmt.Errorf("org root key %s is %s; tokens are signed with ed25519", path, key.Algorithm()),
			"nixfleet keygen org-root")
	}
	if c.String("trust-file") == "" {
		return key, nil
	}
	trust, err := loadTrust(c, c.String("trust-file"))
	if err != nil {
		return nil, err
	}
	if slot, now := trust.OrgRootKey, time.Now(); slot != nil && slices.Contains(slot.Active(now), key.Public()) {
		issued := now.UTC().Truncate(time.Second).Add(-tokenBackdate)
		if slot.RejectBefore != nil && issued.Before(slot.RejectBefore.Time) {
			return nil, command.Hinted(fmt.Errorf("orgRootKey of %s refuses tokens issued before %s, and this one would be "+
				"issued at %s", c.String("trust-file"), slot.RejectBefore, pki.At(issued)),
				"tokens are dated back by a minute: mint it after %s", pki.At(slot.RejectBefore.Add(tokenBackdate)))
		}
		return key, nil
	}
	return nil, command.Hinted(fmt.Errorf("org root key %s is not in orgRootKey of %s: no control plane would accept "+
		"the token", path, c.String("trust-file")),
		"declare nixfleet.trust.orgRootKey.current = %s", nixString(key.Public().Public))
}

// hostFingerprint is the fingerprint of the key that the host will present.
func hostFingerprint(c *cli.Context, hostname string) (string, error) {
	var given []string
	for _, name := range []string{"csr-pubkey-fingerprint", "host-pubkey", "fleet-resolved"} {
		if c.String(name) != "" {
			given = append(given, "--"+name)
		}
	}
	if len(given) != 1 {
		return "", command.Usage("nixfleet mint-token --help",
			"name the host's key once, by --csr-pubkey-fingerprint, --host-pubkey or --fleet-resolved (given: %s)",
			command.OrNothing(given))
	}
	switch given[0] {
	case "--csr-pubkey-fingerprint":
		return checkFingerprint(c.String("csr-pubkey-fingerprint"))
	case "--host-pubkey":
		key, err := hostKey(c.String("host-pubkey"))
		if err != nil {
			return "", err
		}
		return pki.Fingerprint(key), nil
	}
	return declaredFingerprint(c, hostname)
}

func checkFingerprint(s string) (string, error) {
	s = strings.TrimSpace(s)
	if pki.LooksLikeSSHFingerprint(s) {
		return "", command.Hinted(fmt.Errorf("%q is a fingerprint of ssh-keygen -lf, which hashes other bytes than the "+
			"token names", s),
			"pass the public key instead: --host-pubkey /etc/ssh/ssh_host_ed25519_key.pub (or - for standard input)")
	}
	if strings.HasPrefix(s, "ssh-") {
		return "", command.Hinted(fmt.Errorf("%.24q… is a public key, not its fingerprint", s), "pass it by --host-pubkey")
	}
	// ssh-keygen writes base64 without the padding that every fingerprint here has.
	if raw, err := base64.RawStdEncoding.Strict().DecodeString(s); err == nil && len(raw) == sha256.Size {
		return "", command.Hinted(fmt.Errorf("%q has no padding, like the fingerprints of ssh-keygen; those hash other "+
			"bytes than the token names", s),
			"pass the public key instead: --host-pubkey FILE")
	}
	raw, err := pki.DecodeBase64(s)
	if err != nil || len(raw) != sha256.Size {
		return "", command.Hinted(fmt.Errorf("%q is not base64 of 32 bytes", s),
			"pass the public key instead: --host-pubkey FILE")
	}
	return s, nil
}

// hostKey reads an OpenSSH ed25519 line from a file, from standard input, or
// from the argument itself.
func hostKey(arg string) (ed25519.PublicKey, error) {
	text := arg
	if !strings.HasPrefix(arg, "ssh-") {
		data, err := command.ReadFile(arg, command.SmallFile)
		if err != nil {
			return nil, command.Hinted(fmt.Errorf("read host key: %w", err),
				"name /etc/ssh/ssh_host_ed25519_key.pub of the host, give its line itself, or - for standard input")
		}
		text = string(data)
	}
	if strings.Contains(text, "PRIVATE KEY") {
		return nil, command.Hinted(fmt.Errorf("%s is a private key", arg), "pass its public half, the file that ends in .pub")
	}
	key, err := pki.ParseHostKey(strings.TrimSpace(text))
	if err != nil {
		return nil, command.Hinted(fmt.Errorf("host key: %w", err),
			"it must be one line of the kind: ssh-ed25519 AAAA… (ssh-keyscan: cut off the first column)")
	}
	return key, nil
}

// declaredFingerprint takes the key from a fleet declaration, which must be
// signed by a trusted key: whoever could choose the key could enrol as the host.
func declaredFingerprint(c *cli.Context, hostname string) (string, error) {
	path := c.String("fleet-resolved")
	trustPath := c.String("trust-file")
	if trustPath == "" {
		if trustPath = installedTrust(); trustPath == "" {
			return "", command.Usage("give --trust-file FILE",
				"--fleet-resolved is trusted only with the release key that signed it, and no trust file was found")
		}
	}
	trust, err := loadTrust(c, trustPath)
	if err != nil {
		return "", err
	}
	body, err := command.ReadFile(path, pki.MaxDocument)
	if err != nil {
		return "", fmt.Errorf("read fleet: %w", err)
	}
	signature := c.String("fleet-signature")
	if signature == "" {
		signature = path + ".sig"
	}
	sig, err := command.ReadFile(signature, command.SmallFile)
	if err != nil {
		return "", command.Hinted(fmt.Errorf("read fleet signature: %w", err), "name it with --fleet-signature")
	}
	f, _, err := fleet.Verify(&trust.CIReleaseKey, body, sig, time.Now(), fleet.DefaultWindow, fleet.ParseFleet)
	if err != nil {
		return "", fmt.Errorf("verify fleet %s: %w", path, err)
	}
	host, ok := f.Hosts[hostname]
	if !ok {
		return "", command.Hinted(fmt.Errorf("host %s is not declared in %s", hostname, path),
			"add it to the fleet and release, or pass --host-pubkey")
	}
	if host.Pubkey == nil {
		return "", command.Hinted(fmt.Errorf("host %s has no pubkey in %s", hostname, path),
			"nixfleet host prepare %s prints the line to add", hostname)
	}
	key, err := pki.ParseHostKey(*host.Pubkey)
	if err != nil {
		return "", fmt.Errorf("declared key of %s: %w", hostname, err)
	}
	return pki.Fingerprint(key), nil
}

// installedTrust is where a NixOS host of the fleet has its trust file.
func installedTrust() string {
	for _, path := range []string{"/etc/nixfleet/agent/trust.json", "/etc/nixfleet/cp/trust.json"} {
		if _, err := os.Stat(path); err == nil {
			return path
		}
	}
	return ""
}

// loadTrust reads a trust file and prints what it says about misspelt members.
func loadTrust(c *cli.Context, path string) (*pki.Trust, error) {
	trust, warnings, err := readTrust(path)
	for _, w := range warnings {
		progress(c, "warning: %s", w)
	}
	return trust, err
}

// readTrust reads a trust file; the warnings are of misspelt members.
func readTrust(path string) (*pki.Trust, []string, error) {
	data, err := command.ReadFile(path, command.SmallFile)
	if err != nil {
		return nil, nil, command.Hinted(fmt.Errorf("read trust file: %w", err),
			"it is the fleet's trust.json, which nixfleet keygen writes and every NixOS host of the fleet has in /etc/nixfleet")
	}
	trust, warnings, err := pki.ParseTrust(data)
	if err != nil {
		return nil, nil, fmt.Errorf("read trust file %s: %w", path, err)
	}
	for i, w := range warnings {
		warnings[i] = path + ": " + w
	}
	return trust, warnings, nil
}
