package operator

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"time"

	"filippo.io/age"
	"github.com/urfave/cli/v2"

	"nixfleet/nixops/disk"
	"nixfleet/nixops/git"
	"nixfleet/nixops/template"
	"nixfleet/roles/command"
)

// What the template says and `nixfleet init` puts its own in place of.
const (
	templateServer   = "cp.example.com"
	templateSuffix   = "fleet.example.com"
	templateNixfleet = "git+https://forge.example.com/nixfleet.git"
	templateSource   = "git+https://forge.example.com/fleet.git#main"
	templateNixpkgs  = "github:NixOS/nixpkgs/nixos-unstable"
	templateDisko    = "github:nix-community/disko"
	controlPort      = "8080"
	cachePort        = "5000"
)

func initCommand() *cli.Command {
	return &cli.Command{
		Name: "init", Usage: "write a new fleet's repository, keys included", ArgsUsage: "DIR",
		Description: "Writes a flake with two example hosts, a control plane, the fleet's public keys, jobs for GitHub, " +
			"GitLab\n" +
			"and Forgejo that release and renew signatures, and a README that goes on from there. Every private half is\n" +
			"encrypted to you before it is written: to the recipients named, or to your ssh key. `nix flake init -t`\n" +
			"writes the same tree without keys.\n\n" +
			"Example:\n   nixfleet init fleet --server cp.example.com\n" +
			"   nixfleet init fleet --server cp.example.com --source-url git+ssh://git@forge.example.com/fleet.git#main " +
			"--recipients-file operators.pub",
		Flags: append([]cli.Flag{
			&cli.StringSliceFlag{Name: "server", Usage: "DNS `NAME` or address of the control plane; the first is the one " +
				"that agents use"},
			&cli.StringFlag{Name: "suffix", EnvVars: []string{"NIXFLEET_AGENT_CN_SUFFIX"},
				Usage: "`SUFFIX` of agents' certificate names (default: fleet. and the server's domain)"},
			&cli.StringFlag{Name: "cache-url", Usage: "`URL` of the binary cache (default: port " + cachePort +
				" of the control plane)"},
			&cli.StringFlag{Name: "source-url", Value: templateSource,
				Usage: "`URL` from which the control plane reads releases"},
			&cli.StringFlag{Name: "nixfleet-url", Value: templateNixfleet, Usage: "flake `URL` of nixfleet"},
			&cli.StringFlag{Name: "nixpkgs-url", Value: templateNixpkgs, Usage: "flake `URL` of nixpkgs"},
			&cli.StringFlag{Name: "disko-url", Value: templateDisko,
				Usage: "flake `URL` of disko, which partitions new machines"},
			&cli.StringFlag{Name: "algorithm", Value: "ed25519", Usage: "`ALGORITHM` of the release key: ed25519 or ecdsa-p256"},
			&cli.StringFlag{Name: "name", Usage: "`NAME` of the cache key (default: cache.SUFFIX-1)"},
			&cli.StringFlag{Name: "cn", Usage: "operator's `NAME` (default: operator-$USER@host)"},
			&cli.BoolFlag{Name: "no-keys", Usage: "make no keys, like nix flake init -t"},
			command.JSONFlag(),
		}, recipientFlags("encrypt every private half")...),
		Action: initFleet,
	}
}

// initialised is what init prints for programs.
type initialised struct {
	Directory  string   `json:"directory"`
	Files      []string `json:"files"`
	Recipients int      `json:"recipients"`
	Logins     int      `json:"logins"` // ssh keys that may log in to the fleet's machines
	Git        bool     `json:"git"`

	identity string // the private key that the printed commands name
}

func initFleet(c *cli.Context) error {
	dir := filepath.Clean(c.Args().First())
	if c.NArg() != 1 || c.Args().First() == "" {
		return command.Usage("nixfleet init fleet --server cp.example.com", "init takes the directory to write")
	}
	identity := identityName(c)
	names, err := templateNames(c, identity)
	if err != nil {
		return err
	}
	if err := empty(dir); err != nil {
		return err
	}
	m := &minted{c: c, now: time.Now()}
	var logins []string
	if !c.Bool("no-keys") {
		if m.sealed, err = operators(c); err != nil {
			return err
		}
		if logins, err = loginKeys(c); err != nil {
			return err
		}
	}
	// The tree appears whole or not at all.
	if err := os.MkdirAll(filepath.Dir(dir), 0o755); err != nil {
		return fmt.Errorf("make %s: %w", filepath.Dir(dir), err)
	}
	made, err := os.MkdirTemp(filepath.Dir(dir), ".nixfleet-init-")
	if err != nil {
		return fmt.Errorf("make %s: %w", dir, err)
	}
	defer os.RemoveAll(made)
	if err := writeFleet(made, names, m); err != nil {
		return err
	}
	if len(logins) > 0 {
		if err := writeLogins(made, logins); err != nil {
			return err
		}
	}
	s := initialised{Directory: dir, Recipients: len(m.sealed), Logins: len(logins), identity: identity}
	if s.Files, err = filesBelow(made); err != nil {
		return err
	}
	if err := moveInto(made, dir); err != nil {
		return err
	}
	if s.Git, err = trackWithGit(c.Context, dir); err != nil {
		progress(c, "warning: the tree is written, but git does not track it: %v", err)
		if hint := command.HintOf(err); hint != "" {
			progress(c, "hint: %s", hint)
		}
	}
	if c.Bool("json") {
		return command.Document(c, s)
	}
	return printNext(c, &s)
}

