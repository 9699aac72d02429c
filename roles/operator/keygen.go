package operator

import (
	"crypto/ed25519"
	"crypto/rand"
	"encoding/base64"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"time"

	"filippo.io/age"
	"github.com/urfave/cli/v2"

	"nixfleet/pki"
	"nixfleet/roles/command"
)

const (
	day             = 24 * time.Hour
	rootDays        = 3650
	issuingDays     = 365
	certificateDays = 365
	maxDays         = 100 * 365
)

func keygenCommand() *cli.Command {
	force := func() cli.Flag { return &cli.BoolFlag{Name: "force", Usage: "replace files that exist"} }
	out := func(name string) *cli.StringFlag {
		return &cli.StringFlag{Name: "out", Value: name, Usage: "write the private half to `FILE` (0600)"}
	}
	algorithm := func() cli.Flag {
		return &cli.StringFlag{Name: "algorithm", Value: pki.AlgorithmEd25519, Usage: "`ALGORITHM` of the release key: ed25519 or ecdsa-p256"}
	}
	dir := func() cli.Flag { return &cli.StringFlag{Name: "dir", Value: ".", Usage: "write the files into `DIR`"} }
	suffix := func() cli.Flag {
		return &cli.StringFlag{Name: "suffix", EnvVars: []string{"NIXFLEET_AGENT_CN_SUFFIX"}, Usage: "`SUFFIX` of agents' certificate names, such as fleet.example.com"}
	}
	name := func() cli.Flag {
		return &cli.StringFlag{Name: "name", Usage: "`NAME` of the cache key (default: cache.SUFFIX-1)"}
	}
	server := func() cli.Flag {
		return &cli.StringSliceFlag{Name: "server", Usage: "DNS `NAME` or address of the control plane; may be given several times"}
	}
	cn := func() cli.Flag {
		return &cli.StringFlag{Name: "cn", Usage: "operator's `NAME` (default: operator-$USER@host)"}
	}
	return &cli.Command{
		Name: "keygen", Usage: "make keys and certificates",
		Description: "Private halves are written 0600 and never printed; the Nix block for the public halves goes to\n" +
			"standard output.\n\nExample:\n   nixfleet keygen all --dir secrets --suffix fleet.example.com --server cp.example.com",
		Subcommands: []*cli.Command{
			{
				Name: "all", Usage: "everything that a new fleet needs",
				Description: "Writes release.key, org-root.key, cache.key, the fleet root, the issuing CA, the control\n" +
					"plane's server certificate, an operator certificate and trust.json. The organisation's root key\n" +
					"belongs to operators alone: never give it to the control plane.\n\n" +
					"Example:\n   nixfleet keygen all --dir secrets --suffix fleet.example.com --server cp.example.com",
				Flags: append([]cli.Flag{dir(), suffix(), server(), algorithm(), name(), cn(), force(), command.JSONFlag()},
					append(trustFlags(), recipientFlags("encrypt the org root key")...)...),
				Action: keygenAll,
			},
			{
				Name: "release", Usage: "the key that signs releases, the only thing a host obeys",
				Description: "Example:\n   nixfleet keygen release --out release.key --trust-file trust.json",
				Flags:       append([]cli.Flag{out("release.key"), algorithm(), force(), command.JSONFlag()}, trustFlags()...),
				Action: func(c *cli.Context) error {
					return made(c, func(m *minted) error { return m.release(c.String("out"), c.String("algorithm")) })
				},
			},
			{
				Name: "org-root", Usage: "the key that signs bootstrap tokens",
				Description: "With --trust-file the key that was current becomes the previous one: the grace window of a\n" +
					"rotation, in which old tokens keep working.\n\n" +
					"Example:\n   nixfleet keygen org-root --out org-root.age --recipient \"$(cat ~/.ssh/id_ed25519.pub)\" --trust-file trust.json",
				Flags: append([]cli.Flag{out("org-root.key"), force(), command.JSONFlag()},
					append(trustFlags(), recipientFlags("encrypt the key")...)...),
				Action: func(c *cli.Context) error {
					return made(c, func(m *minted) error { return m.orgRoot(c.String("out")) })
				},
			},
			{
				Name: "fleet-ca", Usage: "the fleet root and the issuing CA of agents' certificates",
				Description: "The root's key stays with the operators; the control plane gets the issuing CA.\n\n" +
					"Example:\n   nixfleet keygen fleet-ca --dir secrets --suffix fleet.example.com",
				Flags: append([]cli.Flag{dir(), suffix(), force(), command.JSONFlag()}, trustFlags()...),
				Action: func(c *cli.Context) error {
					return made(c, func(m *minted) error { _, err := m.fleetCA(c.String("dir")); return err })
				},
			},
			{
				Name: "issuing-ca", Usage: "another issuing CA under the fleet root, before the present one ends",
				Description: "Agents renew under the new one as soon as the control plane has it. client-ca.pem keeps the issuing CAs\n" +
					"that --trust-file names, so that certificates of the present one are accepted until they end.\n\n" +
					"Example:\n   nixfleet keygen issuing-ca --dir secrets/next --suffix fleet.example.com --root-cert secrets/fleet-root.cert.pem \\\n" +
					"     --root-key secrets/fleet-root.key.pem --trust-file trust.json",
				Flags: append(append([]cli.Flag{dir(), suffix(), force(), command.JSONFlag()}, trustFlags()...),
					append(rootFlags(), recipientFlags("encrypt the private half")...)...),
				Action: func(c *cli.Context) error {
					return made(c, func(m *minted) error { return m.issuingFromFiles(c.String("dir")) })
				},
			},
			{
				Name: "server", Usage: "the control plane's server certificate",
				Description: "Example:\n   nixfleet keygen server --server cp.example.com --server 10.0.0.5 --dir secrets",
				Flags: append([]cli.Flag{dir(), server(), daysFlag(), force(), command.JSONFlag()},
					append(rootFlags(), recipientFlags("encrypt the private half")...)...),
				Action: func(c *cli.Context) error {
					return made(c, func(m *minted) error { return m.serverFromFiles(c.String("dir")) })
				},
			},
			{
				Name: "operator", Usage: "an operator's certificate (as mint-operator-cert)",
				Description: "Example:\n   nixfleet keygen operator --cn operator-jo --output-cert jo.pem --output-key jo.key",
				Flags:       operatorCertFlags(),
				Action:      mintOperatorCert,
			},
			{
				Name: "cache", Usage: "a binary cache's signing key in Nix's own form",
				Description: "Example:\n   nixfleet keygen cache --name cache.example.com-1 --out cache.key",
				Flags:       append([]cli.Flag{out("cache.key"), name(), force(), command.JSONFlag()}, trustFlags()...),
				Action: func(c *cli.Context) error {
					return made(c, func(m *minted) error { return m.cache(c.String("out"), c.String("name")) })
				},
			},
		},
	}
}

