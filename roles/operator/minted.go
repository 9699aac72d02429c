package operator

import (
	"crypto/ed25519"
	"crypto/rand"
	"encoding/base64"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"filippo.io/age"
	"github.com/urfave/cli/v2"

	"nixfleet/pki"
	"nixfleet/roles/command"
)

func trustFlags() []cli.Flag {
	return []cli.Flag{&cli.StringFlag{Name: "trust-file",
		Usage: "write the public halves into `FILE`, a trust.json; what was current there becomes previous"}}
}

func recipientFlags(what string) []cli.Flag {
	return []cli.Flag{
		&cli.StringSliceFlag{Name: "recipient", Usage: what +
			" for `RECIPIENT`: age1… or an ssh public key; may be given several times"},
		&cli.StringFlag{Name: "recipients-file", Usage: what + " for the recipients in `FILE`, one per line"},
	}
}

func daysFlag() *cli.IntFlag {
	return &cli.IntFlag{Name: "days", Value: certificateDays, Usage: "`DAYS` of validity"}
}

// daysOf is the validity that was asked for.
func daysOf(c *cli.Context) (time.Duration, error) {
	days := c.Int("days")
	if days < 1 || days > maxDays {
		return 0, command.Usage("", "--days must be between 1 and %d", maxDays)
	}
	return time.Duration(days) * day, nil
}

// recipients are those named by flags; none when there are no flags.
func recipients(c *cli.Context) ([]age.Recipient, error) {
	lines := c.StringSlice("recipient")
	if path := c.String("recipients-file"); path != "" {
		text, err := command.ReadFile(path, command.SmallFile)
		if err != nil {
			return nil, fmt.Errorf("read recipients: %w", err)
		}
		lines = append(lines, strings.Split(string(text), "\n")...)
	}
	if len(lines) == 0 {
		return nil, nil
	}
	found, err := pki.ParseRecipients(lines)
	if err != nil {
		return nil, command.Hinted(fmt.Errorf("recipients: %w", err), "a recipient is age1…, or a line of an ssh .pub file")
	}
	if len(found) == 0 {
		return nil, command.Usage("", "the recipients file names no recipient")
	}
	return found, nil
}

// minted collects what one run of keygen made: files on disk and the public
// halves that the fleet must declare.
type minted struct {
	c       *cli.Context
	now     time.Time
	sealed  []age.Recipient // whom every private half is encrypted to; nobody leaves them in the clear, 0600
	trust   pki.Trust
	pending []pendingFile
	summary struct {
		Files      []string       `json:"files"`
		ReleaseKey *pki.PublicKey `json:"ciReleaseKey,omitzero"`
		OrgRootKey *pki.PublicKey `json:"orgRootKey,omitzero"`
		CacheKey   string         `json:"cacheKey,omitzero"`
		TrustFile  string         `json:"trustFile,omitzero"`
	}
}

// pendingFile is made and not yet written.
type pendingFile struct {
	path string
	data []byte
	mode os.FileMode
}

// made runs one kind of keygen and prints what is to be declared.
func made(c *cli.Context, work func(*minted) error) error {
	m := &minted{c: c, now: time.Now()}
	if err := work(m); err != nil {
		return err
	}
	declared := &m.trust
	path := c.String("trust-file")
	if path == "" {
		if err := m.flush(); err != nil {
			return err
		}
	} else {
		merged, err := mergeTrust(c, path, &m.trust)
		if err != nil {
			return err
		}
		if err := m.flush(); err != nil {
			return err
		}
		if err := writeTrust(path, merged); err != nil {
			return err
		}
		m.summary.TrustFile, declared = path, touched(merged, &m.trust)
	}
	for _, f := range m.summary.Files {
		progress(c, "wrote %s", f)
	}
	if c.Bool("json") {
		return command.Document(c, m.summary)
	}
	_, err := fmt.Fprint(c.App.Writer, nixBlock(declared))
	return err
}

func (m *minted) write(path string, data []byte, mode os.FileMode) {
	m.pending = append(m.pending, pendingFile{path, data, mode})
}

