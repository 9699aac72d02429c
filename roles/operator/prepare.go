package operator

import (
	"crypto/ed25519"
	"fmt"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/urfave/cli/v2"

	"nixfleet/nixops/fleet"
	"nixfleet/pki"
	"nixfleet/roles/command"
)

// Where the files of a prepared host lie on the machine. The token is
// encrypted to the host's own key, so only that host can use it.
const (
	hostKeyPath   = "etc/ssh/ssh_host_ed25519_key"
	hostTokenPath = "var/lib/nixfleet/bootstrap-token.age"
)

func hostPrepareCommand() *cli.Command {
	return &cli.Command{
		Name: "prepare", Usage: "make a new host's ssh key and bootstrap token", ArgsUsage: "NAME",
		Description: "The private half is written encrypted to you (--recipient); the token is encrypted to the host.\n" +
			"Prints what to declare, what to commit and how to install.\n\n" +
			"Example:\n   nixfleet host prepare web-07 --recipient \"$(cat ~/.ssh/id_ed25519.pub)\" --org-root-key " +
			"org-root.age \\\n" +
			"     --identity ~/.ssh/id_ed25519 --dir hosts/web-07",
		Flags: append([]cli.Flag{
			&cli.StringFlag{Name: "dir", Usage: "write the files into `DIR` (default: NAME)"},
			&cli.StringFlag{Name: "channel", Value: "stable", Usage: "`CHANNEL` in the printed declaration"},
			&cli.StringFlag{Name: "system", Value: "x86_64-linux", Usage: "`SYSTEM` in the printed declaration"},
			&cli.StringFlag{Name: "address", Value: "ADDRESS", Usage: "`ADDRESS` of the machine in the printed command"},
			&cli.IntFlag{Name: "validity-hours", Value: 24, Usage: "`HOURS` until the token expires"},
			&cli.StringFlag{Name: "trust-file", EnvVars: []string{"NIXFLEET_TRUST_FILE"},
				Usage: "trust.json `FILE` that the org root key is checked against"},
			&cli.BoolFlag{Name: "force", Usage: "replace files that exist"},
			&cli.BoolFlag{Name: "print-token", Usage: "print the token in the clear, to a terminal as well"},
			command.JSONFlag(),
		}, append(orgRootFlags(), recipientFlags("encrypt the private half")...)...),
		Action: hostPrepare,
	}
}

// prepared is what host prepare prints.
type prepared struct {
	Hostname    string     `json:"hostname"`
	Pubkey      string     `json:"pubkey"`
	Declaration string     `json:"declaration"`
	Nonce       string     `json:"nonce"`
	Token       *pki.Token `json:"token"`
	Command     string     `json:"command"`
	Files       []string   `json:"files"`
}

// nonceDeclaration is an entry of mkFleet's bootstrapNonces.
type nonceDeclaration struct {
	Nonce     string        `json:"nonce"`
	Hostname  string        `json:"hostname"`
	ExpiresAt pki.Timestamp `json:"expiresAt"`
	MintedAt  pki.Timestamp `json:"mintedAt"`
}

func hostPrepare(c *cli.Context) error {
	name := c.Args().First()
	if c.NArg() != 1 || !fleet.ValidHostName(name) {
		return command.Usage("nixfleet host prepare NAME", "host prepare takes one host name")
	}
	if h := c.Int("validity-hours"); h < 1 || h > 24*366 {
		return command.Usage("", "--validity-hours must be between 1 and %d", 24*366)
	}
	to, err := recipients(c)
	if err != nil {
		return err
	}
	if len(to) == 0 {
		return command.Usage(`--recipient "$(cat ~/.ssh/id_ed25519.pub)"`,
			"--recipient is missing: the host's private key is written encrypted to you only")
	}
	org, err := orgRoot(c)
	if err != nil {
		return err
	}
	dir := c.String("dir")
	if dir == "" {
		dir = name
	}
	p, err := prepare(name, dir, c, org, time.Now(), func(private []byte) ([]byte, error) {
		return pki.Seal(private,
			to...)
	})
	if err != nil {
		return err
	}
	if c.Bool("json") {
		if command.ToTerminal(c) && !c.Bool("print-token") {
			p.Token = nil // it would stay in the terminal's memory
		}
		return command.Document(c, p)
	}
	token := fmt.Sprintf("# its token is in %s, encrypted to the host; --print-token prints it (expires %s)",
		filepath.Join(dir, "bootstrap-token.age"), p.Token.Claims.ExpiresAt)
	if c.Bool("print-token") {
		text, err := pki.Marshal(p.Token)
		if err != nil {
			return err
		}
		token = fmt.Sprintf("# the token, should you need it elsewhere (expires %s)\n%s", p.Token.Claims.ExpiresAt, text)
	}
	if filepath.Clean(dir) == filepath.Join("secrets", name) {
		fmt.Fprintf(c.App.Writer, "# in a repository of `nixfleet init` flake.nix reads 1 to 3 from %s, and 4 is `sh "+
			"install.sh %s root@%s`\n\n",
			dir, name, c.String("address"))
	}
	_, err = fmt.Fprintf(c.App.Writer, `# 1. declare the host (mkFleet hosts)
%s

# 2. allow its token once (mkFleet bootstrapNonces)
%s

# 3. tell its agent where the token is (hosts/%s.nix)
services.nixfleet-agent.bootstrapTokenFile = "/%s";

# 4. commit, release, then install
%s

%s
`, p.Declaration, nonceEntry(p.Token), name, hostTokenPath, p.Command, token)
	return err
}

