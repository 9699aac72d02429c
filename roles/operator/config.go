package operator

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/BurntSushi/toml"
	"github.com/urfave/cli/v2"

	"nixfleet/roles/command"
	"nixfleet/roles/protocol/client"
)

// The configuration file is TOML; its keys are the names of flags with `_` for
// `-` and its values their text, or lists of it for flags that may be repeated.
// Every flag may stand in it; the four of the connection are those of v1. It is
// private (0600): it says where keys lie, and who can write it can point an
// operator at another control plane.
const (
	configName     = "config.toml"
	configMaxBytes = 1 << 20
)

// configDir is where the operator's files lie when nothing else is said.
func configDir() (string, error) {
	dir, err := os.UserConfigDir()
	if err != nil {
		return "", command.Hinted(err, "set HOME or name the file with --config")
	}
	return filepath.Join(dir, "nixfleet"), nil
}

func configPath(c *cli.Context) (string, error) {
	if p := c.String("config"); p != "" {
		return p, nil
	}
	dir, err := configDir()
	return filepath.Join(dir, configName), err
}

// readConfig returns the file's values as flag text. A file that does not
// exist is empty, unless it was named.
func readConfig(path string, named bool) (map[string][]string, error) {
	f, err := os.Open(path)
	if errors.Is(err, fs.ErrNotExist) && !named {
		return nil, nil
	}
	if err != nil {
		return nil, command.Hinted(fmt.Errorf("read configuration: %w", err),
			"nixfleet config init --path %s --cp-url URL --ca-cert FILE --client-cert FILE --client-key FILE", path)
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return nil, fmt.Errorf("read configuration: %w", err)
	}
	if !info.Mode().IsRegular() {
		return nil, command.Hinted(fmt.Errorf("configuration %s is not a regular file", path),
			"--config names a file, such as %s", configName)
	}
	if info.Mode().Perm()&0o077 != 0 {
		return nil, command.Hinted(fmt.Errorf("configuration %s has mode %04o and is open to others", path,
			info.Mode().Perm()), "chmod 600 %s", path)
	}
	text, err := io.ReadAll(io.LimitReader(f, configMaxBytes+1))
	if err != nil {
		return nil, fmt.Errorf("read configuration: %w", err)
	}
	if len(text) > configMaxBytes {
		return nil, fmt.Errorf("configuration %s is larger than %d bytes", path, configMaxBytes)
	}
	var raw map[string]any
	if _, err := toml.Decode(string(text), &raw); err != nil {
		return nil, command.Hinted(fmt.Errorf("configuration %s: %w", path, err),
			"a line reads: cp_url = \"https://cp.example.com:8080\"")
	}
	values := map[string][]string{}
	for key, v := range raw {
		list, ok := v.([]any)
		if !ok {
			list = []any{v}
		}
		for _, v := range list {
			switch v.(type) {
			case string, bool, int64, float64:
				text, err := fromHome(fmt.Sprint(v))
				if err != nil {
					return nil, fmt.Errorf("configuration %s: %s: %w", path, key, err)
				}
				values[key] = append(values[key], text)
			default:
				return nil, command.Hinted(fmt.Errorf("configuration %s: %s must be text, a number, a boolean or a list of them",
					path, key),
					"the file has no sections: its keys are the names of flags with _ for -")
			}
		}
	}
	return values, nil
}

// fromHome puts the home directory in place of ~ at the beginning of a value, as a shell does for a flag.
func fromHome(value string) (string, error) {
	rest, ok := strings.CutPrefix(value, "~/")
	if !ok {
		return value, nil
	}
	home, err := os.UserHomeDir()
	if err != nil {
		return "", command.Hinted(err, "set HOME, or write the whole path instead of ~/")
	}
	return filepath.Join(home, rest), nil
}

// fromConfig sets every flag that neither the command line nor the environment
// has set from the configuration file.
func fromConfig(c *cli.Context) error {
	if c.Command.Name == "init" || c.Command.Name == "canonicalize" {
		return nil
	}
	path, err := configPath(c)
	if err != nil {
		// Without a home there is no file; flags and variables do.
		return nil
	}
	values, err := readConfig(path, c.IsSet("config"))
	if err != nil {
		return err
	}
	for key := range values {
		if !slices.Contains(configKeys(c.App.Commands), key) {
			fmt.Fprintf(c.App.ErrWriter, "warning: configuration %s: no flag is called %q\n", path, key)
		}
	}
	for _, f := range c.Command.Flags {
		name := f.Names()[0]
		list := values[strings.ReplaceAll(name, "-", "_")]
		if len(list) == 0 || c.IsSet(name) || slices.Contains(NeverFromFile, name) || writesTrust(c) && name == "trust-file" {
			continue
		}
		if !command.Repeats(f) && len(list) > 1 {
			return command.Hinted(fmt.Errorf("configuration %s: %s takes one value", path, name), "%s --help",
				c.Command.HelpName)
		}
		for _, v := range list {
			if err := c.Set(name, v); err != nil {
				return command.Hinted(fmt.Errorf("configuration %s: %s = %q: %w", path, name, v, err), "%s --help",
					c.Command.HelpName)
			}
		}
	}
	return nil
}