// harmless is what may stand in a string of Nix, YAML and the shell alike.
var harmless = regexp.MustCompile(`^[A-Za-z0-9+.:/@#?=&%_~,\[\]-]+$`)

// holdsSecret finds URLs with a password or token. Over ssh the name before the @ is none.
var holdsSecret = regexp.MustCompile(`^(git\+)?https?://[^/]*@|^[a-z0-9+.-]+://[^/@]*:[^/@]*@`)

// templateNames replaces the names of the template by those of the flags. It
// also settles the flags that keygen reads.
func templateNames(c *cli.Context, identity string) (*strings.Replacer, error) {
	server := templateServer
	if given := c.StringSlice("server"); len(given) > 0 {
		server = given[0]
		if harmless.MatchString(server) || server == "" {
			names, err := serverNames(given)
			if err != nil {
				return nil, err
			}
			server = names[0]
		}
	} else if !c.Bool("no-keys") {
		return nil, command.Usage("nixfleet init fleet --server cp.example.com",
			"--server is missing: the name or address that agents connect to")
	}
	if c.String("suffix") == "" {
		suffix := "fleet.internal"
		if _, domain, ok := strings.Cut(server, "."); ok && net.ParseIP(server) == nil && dnsSuffix.MatchString(domain) {
			suffix = "fleet." + domain
		}
		if err := c.Set("suffix", suffix); err != nil {
			return nil, err
		}
	}
	cache := cmp.Or(c.String("cache-url"), "http://"+net.JoinHostPort(server, cachePort))
	for flag, value := range map[string]string{
		"server": server, "suffix": c.String("suffix"), "cache-url": cache,
		"source-url": c.String("source-url"), "nixfleet-url": c.String("nixfleet-url"),
		"nixpkgs-url": c.String("nixpkgs-url"),
		"disko-url":   c.String("disko-url"),
	} {
		if !harmless.MatchString(value) {
			return nil, command.Usage("", "--%s %q contains characters that a name or URL cannot have", flag, value)
		}
		if holdsSecret.MatchString(value) {
			return nil, command.Usage("leave it out; the control plane takes a token by source.tokenFile, Nix by "+
				"access-tokens or netrc",
				"--%s holds a password or token, which would end up in the repository and in the Nix store", flag)
		}
	}
	// In URLs, and for scp, an IPv6 address stands in brackets.
	bracketed := strings.TrimSuffix(net.JoinHostPort(server, ""), ":")
	return strings.NewReplacer(append(identityWords(identity),
		"ssh-ng://root@"+templateServer, "ssh-ng://root@"+bracketed,
		"root@"+templateServer+":/", "root@"+bracketed+":/",
		"https://"+templateServer+":"+controlPort, "https://"+net.JoinHostPort(server, controlPort),
		"http://"+templateServer+":"+cachePort, cache,
		templateServer, server,
		templateSuffix, c.String("suffix"),
		templateNixfleet, c.String("nixfleet-url"),
		templateSource, c.String("source-url"),
		templateNixpkgs, c.String("nixpkgs-url"),
		templateDisko, c.String("disko-url"),
	)...), nil
}

// empty refuses a directory that holds anything but a fresh clone's .git.
func empty(dir string) error {
	entries, err := os.ReadDir(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("read %s: %w", dir, err)
	}
	for _, e := range entries {
		if e.Name() != ".git" {
			return command.Hinted(fmt.Errorf("%s is not empty: it holds %s", dir, e.Name()),
				"name a directory that does not exist yet, or an empty clone")
		}
	}
	return nil
}

// operators are those whom the private halves are encrypted to: the recipients
// named, or whoever runs this, by his ssh key.
func operators(c *cli.Context) ([]age.Recipient, error) {
	named, err := recipients(c)
	if err != nil || len(named) > 0 {
		return named, err
	}
	if name := ownKey(); name != "" {
		home, err := os.UserHomeDir()
		if err != nil {
			return nil, err
		}
		path := filepath.Join(home, ".ssh", name+".pub")
		if err := c.Set("recipients-file", path); err != nil {
			return nil, err
		}
		progress(c, "encrypting private halves to %s", path)
		return recipients(c)
	}
	return nil, command.Usage(`--recipient "$(cat some-key.pub)", or age1… from age-keygen; `+
		"ssh-keygen -t ed25519 makes an ssh key",
		"there is no ssh key to encrypt the private halves to, and --recipient is missing")
}