// prepare makes key and token. The private half exists in the clear only in
// memory.
func prepare(
	name, dir string, c *cli.Context, org *pki.PrivateKey, now time.Time, seal func([]byte) ([]byte, error),
) (*prepared, error) {
	key, err := pki.GenerateKey(pki.AlgorithmEd25519)
	if err != nil {
		return nil, err
	}
	public, ok := key.Crypto().Public().(ed25519.PublicKey)
	if !ok {
		return nil, fmt.Errorf("host key of %s is not ed25519", name)
	}
	line := pki.FormatHostKey(public, "root@"+name)
	private, err := key.MarshalOpenSSH("root@" + name)
	if err != nil {
		return nil, fmt.Errorf("encode host key: %w", err)
	}
	sealed, err := seal(private)
	if err != nil {
		return nil, fmt.Errorf("encrypt host key: %w", err)
	}
	token, err := newToken(org, name, pki.Fingerprint(public), time.Duration(c.Int("validity-hours"))*time.Hour, now)
	if err != nil {
		return nil, err
	}
	text, err := pki.Marshal(token)
	if err != nil {
		return nil, fmt.Errorf("encode token: %w", err)
	}
	self, err := pki.ParseRecipients([]string{line})
	if err != nil {
		return nil, fmt.Errorf("encrypt token: %w", err)
	}
	sealedToken, err := pki.Seal(append(text, '\n'), self...)
	if err != nil {
		return nil, fmt.Errorf("encrypt token: %w", err)
	}
	// Public: what the fleet declares of the token. The flake of init reads it.
	nonce, err := pki.Marshal(nonceDeclaration{token.Claims.Nonce, name, token.Claims.ExpiresAt, token.Claims.IssuedAt})
	if err != nil {
		return nil, fmt.Errorf("encode nonce: %w", err)
	}
	p := &prepared{
		Hostname: name, Pubkey: line, Nonce: token.Claims.Nonce, Token: token,
		Declaration: fmt.Sprintf("hosts.%s = {\n  system = %s;\n  channel = %s;\n  pubkey = %s;\n};",
			nixAttribute(name), nixString(c.String("system")), nixString(c.String("channel")),
			nixString(strings.TrimSpace(line))),
	}
	m := &minted{c: c, pending: []pendingFile{
		{filepath.Join(dir, "ssh_host_ed25519_key.age"), sealed, 0o600},
		{filepath.Join(dir, "ssh_host_ed25519_key.pub"), []byte(strings.TrimSpace(line) + "\n"), 0o644},
		{filepath.Join(dir, "bootstrap-token.age"), sealedToken, 0o600},
		{filepath.Join(dir, "bootstrap-nonce.json"), append(nonce, '\n'), 0o644},
	}}
	if err := m.flush(); err != nil {
		return nil, err
	}
	p.Files = m.summary.Files
	p.Command = installCommand(name, p.Files, c.String("identity"), c.String("address"))
	return p, nil
}

// installCommand is a shell script of a few lines: nixos-anywhere copies what
// lies in a directory, and that must not stay behind.
func installCommand(name string, files []string, identity, address string) string {
	if identity == "" {
		identity = "~/.ssh/id_ed25519"
	}
	return strings.Join([]string{
		`(umask 077; extra=$(mktemp -d); trap 'rm -rf "$extra"' EXIT`,
		`mkdir -p "$extra"/etc/ssh "$extra"/var/lib/nixfleet`,
		`chmod 755 "$extra" "$extra"/etc "$extra"/etc/ssh "$extra"/var "$extra"/var/lib`,
		fmt.Sprintf(`age -d -i %s %s > "$extra"/%s`, command.ShellWord(identity), command.ShellWord(files[0]), hostKeyPath),
		fmt.Sprintf(`cp %s "$extra"/%s.pub`, command.ShellWord(files[1]), hostKeyPath),
		fmt.Sprintf(`cp %s "$extra"/%s`, command.ShellWord(files[2]), hostTokenPath),
		fmt.Sprintf(`nixos-anywhere --extra-files "$extra" --flake %s root@%s)`, command.ShellWord(".#"+name), address),
	}, "\n")
}

// keywords of Nix, which are not attribute names as they are.
var keywords = []string{"assert", "else", "if", "in", "inherit", "let", "rec", "then", "with"}

// nixAttribute is a name as Nix takes it in an attribute path.
func nixAttribute(name string) string {
	if slices.Contains(keywords, name) {
		return nixString(name)
	}
	for i, r := range name {
		letter := r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r == '_'
		if !letter && (i == 0 || !(r >= '0' && r <= '9' || r == '-')) {
			return nixString(name)
		}
	}
	return name
}
