package operator

import (
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"

	"github.com/urfave/cli/v2"

	"nixfleet/nixops/disk"
	"nixfleet/roles/command"
)

// templateIdentity is the operator's private key as the template names it.
const templateIdentity = "~/.ssh/id_ed25519"

// ownKeys are the keys of whoever runs init that age can encrypt to, the first choice first.
var ownKeys = []string{"id_ed25519", "id_rsa"}

// ownKey finds the first of ownKeys that has a public half. It returns the name of the key, empty when there is none.
func ownKey() string {
	home, err := os.UserHomeDir()
	if err != nil {
		return ""
	}
	for _, name := range ownKeys {
		if _, err := os.Stat(filepath.Join(home, ".ssh", name+".pub")); err == nil {
			return name
		}
	}
	return ""
}

// identityName is the private key that opens what init encrypts, as the tree's commands name it: that of the
// recipients' file, or the operator's own. Where only recipients are given, nothing says where their private halves
// are, and the template's word stays.
func identityName(c *cli.Context) string {
	if file, ok := strings.CutSuffix(c.String("recipients-file"), ".pub"); ok {
		path, err := filepath.Abs(file)
		if err == nil && harmless.MatchString(path) {
			if _, err := os.Stat(path); err == nil {
				return path
			}
		}
	}
	named := len(c.StringSlice("recipient")) > 0 || c.String("recipients-file") != ""
	if name := ownKey(); name != "" && !named && !c.Bool("no-keys") {
		return "~/.ssh/" + name
	}
	return templateIdentity
}

// identityWords replaces the template's private key by the operator's, in the commands of the README and in scripts.
func identityWords(identity string) []string {
	inShell := identity
	if rest, ok := strings.CutPrefix(identity, "~/"); ok {
		inShell = "$HOME/" + rest
	}
	return []string{templateIdentity, identity, "$HOME/" + strings.TrimPrefix(templateIdentity, "~/"), inShell}
}

// loginKey is the form of a public key that sshd takes and that stands in a line of Nix.
var loginKey = regexp.MustCompile(`^(ssh-ed25519|ssh-rsa|ecdsa-sha2-nistp[0-9]+|sk-[a-z0-9@.-]+) [A-Za-z0-9+/]+=*( .*)?$`)

// loginKeys are the lines that let operators log in to the machines of the fleet: those recipients that are ssh keys,
// or else the key of whoever runs init.
func loginKeys(c *cli.Context) ([]string, error) {
	lines := c.StringSlice("recipient")
	if path := c.String("recipients-file"); path != "" {
		text, err := command.ReadFile(path, command.SmallFile)
		if err != nil {
			return nil, fmt.Errorf("read recipients: %w", err)
		}
		lines = append(lines, strings.Split(string(text), "\n")...)
	}
	keys := loginLines(lines)
	name := ownKey()
	if len(keys) > 0 || name == "" {
		return keys, nil
	}
	home, err := os.UserHomeDir()
	if err != nil {
		return nil, err
	}
	text, err := command.ReadFile(filepath.Join(home, ".ssh", name+".pub"), command.SmallFile)
	if err != nil {
		return nil, fmt.Errorf("read the ssh key that may log in: %w", err)
	}
	return loginLines(strings.Split(string(text), "\n")), nil
}

func loginLines(lines []string) []string {
	var keys []string
	for _, line := range lines {
		if line = strings.TrimSpace(line); loginKey.MatchString(line) {
			keys = append(keys, line)
		}
	}
	return keys
}

// writeLogins writes operators.nix of the tree in dir: its own comment, and the keys.
func writeLogins(dir string, keys []string) error {
	path := filepath.Join(dir, "operators.nix")
	text, err := command.ReadFile(path, command.SmallFile)
	if err != nil {
		return fmt.Errorf("read the tree: %w", err)
	}
	head, _, _ := strings.Cut(string(text), "[\n")
	var b strings.Builder
	b.WriteString(head + "[\n")
	for _, key := range keys {
		b.WriteString("  " + nixString(key) + "\n")
	}
	b.WriteString("]\n")
	return disk.Replace(path, []byte(b.String()), 0o644)
}