// writeFleet writes the tree and, where somebody is to keep them, the keys.
func writeFleet(dir string, names *strings.Replacer, m *minted) error {
	tree, err := fs.Sub(template.Fleet, "fleet")
	if err != nil {
		return err
	}
	err = fs.WalkDir(tree, ".", func(path string, d fs.DirEntry, err error) error {
		if err != nil || path == "." {
			return err
		}
		to := filepath.Join(dir, filepath.FromSlash(path))
		if d.IsDir() {
			return os.Mkdir(to, 0o755)
		}
		text, err := fs.ReadFile(tree, path)
		if err != nil {
			return err
		}
		return os.WriteFile(to, []byte(names.Replace(string(text))), 0o644)
	})
	if err != nil {
		return fmt.Errorf("write the tree: %w", err)
	}
	if err := os.Chmod(dir, 0o755); err != nil {
		return err
	}
	if len(m.sealed) == 0 {
		return nil
	}
	if err := m.all(filepath.Join(dir, "secrets"), "org-root.key"); err != nil {
		return err
	}
	if err := m.flush(); err != nil {
		return err
	}
	merged, err := mergeTrust(m.c, filepath.Join(dir, "trust.json"), &m.trust)
	if err != nil {
		return err
	}
	if err := writeTrust(filepath.Join(dir, "trust.json"), merged); err != nil {
		return err
	}
	blank, err := fs.ReadFile(tree, "trust.nix")
	if err != nil {
		return err
	}
	head, _, _ := strings.Cut(string(blank), "\n")
	return os.WriteFile(filepath.Join(dir, "trust.nix"), []byte(head+"\n{\n"+indentLines(nixBlock(&m.trust), "  ")+"}\n"),
		0o644)
}

func indentLines(text, by string) string {
	var b strings.Builder
	for line := range strings.Lines(text) {
		if line != "\n" {
			b.WriteString(by)
		}
		b.WriteString(line)
	}
	return b.String()
}

func filesBelow(dir string) ([]string, error) {
	var files []string
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err == nil && !d.IsDir() {
			name, _ := filepath.Rel(dir, path)
			files = append(files, filepath.ToSlash(name))
		}
		return err
	})
	return files, err
}

// moveInto puts the tree in its place. A clone's .git stays where it is.
func moveInto(made, dir string) error {
	if err := empty(dir); err != nil {
		return err
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return fmt.Errorf("make %s: %w", dir, err)
	}
	entries, err := os.ReadDir(made)
	if err != nil {
		return err
	}
	for _, e := range entries {
		if err := os.Rename(filepath.Join(made, e.Name()), filepath.Join(dir, e.Name())); err != nil {
			return fmt.Errorf("write %s: %w", dir, err)
		}
	}
	return disk.SyncDir(dir)
}

// trackWithGit makes a repository, unless the directory lies in one, and adds the
// tree: of a repository Nix sees only what git tracks. Without git it is left.
func trackWithGit(ctx context.Context, dir string) (bool, error) {
	run := func(args ...string) error {
		_, err := git.Attended().Run(ctx, git.Call{Dir: dir, Args: args})
		return err
	}
	err := run("rev-parse", "--is-inside-work-tree")
	if errors.Is(err, git.ErrNoRepository) {
		err = run("init", "--quiet", "--initial-branch=main")
	}
	if err == nil {
		err = run("add", "--all", ".")
	}
	if errors.Is(err, exec.ErrNotFound) {
		return false, nil
	}
	return err == nil, err
}

// printNext says what was made and what to type now.
func printNext(c *cli.Context, s *initialised) error {
	w := c.App.Writer
	fmt.Fprintf(w, "wrote the fleet's repository to %s (%d files)\n", s.Directory, len(s.Files))
	if s.Recipients > 0 {
		fmt.Fprintf(w, "private halves are in secrets/*.age, encrypted to %s; nothing else can open them\n",
			command.Plural(s.Recipients, "recipient"))
	}
	if c.String("nixfleet-url") == templateNixfleet {
		fmt.Fprintln(w, "flake.nix does not know where nixfleet is: put its URL into inputs.nixfleet.url")
	}
	if !s.Git {
		fmt.Fprintln(w, "git does not track it: make it a git repository before the first release")
	}
	if s.Recipients == 0 {
		_, err := fmt.Fprintf(w, "next, in %s: make the keys, as README.md says\n", s.Directory)
		return err
	}
	if s.Logins == 0 {
		fmt.Fprintln(w, "operators.nix names no ssh key: put yours there, or nobody could log in to the machines")
	}
	_, err := fmt.Fprintf(w, `next, in %[1]s:
   nixfleet host prepare web-01 --recipient "$(cat %[2]s.pub)" --dir secrets/web-01 \
     --org-root-key secrets/org-root.key.age --identity %[2]s
then on with README.md, to the first release
`, s.Directory, s.identity)
	return err
}