func trustFlags() []cli.Flag {
	return []cli.Flag{&cli.StringFlag{Name: "trust-file", Usage: "write the public halves into `FILE`, a trust.json; what was current there becomes previous"}}
}

func recipientFlags(what string) []cli.Flag {
	return []cli.Flag{
		&cli.StringSliceFlag{Name: "recipient", Usage: what + " for `RECIPIENT`: age1… or an ssh public key; may be given several times"},
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
		return nil, command.Usage("", "the recipients file names nobody")
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

func (m *minted) release(path, algorithm string) error {
	if algorithm != pki.AlgorithmEd25519 && algorithm != pki.AlgorithmP256 {
		return command.Usage("", "--algorithm must be %s or %s", pki.AlgorithmEd25519, pki.AlgorithmP256)
	}
	key, err := pki.GenerateKey(algorithm)
	if err != nil {
		return err
	}
	public := key.Public()
	m.trust.CIReleaseKey.Current, m.summary.ReleaseKey = &public, &public
	return m.writeKey(path, key)
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
	if len(to) == 0 || len(m.sealed) > 0 {
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

// cache writes a key as `nix key generate-secret` does: the name, a colon and
// base64 of the 64 bytes seed and public key.
func (m *minted) cache(path, name string) error {
	if name == "" && m.c.String("suffix") != "" {
		name = "cache." + m.c.String("suffix") + "-1"
	}
	if name == "" || strings.ContainsAny(name, ": \n") {
		return command.Usage("nixfleet keygen cache --name cache.example.com-1", "--name is missing or holds a colon or a space")
	}
	public, private, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		return err
	}
	m.summary.CacheKey = name + ":" + base64.StdEncoding.EncodeToString(public)
	m.trust.CacheKeys = []string{m.summary.CacheKey}
	return m.writePrivate(path, []byte(name+":"+base64.StdEncoding.EncodeToString(private)))
}

var dnsSuffix = regexp.MustCompile(`^[a-z0-9]([a-z0-9-]*[a-z0-9])?(\.[a-z0-9]([a-z0-9-]*[a-z0-9])?)*$`)

// fleetCA makes the root and, under it, the issuing CA whose names it confines
// to the suffix.
func (m *minted) fleetCA(dir string) (*pki.CA, error) {
	suffix := m.c.String("suffix")
	if !dnsSuffix.MatchString(suffix) {
		return nil, command.Usage("", "--suffix %q is not a domain such as fleet.example.com", suffix)
	}
	root, rootKey, err := pki.NewFleetRoot("fleet-root."+suffix, m.now, rootDays*day)
	if err != nil {
		return nil, fmt.Errorf("make fleet root: %w", err)
	}
	rootPEM := certificatePEM(root.Cert.Raw)
	text := string(rootPEM)
	m.trust.RootCAPEM = &text
	if err := m.writeKey(filepath.Join(dir, rootKeyName), rootKey); err != nil {
		return nil, err
	}
	m.write(filepath.Join(dir, rootCertName), rootPEM, 0o644)
	return root, m.issuingCA(root, dir, nil)
}

// issuingCA makes an issuing CA under root, and the control plane's --client-ca: the
// root for operators, the issuing CA for agents, and those before it, whose
// certificates are still about.
func (m *minted) issuingCA(root *pki.CA, dir string, before []string) error {
	issuing, key, err := root.NewIssuingCA(m.c.String("suffix"), m.now, issuingDays*day)
	if err != nil {
		return fmt.Errorf("make issuing CA: %w", err)
	}
	if err := m.writeKey(filepath.Join(dir, "issuing-ca.key.pem"), key); err != nil {
		return err
	}
	text := certificatePEM(issuing.Cert.Raw)
	m.trust.IssuanceCAPEMs = append([]string{string(text)}, before...)
	m.write(filepath.Join(dir, "issuing-ca.cert.pem"), text, 0o644)
	bundle := append(certificatePEM(root.Cert.Raw), text...)
	for _, ca := range before {
		bundle = append(bundle, strings.TrimSpace(ca)+"\n"...)
	}
	m.write(filepath.Join(dir, "client-ca.pem"), bundle, 0o644)
	return nil
}

func (m *minted) issuingFromFiles(dir string) error {
	if suffix := m.c.String("suffix"); !dnsSuffix.MatchString(suffix) {
		return command.Usage("", "--suffix %q is not a domain such as fleet.example.com", suffix)
	}
	root, err := loadRoot(m.c)
	if err != nil {
		return err
	}
	if m.sealed, err = recipients(m.c); err != nil {
		return err
	}
	var before []string
	if path := m.c.String("trust-file"); path != "" {
		trust, err := loadTrust(m.c, path)
		if err != nil {
			return err
		}
		before = trust.IssuanceCAPEMs
	}
	return m.issuingCA(root, dir, before)
}

func (m *minted) serverFromFiles(dir string) error {
	root, err := loadRoot(m.c)
	if err != nil {
		return err
	}
	if m.sealed, err = recipients(m.c); err != nil {
		return err
	}
	validity, err := daysOf(m.c)
	if err != nil {
		return err
	}
	return m.server(root, dir, validity)
}

// server makes the control plane's certificate under the root, not under the
// issuing CA, which may only speak for hosts of the suffix.
func (m *minted) server(root *pki.CA, dir string, validity time.Duration) error {
	names := m.c.StringSlice("server")
	if len(names) == 0 {
		return command.Usage("nixfleet keygen server --server cp.example.com", "--server is missing: the name or address that agents connect to")
	}
	key, err := pki.GenerateKey(pki.AlgorithmP256)
	if err != nil {
		return err
	}
	cert, err := root.IssueServer(names, key.Crypto().Public(), m.now, validity)
	if err != nil {
		return fmt.Errorf("issue server certificate: %w", err)
	}
	if err := m.writeKey(filepath.Join(dir, "server.key.pem"), key); err != nil {
		return err
	}
	m.write(filepath.Join(dir, "server.cert.pem"), cert, 0o644)
	return nil
}

func keygenAll(c *cli.Context) error {
	dir := c.String("dir")
	if len(c.StringSlice("server")) == 0 {
		return command.Usage("", "--server is missing: the name or address that agents connect to")
	}
	if !c.IsSet("trust-file") {
		if err := c.Set("trust-file", filepath.Join(dir, "trust.json")); err != nil {
			return err
		}
	}
	orgRoot := "org-root.key"
	if c.IsSet("recipient") || c.IsSet("recipients-file") {
		orgRoot = "org-root.age"
	}
	return made(c, func(m *minted) error { return m.all(dir, orgRoot) })
}

// all makes everything that a new fleet needs.
func (m *minted) all(dir, orgRoot string) error {
	root, err := m.fleetCA(dir)
	if err != nil {
		return err
	}
	for _, step := range []func() error{
		func() error { return m.release(filepath.Join(dir, "release.key"), m.c.String("algorithm")) },
		func() error { return m.orgRoot(filepath.Join(dir, orgRoot)) },
		func() error { return m.cache(filepath.Join(dir, "cache.key"), m.c.String("name")) },
		func() error { return m.server(root, dir, certificateDays*day) },
		func() error {
			return m.operator(root, m.c.String("cn"), filepath.Join(dir, "operator.pem"), filepath.Join(dir, "operator.key"), certificateDays*day)
		},
	} {
		if err := step(); err != nil {
			return err
		}
	}
	return nil
}