// flush writes what was made. One file that exists keeps all from being written:
// a key whose certificate or trust.json is missing is of no use, and would stand
// in the way the next time.
func (m *minted) flush() error {
	force := m.c.Bool("force")
	if !force {
		for _, f := range m.pending {
			if _, err := os.Lstat(f.path); err == nil {
				return errExists(f.path)
			}
		}
	}
	for _, f := range m.pending {
		if err := os.MkdirAll(filepath.Dir(f.path), 0o700); err != nil {
			return fmt.Errorf("make %s: %w", filepath.Dir(f.path), err)
		}
		if err := writeNew(f.path, f.data, f.mode, force); err != nil {
			return err
		}
		m.summary.Files = append(m.summary.Files, f.path)
	}
	m.pending = nil
	return nil
}

func (m *minted) writeKey(path string, key *pki.PrivateKey) error {
	text, err := key.MarshalPEM()
	if err != nil {
		return fmt.Errorf("encode key: %w", err)
	}
	return m.writePrivate(path, text)
}

// writePrivate writes a private half, encrypted under a name that says so where
// there is somebody to encrypt it to.
func (m *minted) writePrivate(path string, text []byte) error {
	if len(m.sealed) == 0 {
		m.write(path, text, 0o600)
		return nil
	}
	sealed, err := pki.Seal(text, m.sealed...)
	if err != nil {
		return fmt.Errorf("encrypt key: %w", err)
	}
	m.write(path+".age", sealed, 0o600)
	return nil
}

// release makes the key that signs releases, encrypted where there are recipients.
func (m *minted) release(path, algorithm string, to ...age.Recipient) error {
	if algorithm != pki.AlgorithmEd25519 && algorithm != pki.AlgorithmP256 {
		return command.Usage("", "--algorithm must be %s or %s", pki.AlgorithmEd25519, pki.AlgorithmP256)
	}
	key, err := pki.GenerateKey(algorithm)
	if err != nil {
		return err
	}
	public := key.Public()
	m.trust.CIReleaseKey.Current, m.summary.ReleaseKey = &public, &public
	return m.writeSealed(path, key, to)
}

// writeSealed writes a key encrypted to recipients, or as it is where there are none.
func (m *minted) writeSealed(path string, key *pki.PrivateKey, to []age.Recipient) error {
	if len(to) == 0 {
		return m.writeKey(path, key)
	}
	text, err := key.MarshalPEM()
	if err != nil {
		return fmt.Errorf("encode key: %w", err)
	}
	sealed, err := pki.Seal(text, to...)
	if err != nil {
		return fmt.Errorf("encrypt key: %w", err)
	}
	m.write(path, sealed, 0o600)
	return nil
}

func (m *minted) orgRoot(path string) error {
	to, err := recipients(m.c)
	if err != nil {
		return err
	}
	key, err := pki.GenerateKey(pki.AlgorithmEd25519)
	if err != nil {
		return err
	}
	public := key.Public()
	m.trust.OrgRootKey, m.summary.OrgRootKey = &pki.KeySlot{Current: &public}, &public
	if len(m.sealed) > 0 {
		to = nil
	}
	return m.writeSealed(path, key, to)
}

// cache writes a key as `nix key generate-secret` does: the name, a colon and
// base64 of the 64 bytes seed and public key.
func (m *minted) cache(path, name string) error {
	if name == "" && m.c.String("suffix") != "" {
		name = "cache." + m.c.String("suffix") + "-1"
	}
	if name == "" || strings.ContainsAny(name, ": \n") {
		return command.Usage("nixfleet keygen cache --name cache.example.com-1",
			"--name is missing or holds a colon or a space")
	}
	public, private, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		return err
	}
	m.summary.CacheKey = name + ":" + base64.StdEncoding.EncodeToString(public)
	m.trust.CacheKeys = []string{m.summary.CacheKey}
	return m.writePrivate(path, []byte(name+":"+base64.StdEncoding.EncodeToString(private)))
}