// NeverFromFile are flags that must be typed: a line that was forgotten in the
// file must not overwrite anything.
var NeverFromFile = []string{"config", "help", "force", "out"}

// writesTrust: for keygen the trust file is something to change, not to read.
func writesTrust(c *cli.Context) bool {
	return strings.HasPrefix(c.Command.HelpName, "nixfleet keygen ")
}

// configKeys lists the keys that mean something to some command.
func configKeys(commands []*cli.Command) []string {
	var keys []string
	for _, c := range commands {
		for _, f := range c.Flags {
			keys = append(keys, strings.ReplaceAll(f.Names()[0], "-", "_"))
		}
		keys = append(keys, configKeys(c.Subcommands)...)
	}
	return keys
}

var connectionKeys = []string{"cp_url", "ca_cert", "client_cert", "client_key"}

func configCommand() *cli.Command {
	return &cli.Command{
		Name: "config", Usage: "the operator's configuration file",
		Description: "Flags win over NIXFLEET_* variables, and these over the file.\n\nExample:\n" +
			"   nixfleet config show",
		Subcommands: []*cli.Command{
			{
				Name: "init", Usage: "write the configuration file (0600)",
				Description: "Paths are made absolute, so that the file works from everywhere.\n\nExample:\n" +
					"   nixfleet config init --cp-url https://cp.example.com:8080 --ca-cert fleet-root.cert.pem \\\n" +
					"     --client-cert operator.pem --client-key operator.key",
				Flags: append(connectionFlags(),
					&cli.StringFlag{Name: "path", Usage: "write `FILE` instead of the default one"},
					&cli.BoolFlag{Name: "force", Usage: "replace the file if there is one"},
				),
				Action: configInit,
			},
			{
				Name: "show", Usage: "print where each connection setting comes from",
				Description: "Example:\n   nixfleet config show --json",
				Flags:       append(connectionFlags(), command.JSONFlag()),
				Action:      configShow,
			},
		},
	}
}

func configInit(c *cli.Context) error {
	var b strings.Builder
	for _, key := range connectionKeys {
		name := strings.ReplaceAll(key, "_", "-")
		v := c.String(name)
		if v == "" {
			return command.Usage("nixfleet config init --help", "--%s is missing", name)
		}
		if key == "cp_url" {
			if err := client.CheckURL(v); err != nil {
				return command.Usage("write it as https://cp.example.com:8080", "--cp-url: %w", err)
			}
		} else {
			abs, err := filepath.Abs(v)
			if err != nil {
				return fmt.Errorf("resolve %s: %w", v, err)
			}
			v = abs
		}
		if err := toml.NewEncoder(&b).Encode(map[string]string{key: v}); err != nil {
			return fmt.Errorf("write configuration: %w", err)
		}
	}
	path := c.String("path")
	if path == "" {
		var err error
		if path, err = configPath(c); err != nil {
			return err
		}
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return fmt.Errorf("write configuration: %w", err)
	}
	if err := writeNew(path, []byte(b.String()), 0o600, c.Bool("force")); err != nil {
		return err
	}
	fmt.Fprintln(c.App.ErrWriter, path)
	return nil
}

func configShow(c *cli.Context) error {
	path, err := configPath(c)
	if err != nil {
		return err
	}
	values, err := readConfig(path, c.IsSet("config"))
	if err != nil {
		return err
	}
	type setting struct {
		Value  string `json:"value"`
		Source string `json:"source"`
	}
	settings := map[string]setting{}
	for _, key := range connectionKeys {
		name := strings.ReplaceAll(key, "_", "-")
		s := setting{Value: c.String(name), Source: "unset"}
		inFile := values[key]
		switch variable := "NIXFLEET_" + strings.ToUpper(key); {
		case s.Value == "":
		case os.Getenv(variable) == s.Value:
			s.Source = variable
		case len(inFile) == 1 && inFile[0] == s.Value:
			s.Source = path
		default:
			s.Source = "--" + name
		}
		settings[key] = s
	}
	if c.Bool("json") {
		return command.Document(c, map[string]any{"file": path, "settings": settings})
	}
	rows := [][]string{{"SETTING", "VALUE", "SOURCE"}}
	for _, key := range connectionKeys {
		rows = append(rows, []string{key, settings[key].Value, settings[key].Source})
	}
	return command.Table(c.App.Writer, rows)
}
